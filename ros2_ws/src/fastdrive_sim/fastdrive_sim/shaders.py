"""GLSL of the renderer. Pixel rows run downwards: the projection has y down, so what is read back needs no flip."""


def with_headlights(source: str) -> str:
    """A shader of the scene for the dark. By day it is left out, for it makes drawing slower."""
    return source.replace("#version 330\n", "#version 330\n#define HEADLIGHTS\n")


# What lies on the ground is drawn at one height, so that no gap opens at its edges; the level decides what covers what.
SCENE_VERTEX = """
#version 330
uniform mat4 view_projection;
#ifdef HEADLIGHTS
uniform vec3 lamp;
out vec3 from_lamp;
#endif
in vec3 position;
in vec4 color;     // lit color, and the texture's layer in w
in vec2 uv;
in uint id;        // level << 24 | glow << 23 | label << 16 | instance
out vec3 shade;
out vec3 texel;
flat out uint ids;
void main() {
    gl_Position = view_projection * vec4(position, 1.0);
    gl_Position.z -= float(id >> 24) * (3e-4 + 1e-6 * gl_Position.w);
    shade = color.rgb * 2.0;
    texel = vec3(uv, color.a * 255.0);
#ifdef HEADLIGHTS
    from_lamp = position - lamp;
#endif
    ids = id & 0xFFFFFFu;
}
"""

# A beam of the headlights is three times as wide as high; what it reaches is not hidden by what stands before it.
# gl_FragCoord.w is 1 / depth along the optical axis: half of the color is haze at haze_half metres.
SCENE_FRAGMENT = """
#version 330
uniform sampler2DArray textures;
uniform vec3 haze_color;
uniform float haze_half;
in vec3 shade;
in vec3 texel;
flat in uint ids;
layout(location = 0) out vec4 rgb;
layout(location = 1) out uint id;
#ifdef HEADLIGHTS
uniform float level;  // of the light on what does not glow
uniform vec3 headlights;
uniform vec3 lamp_axis;
in vec3 from_lamp;
vec3 light() {
    vec3 across = cross(dFdx(from_lamp), dFdy(from_lamp));
    float facing = abs(dot(normalize(across + 1e-12), normalize(from_lamp)));
    float cone = smoothstep(0.6, 0.96, dot(normalize(from_lamp * vec3(1.0, 1.0, 3.0)), lamp_axis));
    vec3 beam = headlights * cone * (0.35 + 0.65 * facing) / (1.0 + dot(from_lamp, from_lamp) / 600.0);
    return (ids & 0x800000u) != 0u ? vec3(1.0) : level + beam;
}
#else
vec3 light() { return vec3(1.0); }
#endif
void main() {
    vec3 lit = min(shade * light() * texture(textures, texel).rgb, 1.0);
    rgb = vec4(mix(lit, haze_color, 1.0 / (1.0 + haze_half * gl_FragCoord.w)), 1.0);
    id = ids & 0x7FFFFFu;
}
"""

SKY_VERTEX = """
#version 330
uniform mat3 ray_from_ndc;
in vec2 corner;
out vec3 ray;
void main() {
    gl_Position = vec4(corner, 1.0, 1.0);
    ray = ray_from_ndc * vec3(corner, 1.0);
}
"""

SKY_FRAGMENT = """
#version 330
uniform sampler2DArray textures;
uniform float cloud_layer;
uniform vec2 cloud_offset;
uniform vec3 haze_color;
uniform vec3 sky_color;
uniform vec3 cloud_color;
in vec3 ray;
layout(location = 0) out vec4 rgb;
layout(location = 1) out uint id;
void main() {
    float up = max(ray.z * inversesqrt(dot(ray, ray)), 0.0);
    vec2 plane = ray.xy / (max(ray.z, 0.0) + 0.12 * length(ray.xy) + 1e-4);
    float cloud = texture(textures, vec3(plane * 0.11 + cloud_offset, cloud_layer)).r;
    vec3 clear = mix(haze_color, sky_color, min(up * 3.0, 1.0));
    rgb = vec4(mix(clear, cloud_color, clamp(cloud * 2.2 - 1.0, 0.0, 0.9) * min(up * 6.0, 1.0)), 1.0);
    id = 0u;
}
"""
