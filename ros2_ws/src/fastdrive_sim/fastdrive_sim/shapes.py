"""One shape for each kind of thing: ``shape_of(thing)`` gives a mesh of a reference size and how to scale it."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from fastdrive_node.errors import SimError
from fastdrive_sim import textures
from fastdrive_sim.meshes import Mesh, MeshBuilder
from fastdrive_sim.types import KINDS, Thing
from fastdrive_sim.vehicles import bus, car, truck

_STEEL = (0.42, 0.43, 0.45)
_LAMPS = {"red": (1.0, 0.05, 0.04), "yellow": (1.0, 0.75, 0.05), "green": (0.1, 1.0, 0.35)}
_SKIN = ((0.85, 0.65, 0.53), (0.72, 0.52, 0.38), (0.50, 0.34, 0.24), (0.93, 0.75, 0.63))
_HAIR = ((0.10, 0.08, 0.07), (0.35, 0.22, 0.12), (0.65, 0.50, 0.25), (0.55, 0.55, 0.55), (0.25, 0.10, 0.05))
_LEGS = ((0.12, 0.15, 0.28), (0.10, 0.10, 0.11), (0.35, 0.30, 0.24), (0.28, 0.30, 0.32))
_STRIDES = 4
_STOREY_M = 3.2

# Length, width and height at which a mesh is built; a kind that is not here is built at its own size.
_REFERENCE = {
    "tree": (4.0, 4.0, 7.0),
    "bush": (1.5, 1.5, 1.0),
    "car": (4.5, 1.8, 1.5),
    "truck": (8.0, 2.5, 3.3),
    "bus": (12.0, 2.55, 3.2),
    "pedestrian": (0.5, 0.6, 1.75),
    "cyclist": (1.8, 0.6, 1.75),
    "barrier": (2.0, 0.6, 0.9),
    "traffic_cone": (0.4, 0.4, 0.7),
}


def shape_of(thing: Thing, time_s: float) -> tuple[Mesh, tuple[float, ...]]:
    """The mesh of a thing and the factors along x, y and z that bring it to its size.

    ``time_s`` moves the legs of pedestrians. Raises ``SimError`` for a kind that has no mesh.
    """
    if thing.kind not in KINDS:
        raise SimError(f"thing {thing.instance}: kind {thing.kind!r} has no mesh; use one of {', '.join(KINDS)}")
    reference = _REFERENCE.get(thing.kind)
    if reference is None:
        return _fixed(thing), (1.0, 1.0, 1.0)
    stride = 0
    if thing.kind == "pedestrian" and abs(thing.speed) > 0.1:
        stride = 1 + int(time_s * 4.0 * max(abs(thing.speed), 0.5) / 1.4 + thing.instance) % _STRIDES
    mesh = _scalable(thing.kind, thing.state, thing.variant % 60, stride)
    return mesh, tuple(actual / built for actual, built in zip(thing.size, reference, strict=True))


def _fixed(thing: Thing) -> Mesh:
    length, width, height = thing.size
    if thing.kind == "building":
        cells = tuple(max(1, round(side / _STOREY_M)) for side in thing.size)
        return _building(thing.variant, cells, tuple(round(side, 1) for side in thing.size))
    if thing.kind == "billboard":
        return _billboard(thing.variant % textures.BILLBOARDS, round(length, 1), round(width, 1), round(height, 1))
    return _pole(thing.kind, thing.state, round(height, 1))


@lru_cache(maxsize=4096)
def _building(variant: int, cells: tuple[int, int, int], size: tuple[float, float, float]) -> Mesh:
    """Walls with a grid of windows; a flat roof with a parapet and boxes, or a gable on a low house."""
    length, width, height = size
    build = MeshBuilder()
    layer = textures.FACADE + variant % textures.FACADES
    gable = height < 9 and variant % 3 == 0
    wall = height * (0.72 if gable else 1.0)
    x, y = length / 2, width / 2
    corners = [(-x, -y), (x, -y), (x, y), (-x, y)]
    for i, (x0, y0) in enumerate(corners):
        x1, y1 = corners[(i + 1) % 4]
        across, up = cells[i % 2] / 4, max(1, round(wall / _STOREY_M)) / 4
        grid = [(0, up), (across, up), (across, 0), (0, 0)]
        build.face([(x0, y0, 0), (x1, y1, 0), (x1, y1, wall), (x0, y0, wall)], layer=layer, uv=grid)
    roof = {"color": (0.45, 0.22, 0.16) if variant % 2 else (0.30, 0.30, 0.32), "layer": textures.CONCRETE}
    if gable:
        _gable(build, (x, y, wall, height), roof)
        return build.mesh()
    build.face([(px, py, wall) for px, py in corners], **roof)
    if variant % 2:
        build.box((-x * 0.4, -y * 0.5, wall), (x * 0.1, y * 0.3, wall + 2.2), shade=0.7, layer=textures.CONCRETE)
    if variant % 5 == 0:
        build.cone(x * 0.5, -y * 0.3, (wall, wall + 3.0), (1.2, 1.2), 6, color=(0.4, 0.3, 0.25))
    return build.mesh()


def _gable(build: MeshBuilder, extent: tuple[float, float, float, float], roof: dict) -> None:
    x, y, wall, top = extent
    build.face([(-x, -y, wall), (x, -y, wall), (x, 0, top), (-x, 0, top)], **roof)
    build.face([(x, y, wall), (-x, y, wall), (-x, 0, top), (x, 0, top)], **roof)
    build.face([(x, -y, wall), (x, y, wall), (x, 0, top)])
    build.face([(-x, y, wall), (-x, -y, wall), (-x, 0, top)])


@lru_cache(maxsize=1024)
def _billboard(pattern: int, length: float, width: float, height: float) -> Mesh:
    """A panel on one or two posts; the pattern is on every side, spread over the longer ones."""
    build = MeshBuilder()
    x, y = max(length, 0.2) / 2, max(width, 0.2) / 2
    low = height * 0.4
    for at in (-0.5, 0.5):
        build.cone(at * length, at * width, (0, low), (0.12, 0.12), 5, color=_STEEL)
    corners = [(-x, -y), (x, -y), (x, y), (-x, y)]
    whole = [(0, 1), (1, 1), (1, 0), (0, 0)]
    for i, (x0, y0) in enumerate(corners):
        x1, y1 = corners[(i + 1) % 4]
        points = [(x0, y0, low), (x1, y1, low), (x1, y1, height), (x0, y0, height)]
        build.face(points, color=(1, 1, 1), layer=textures.BILLBOARD + pattern, uv=whole)
    build.face([(px, py, height) for px, py in corners], color=_STEEL)
    return build.mesh()


@lru_cache(maxsize=512)
def _pole(kind: str, state: str, height: float) -> Mesh:
    build = MeshBuilder()
    if kind == "traffic_light":
        _traffic_light(build, state, height)
    elif kind == "traffic_sign":
        _traffic_sign(build, state, height)
    else:
        build.cone(0, 0, (0, height), (0.11, 0.07), 6, color=_STEEL)
        build.box((0, -0.06, height - 0.1), (1.6, 0.06, height), color=_STEEL)
        build.box((1.0, -0.16, height - 0.16), (1.8, 0.16, height - 0.04), color=(0.9, 0.9, 0.85))
    return build.mesh()


def _traffic_light(build: MeshBuilder, state: str, height: float) -> None:
    """Two heads on a pole, the upper one large: its lit lamp is 0.7 m wide, to be seen at 40 m in a small image."""
    build.cone(0, 0, (0, height - 0.5), (0.1, 0.08), 6, color=_STEEL)
    _lamp_head(build, state, height, 0.35)
    if height > 4.0:
        _lamp_head(build, state, 3.1, 0.2)


def _lamp_head(build: MeshBuilder, state: str, top: float, radius: float) -> None:
    pitch = radius * 2.1
    half, front = radius * 1.25, 0.3
    dark: dict[str, Any] = {"color": (0.06, 0.07, 0.06)}
    build.box((0.06, -half, top - 3 * pitch - 0.1), (front, half, top), **dark)
    for i, (name, color) in enumerate(_LAMPS.items()):
        center = (front + 0.03, 0, top - 0.05 - (i + 0.5) * pitch)
        if name in state.split("_"):
            build.disc(center, radius, 8, color=color, glow=True)
        else:
            build.disc(center, radius * 0.8, 8, color=tuple(0.1 * c + 0.02 for c in color))


def _traffic_sign(build: MeshBuilder, state: str, height: float) -> None:
    """A plate on a pole: octagon (stop), disc (limit), square (anything else), facing +x, grey from behind."""
    layer, sides = _plate(state)
    radius = 0.45 * (math.sqrt(2) if sides == 4 else 1)
    center = (0.08, 0.0, height - 0.45)
    build.cone(0, 0, (0, height - 0.1), (0.045, 0.045), 5, color=_STEEL)
    build.disc(center, radius, sides, color=(1, 1, 1), layer=layer)
    build.disc((0.06, 0, center[2]), radius, sides, back=True, color=(0.5, 0.5, 0.52))


def _plate(state: str) -> tuple[int, int]:
    if state == "stop":
        return textures.STOP, 8
    if state.startswith("limit"):
        digits = state.removeprefix("limit").strip("_ ")
        return textures.LIMIT + (textures.LIMITS.index(digits) if digits in textures.LIMITS else 0), 12
    return {"curve_left": textures.CURVE_LEFT, "curve_right": textures.CURVE_RIGHT}.get(state, textures.NOTICE), 4


@lru_cache(maxsize=4096)
def _scalable(kind: str, state: str, variant: int, stride: int) -> Mesh:
    build = MeshBuilder()
    if kind == "pedestrian":
        _pedestrian(build, variant, stride)
    elif kind in ("car", "truck", "bus"):
        {"car": car, "truck": truck, "bus": bus}[kind](build, variant, state == "brake")
    else:
        _STANDING[kind](build, variant)
    return build.mesh()


def _tree(build: MeshBuilder, variant: int) -> None:
    leaves = {"layer": textures.FOLIAGE, "scale": 0.35}
    build.cone(0, 0, (0, 3.0), (0.22, 0.14), 5, color=(0.30, 0.21, 0.14), layer=textures.CONCRETE, scale=1.0)
    if variant % 3 == 0:
        for z, reach, shade in ((1.4, 2.0, 0.75), (3.2, 1.5, 0.9), (4.9, 1.0, 1.0)):
            build.cone(0, 0, (z, z + 2.1), (reach, 0.12), 7, shade=shade, **leaves)
    else:
        lean = 0.5 if variant % 2 else -0.5
        build.blob((0, 0, 4.4), (2.0, 1.9, 1.9), shade=0.85, **leaves)
        build.blob((0.5, lean, 5.6), (1.3, 1.3, 1.4), shade=1.05, **leaves)


def _bush(build: MeshBuilder, variant: int) -> None:
    build.blob((0, 0, 0.4), (0.75, 0.75, 0.6), shade=0.9, layer=textures.FOLIAGE, scale=0.5)
    build.blob((0.25, -0.2, 0.45), (0.5, 0.45, 0.55), sides=5, layer=textures.FOLIAGE, scale=0.5)


def _pedestrian(build: MeshBuilder, variant: int, stride: int) -> None:
    """``stride`` 0 stands, 1.. are steps; the torso has the thing's color."""
    skin, hair, legs = (t[variant // k % len(t)] for t, k in ((_SKIN, 1), (_HAIR, 3), (_LEGS, 2)))
    swing = (0.0, 0.0, 0.24, 0.0, -0.24)[stride]
    for side in (-1, 1):
        foot, hand, y = side * swing, -side * swing, 0.11 * side
        top, bottom = (-0.09, y - 0.08), (0.09, y + 0.08)
        build.frustum((foot - 0.09, y - 0.07, 0), (foot + 0.09, y + 0.07, 0.85), top, bottom, color=legs)
        arm = 0.26 * side
        top, bottom = (-0.06, arm - 0.05), (0.06, arm + 0.05)
        build.frustum((hand - 0.05, arm - 0.05, 0.75), (hand + 0.05, arm + 0.05, 1.4), top, bottom, shade=0.85)
        build.box((hand - 0.05, arm - 0.05, 0.67), (hand + 0.05, arm + 0.05, 0.76), color=skin)
    build.frustum((-0.11, -0.18, 0.8), (0.11, 0.18, 1.45), (-0.12, -0.22), (0.12, 0.22))
    build.cone(0, 0, (1.42, 1.62), (0.07, 0.11), 6, color=skin)
    build.cone(0.01, 0, (1.62, 1.68), (0.11, 0.11), 6, color=skin)
    build.cone(-0.02, 0, (1.60, 1.75), (0.13, 0.08), 6, color=hair)


def _barrier(build: MeshBuilder, variant: int) -> None:
    """A concrete jersey barrier, or a red and white board on feet."""
    if variant % 2 == 0:
        for y0, y1, z0, z1 in ((0.3, 0.15, 0.0, 0.35), (0.15, 0.09, 0.35, 0.9)):
            build.frustum((-1, -y0, z0), (1, y0, z1), (-1, -y1), (1, y1), layer=textures.CONCRETE)
        return
    for x in (-0.8, 0.8):
        build.box((x - 0.05, -0.25, 0), (x + 0.05, 0.25, 0.9), color=_STEEL)
    build.box((-1, -0.06, 0.35), (1, 0.06, 0.88), color=(1, 1, 1), layer=textures.STRIPES, scale=1.0)


def _traffic_cone(build: MeshBuilder, variant: int) -> None:
    orange, white = (0.95, 0.32, 0.05), (0.95, 0.95, 0.95)
    build.box((-0.2, -0.2, 0), (0.2, 0.2, 0.05), color=(0.75, 0.22, 0.04))
    for z0, z1, color in ((0.05, 0.25, orange), (0.25, 0.45, white), (0.45, 0.7, orange)):
        radius = (0.16 - 0.19 * (z0 - 0.05), 0.16 - 0.19 * (z1 - 0.05))
        build.cone(0, 0, (z0, z1), radius, 6, color=color)


def _cyclist(build: MeshBuilder, variant: int) -> None:
    """A bicycle and its rider, leaning forward; the torso has the thing's color."""
    skin, helmet, legs = (t[variant // k % len(t)] for t, k in ((_SKIN, 1), (_HAIR, 3), (_LEGS, 2)))
    for x in (-0.55, 0.55):
        build.box((x - 0.34, -0.03, 0.0), (x + 0.34, 0.03, 0.68), color=(0.07, 0.07, 0.08))
    build.box((-0.5, -0.025, 0.55), (0.5, 0.025, 0.62), color=_STEEL)
    build.box((0.4, -0.28, 0.95), (0.48, 0.28, 1.02), color=_STEEL)
    for y in (-0.13, 0.13):
        build.frustum((-0.1, y - 0.07, 0.25), (0.1, y + 0.07, 0.95), (-0.3, y - 0.08), (-0.08, y + 0.08), color=legs)
        build.frustum((0.3, y - 0.05, 0.95), (0.45, y + 0.05, 1.3), (-0.05, y - 0.05), (0.1, y + 0.05), shade=0.85)
    build.frustum((-0.32, -0.18, 0.88), (-0.06, 0.18, 1.42), (-0.05, -0.21), (0.2, 0.21))
    build.cone(0.12, 0, (1.4, 1.62), (0.08, 0.11), 6, color=skin)
    build.cone(0.1, 0, (1.6, 1.75), (0.14, 0.06), 6, color=helmet)


_STANDING = {"cyclist": _cyclist, "tree": _tree, "bush": _bush, "barrier": _barrier, "traffic_cone": _traffic_cone}
