"""All cameras of a rig in one pass: color, class, instance and depth, by OpenGL on EGL (Mesa's software driver works).

Pixel convention: image coordinates are continuous and the first pixel spans 0..1, so that its center lies at 0.5.
A point X in camera coordinates falls at K X / X_z, K from ``Camera.scaled``; the integer part is the pixel's index.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import cv2
import moderngl
import numpy as np

from fastdrive_node.errors import SimError
from fastdrive_sim import domains, scene, shaders, textures
from fastdrive_sim.rig import DEFAULT_RIG, RIGS
from fastdrive_sim.types import Camera, EgoPose, Snapshot, Views, World

NEAR_M, FAR_M = 0.3, 6000.0
_MAX_ROWS = 8192  # of a framebuffer; more cameras than fit are drawn in several rounds
_MAX_SIDE = 8192
_HEADLIGHTS_M = (3.4, 0.65)  # ahead of the rear axle, above the ground; both as one

T = TypeVar("T")


class Renderer:
    """Draws a world from every camera of a rig.

    ``width`` and ``height`` are one image's pixels. Color is the mean of ``supersample`` x ``supersample`` samples;
    class, instance and depth are those of the sample next to the pixel's centre. Use a renderer in the thread that made
    it.
    Raises ``SimError`` if no OpenGL context can be created, or for a size that it cannot hold.
    """

    def __init__(
        self, width: int, height: int, rig: Sequence[Camera] = RIGS[DEFAULT_RIG], supersample: int = 2
    ) -> None:
        if width < 1 or height < 1 or not 1 <= supersample <= 4 or max(width, height) * supersample > _MAX_SIDE:
            raise SimError(
                f"image size {width}x{height}, supersample {supersample}: at most {_MAX_SIDE} samples a side"
            )
        self.width, self.height, self.rig = width, height, tuple(rig)
        self._factor = supersample
        self._context = _context()
        self._per_round = max(1, min(len(self.rig), _MAX_ROWS // (height * supersample)))
        self._build_targets()
        self._build_programs()
        self._static: scene.Chunks | None = None

    def _build_targets(self) -> None:
        ctx = self._context
        size = (self.width * self._factor, self.height * self._factor * self._per_round)
        self._color = ctx.renderbuffer(size, 4)
        self._ids = ctx.renderbuffer(size, 1, dtype="u4")
        self._depth = ctx.depth_renderbuffer(size)
        self._target = ctx.framebuffer([self._color, self._ids], self._depth)
        self._color_target = ctx.framebuffer([self._color], self._depth)
        self._read_rgba = np.empty((size[1], size[0], 4), np.uint8)
        self._read_ids = np.empty((size[1], size[0]), np.uint32)
        self._read_depth = np.empty((size[1], size[0]), np.float32)

    def _build_programs(self) -> None:
        ctx = self._context
        # moderngl gives uniforms and attributes by name alike, and only uniforms are written
        vertex, fragment = shaders.SCENE_VERTEX, shaders.SCENE_FRAGMENT
        self._day_program: Any = ctx.program(vertex, fragment)
        self._dark_program: Any = ctx.program(shaders.with_headlights(vertex), shaders.with_headlights(fragment))
        self._scene_program = self._day_program
        self._sky_program: Any = ctx.program(shaders.SKY_VERTEX, shaders.SKY_FRAGMENT)
        pixels = textures.layers()
        self._textures = ctx.texture_array((textures.SIDE, textures.SIDE, len(pixels)), 4, pixels.tobytes())
        self._textures.build_mipmaps()
        self._textures.filter = (moderngl.LINEAR_MIPMAP_NEAREST, moderngl.LINEAR)
        whole = np.array([[-1, -1], [-1, 3], [3, -1]], np.float32)
        self._sky = ctx.vertex_array(self._sky_program, [(ctx.buffer(whole.tobytes()), "2f", "corner")])
        self._vertices = ctx.buffer(reserve=scene.VERTEX.itemsize, dynamic=True)
        self._indices = ctx.buffer(reserve=4, dynamic=True)
        self._bind()

    def _bind(self) -> None:
        layout = [(self._vertices, "3f4 4f1 2f4 1u4", "position", "color", "uv", "id")]
        self._scene = self._context.vertex_array(self._scene_program, layout, self._indices)

    def load(self, world: World) -> None:
        """Takes over what does not move. Raises ``SimError`` for a thing that cannot be drawn."""
        self._world, self._light = world, domains.light_of(world)
        light = self._light
        parts = [scene.thing_chunks(world.things, light, 0.0), scene.surface_chunks(world.surfaces, light)]
        self._static = scene.join(parts)
        with self._context:
            self._grow(len(self._static.vertices) + 4096, 0)
            self._vertices.write(self._static.vertices.tobytes())
            self._set_light(world, light)

    def _set_light(self, world: World, light: scene.Illumination) -> None:
        self._scene_program = self._day_program if light.headlights is None else self._dark_program
        self._scene.release()
        self._bind()
        if light.headlights is not None:
            self._scene_program["level"] = light.level
            self._scene_program["headlights"] = tuple(light.headlights)
        self._scene_program["haze_color"] = self._sky_program["haze_color"] = tuple(light.haze)
        self._scene_program["haze_half"] = light.haze_half_m
        self._sky_program["sky_color"] = tuple(light.sky)
        self._sky_program["cloud_color"] = tuple(light.cloud)
        self._sky_program["cloud_layer"] = float(textures.CLOUD)
        self._sky_program["cloud_offset"] = ((world.seed * 0.37) % 1.0, (world.seed * 0.61) % 1.0)

    def _set_headlights(self, ego: EgoPose) -> None:
        (ahead, up), cos, sin = _HEADLIGHTS_M, math.cos(ego.yaw), math.sin(ego.yaw)
        self._scene_program["lamp"] = (ego.x + ahead * cos, ego.y + ahead * sin, up)
        self._scene_program["lamp_axis"] = (cos, sin, 0.0)

    def _grow(self, vertices: int, indices: int) -> None:
        """Makes the buffers large enough; their content is lost where they grow."""
        sizes = (vertices * scene.VERTEX.itemsize, indices * 4)
        if self._vertices.size >= sizes[0] and self._indices.size >= sizes[1]:
            return
        self._scene.release()
        if self._vertices.size < sizes[0]:
            self._vertices.release()
            self._vertices = self._context.buffer(reserve=sizes[0] * 3 // 2, dynamic=True)
            if self._static is not None:
                self._vertices.write(self._static.vertices.tobytes())
        if self._indices.size < sizes[1]:
            self._indices.release()
            self._indices = self._context.buffer(reserve=sizes[1] * 3 // 2, dynamic=True)
        self._bind()

    def render(self, snapshot: Snapshot) -> Views:
        """Draws one instant. The same world and snapshot give the same arrays. Raises ``SimError`` before ``load``."""
        rounds = self._draw(snapshot, self._target, self._read)
        parts = (each[0] if len(each) == 1 else np.concatenate(each) for each in zip(*rounds, strict=True))
        views = Views(*parts)
        return replace(views, rgb=domains.look_of(self._world, snapshot.time_s, views.rgb))

    def render_color(self, snapshot: Snapshot) -> np.ndarray:
        """The ``rgb`` of ``render`` alone, in less time: for who drives and needs no labels."""
        rounds = self._draw(snapshot, self._color_target, self._read_color)
        rgb = rounds[0] if len(rounds) == 1 else np.concatenate(rounds)
        return domains.look_of(self._world, snapshot.time_s, rgb)

    def _draw(self, snapshot: Snapshot, target: moderngl.Framebuffer, read: Callable[[int], T]) -> list[T]:
        """All cameras, in one or more rounds, and what ``read`` gives after each."""
        if self._static is None:
            raise SimError("render: load(world) comes first")
        moving = scene.join(
            [
                scene.thing_chunks(snapshot.things, self._light, snapshot.time_s),
                scene.ground_chunks(snapshot.ego, self._light),
            ]
        )
        eyes = [scene.Eye.of(camera, snapshot.ego) for camera in self.rig]
        step = self._per_round
        rounds = []
        with self._context:
            if self._light.headlights is not None:
                self._set_headlights(snapshot.ego)
            spans = self._upload(self._static, moving, eyes)
            for i in range(0, len(eyes), step):
                target.use()
                self._round(eyes[i : i + step], spans[i : i + step], i)
                rounds.append(read(len(eyes[i : i + step])))
        return rounds

    def _upload(self, static: scene.Chunks, moving: scene.Chunks, eyes: Sequence[scene.Eye]) -> list[tuple[int, int]]:
        """Writes moving vertices and each camera's indices; returns first and count per camera."""
        start = len(static.vertices)
        pieces = [static.indices, moving.shifted(start)]
        drawn, spans, total = [], [], 0
        for camera, eye in zip(self.rig, eyes, strict=True):
            intrinsic = camera.scaled(self.width, self.height)
            first = total
            for chunks, indices in zip((moving, static), pieces[::-1], strict=True):
                for i in scene.visible(chunks, eye, intrinsic, self.width):
                    drawn.append(indices[i])
                    total += len(indices[i])
            spans.append((first, total - first))
        self._grow(start + len(moving.vertices), total)
        self._vertices.write(moving.vertices.tobytes(), offset=start * scene.VERTEX.itemsize)
        self._indices.write(np.concatenate(drawn).tobytes())
        return spans

    def _round(self, eyes: Sequence[scene.Eye], spans: Sequence[tuple[int, int]], first: int) -> None:
        """Draws cameras from ``first`` on into the framebuffer in use, one below the other."""
        ctx, factor = self._context, self._factor
        ctx.clear(depth=1.0)
        ctx.enable(moderngl.DEPTH_TEST | moderngl.CULL_FACE)
        ctx.depth_func = "<="
        ctx.front_face = "cw"  # y runs down
        self._textures.use()
        for i, (eye, (start, count)) in enumerate(zip(eyes, spans, strict=True)):
            intrinsic = self.rig[first + i].scaled(self.width, self.height)
            ctx.viewport = (0, i * self.height * factor, self.width * factor, self.height * factor)
            self._scene_program["view_projection"].write(_projection(intrinsic, eye, self.width, self.height))
            self._scene.render(vertices=count, first=start)
            self._sky_program["ray_from_ndc"].write(_rays(intrinsic, eye, self.width, self.height))
            self._sky.render(vertices=3)

    def _read_color(self, count: int) -> np.ndarray:
        factor, rows = self._factor, count * self.height * self._factor
        self._color_target.read_into(self._read_rgba, (0, 0, self.width * factor, rows), components=4)
        rgba = self._read_rgba[:rows]
        if factor > 1:
            rgba = cv2.resize(rgba, (self.width, count * self.height), interpolation=cv2.INTER_AREA)
        return cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB).reshape(count, self.height, self.width, 3)

    def _read(self, count: int) -> tuple[np.ndarray, ...]:
        factor, rows = self._factor, count * self.height * self._factor
        view = (0, 0, self.width * factor, rows)
        rgb = self._read_color(count)
        self._target.read_into(self._read_ids, view, components=1, attachment=1, dtype="u4")
        shape = (count, self.height, self.width)
        middle = slice(factor // 2, None, factor)
        ids = self._read_ids[:rows][middle, middle].reshape(shape)
        self._target.read_into(self._read_depth, view, components=1, attachment=-1, dtype="f4")
        return (
            rgb,
            (ids >> scene.LABEL_SHIFT).astype(np.uint8),
            ids.astype(np.uint16),
            _metres(self._read_depth[:rows][middle, middle].reshape(shape)),
        )

    def close(self) -> None:
        """Frees the context; the renderer cannot be used any more."""
        self._context.release()


def _context() -> moderngl.Context:
    try:
        # moderngl's stub takes every setting for a dict
        return moderngl.create_context(standalone=True, backend="egl")  # pyright: ignore[reportArgumentType]
    except Exception as error:  # whatever the loader or the driver raises
        message = "no OpenGL context on EGL: install the Debian packages libegl1 and libgl1-mesa-dri"
        raise SimError(f"{message} ({str(error).splitlines()[0] if str(error) else type(error).__name__})") from error


def _projection(intrinsic: np.ndarray, eye: scene.Eye, width: int, height: int) -> bytes:
    """World to clip coordinates, y down, column-major float32."""
    (fx, _, cx), (_, fy, cy), _ = intrinsic
    near, far = NEAR_M, FAR_M
    clip = np.array(
        [
            [2 * fx / width, 0, 2 * cx / width - 1, 0],
            [0, 2 * fy / height, 2 * cy / height - 1, 0],
            [0, 0, (far + near) / (far - near), -2 * far * near / (far - near)],
            [0, 0, 1, 0],
        ]
    )
    view = np.eye(4)
    view[:3, :3] = eye.rotation.T
    view[:3, 3] = -eye.rotation.T @ eye.origin
    return (clip @ view).T.astype(np.float32).tobytes()


def _rays(intrinsic: np.ndarray, eye: scene.Eye, width: int, height: int) -> bytes:
    """From (x, y, 1) in normalised device coordinates to a ray in the world, column-major float32."""
    pixel = np.array([[width / 2, 0, width / 2], [0, height / 2, height / 2], [0, 0, 1]])
    return (eye.rotation @ np.linalg.inv(intrinsic) @ pixel).T.astype(np.float32).tobytes()


def _metres(depth: np.ndarray) -> np.ndarray:
    """Depth buffer 0..1 to metres along the optical axis; infinite where nothing was drawn."""
    metres = np.float32(NEAR_M * FAR_M) / (np.float32(FAR_M) - depth * np.float32(FAR_M - NEAR_M))
    return np.where(depth < 1.0, metres, np.float32(np.inf))
