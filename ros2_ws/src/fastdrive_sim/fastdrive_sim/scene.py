"""A world as lit vertices in chunks, and which of them a camera can see. No OpenGL here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from fastdrive_node.errors import SimError
from fastdrive_sim import textures
from fastdrive_sim.shapes import shape_of
from fastdrive_sim.types import KINDS, Camera, EgoPose, Label, Surface, Thing, World

VERTEX = np.dtype([("position", "<f4", 3), ("color", "u1", 4), ("uv", "<f4", 2), ("id", "<u4")])
LABEL_SHIFT, LEVEL_SHIFT = 16, 24  # id of a vertex: level << 24 | glow << 23 | label << 16 | instance
_GLOW = 1 << 23
_REACH_M = 220.0  # things further away are not drawn
_CELL_M = 40.0  # surfaces are cut into chunks of about this size
_TILE_M, _TILES = 12.0, 24  # the ground around the ego vehicle
_GROUND_RGB = (96, 112, 68)
_SURFACE_LOOK = {  # texture layer and repeats per metre
    Label.GROUND: (textures.GRASS, 0.12),
    Label.ROAD: (textures.GRAIN, 0.22),
    Label.LANE_MARK: (textures.GRAIN, 0.5),
    Label.SIDEWALK: (textures.PAVING, 0.25),
}


@dataclass(frozen=True)
class Illumination:
    """Sun and sky of a world. Colors are 0..1 factors, float32 [3]."""

    sun: np.ndarray  # unit vector towards the sun
    sun_color: np.ndarray
    ambient: np.ndarray
    sky: np.ndarray
    haze: np.ndarray
    haze_half_m: float  # the depth at which half of a color is haze
    cloud: np.ndarray
    ground: float = 1.0  # a factor on the ground and what is painted on it
    headlights: np.ndarray | None = None  # color of the ego vehicle's; None: off
    # With headlights a factor on what does not glow; not in ``ambient``, for vertices of 8 bits have few dark colors.
    level: float = 1.0

    @classmethod
    def of(cls, world: World) -> Illumination:
        """``World.sun_deg`` is the sun's height; where it stands follows from the seed."""
        height = math.radians(min(max(world.sun_deg, 5.0), 90.0))
        azimuth = (world.seed * 2.399963) % (2 * math.pi)
        flat = math.cos(height)
        low = max(0.0, 1.0 - world.sun_deg / 35.0)  # a low sun is dimmer and redder
        haze = min(max(world.haze, 0.0), 1.0)
        sky = np.array(world.sky, np.float32) / 255
        gray = np.array([0.80, 0.82, 0.84], np.float32) * (1 - 0.25 * low)
        warm = np.array([0.95, 0.88, 0.78], np.float32) * (1 - 0.2 * low)
        light = sky * 0.35 + (warm * (1 - haze) + gray * haze) * 0.65
        return cls(
            sun=np.array([flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(height)], np.float32),
            sun_color=np.array([1.0, 0.97 - 0.2 * low, 0.90 - 0.4 * low], np.float32) * 0.75 * (1 - 0.6 * haze),
            ambient=np.array([0.58, 0.61, 0.66], np.float32) * (0.9 + 0.3 * haze),
            sky=sky * (1 - haze) + gray * haze,
            haze=light,
            haze_half_m=1200.0 * (1 - haze) ** 2 + 80.0,
            cloud=np.minimum(light * 0.4 + 0.58, 1.0),
        )

    def shade(self, normals: np.ndarray) -> np.ndarray:
        """Light on surfaces with these unit normals [V, 3]; returns factors [V, 3]."""
        direct = np.clip(normals @ self.sun, 0, None)[:, None] * self.sun_color
        return direct + (0.75 + 0.25 * normals[:, 2:]) * self.ambient

    def shade_ground(self) -> np.ndarray:
        """Light on the ground; factors [1, 3]."""
        return self.shade(np.array([[0, 0, 1.0]], np.float32)) * self.ground


@dataclass(frozen=True)
class Chunks:
    """Vertices and the pieces they fall into. Pieces of a lower ``rank`` are drawn first, nearer ones before others."""

    vertices: np.ndarray  # VERTEX [V]
    indices: list[np.ndarray]  # per piece, uint32 [3 T], into vertices
    center: np.ndarray  # float32 [P, 2]
    radius: np.ndarray  # float32 [P]
    rank: np.ndarray  # float32 [P]

    def shifted(self, offset: int) -> list[np.ndarray]:
        """The indices, for vertices that begin at ``offset`` of a buffer."""
        return [piece + np.uint32(offset) for piece in self.indices]


def join(parts: Sequence[Chunks]) -> Chunks:
    """Several sets of chunks as one."""
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts])
    return Chunks(
        vertices=np.concatenate([part.vertices for part in parts]),
        indices=[piece for part, start in zip(parts, offsets, strict=False) for piece in part.shifted(int(start))],
        center=np.concatenate([part.center for part in parts]),
        radius=np.concatenate([part.radius for part in parts]),
        rank=np.concatenate([part.rank for part in parts]),
    )


def _packed_id(label: int, instance: int, level: int = 0) -> int:
    return level << LEVEL_SHIFT | label << LABEL_SHIFT | instance


def _vertices(position, rgb, layer, uv, ids) -> np.ndarray:
    out = np.empty(len(position), VERTEX)
    out["position"], out["uv"], out["id"] = position, uv, ids
    out["color"][:, :3] = np.clip(rgb * 255 + 0.5, 0, 255)
    out["color"][:, 3] = layer
    return out


def thing_chunks(things: Sequence[Thing], light: Illumination, time_s: float) -> Chunks:
    """Each thing as one piece. Raises ``SimError`` for an unknown kind or an instance outside 0..65535."""
    if not things:
        return Chunks(np.zeros(0, VERTEX), [], np.zeros((0, 2), "f4"), np.zeros(0, "f4"), np.zeros(0, "f4"))
    for thing in things:
        if not 0 <= thing.instance < 1 << LABEL_SHIFT:
            raise SimError(f"thing {thing.instance}: an instance is a number from 1 to 65535")
    shapes = [shape_of(thing, time_s) for thing in things]
    meshes = [mesh for mesh, _ in shapes]
    counts = np.array([len(mesh.position) for mesh in meshes])
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])

    def spread(per_thing) -> np.ndarray:
        return np.repeat(np.array(per_thing, np.float32), counts, axis=0)

    def gathered(name: str) -> np.ndarray:
        return np.concatenate([getattr(mesh, name) for mesh in meshes])

    scale, turn = spread([scale for _, scale in shapes]), spread([(math.cos(t.yaw), math.sin(t.yaw)) for t in things])
    normal = gathered("normal") / scale
    normal = _turned(normal / np.linalg.norm(normal, axis=1, keepdims=True), turn)
    position = _turned(gathered("position") * scale, turn) + spread([(t.x, t.y, t.z) for t in things])
    tint, glow = gathered("tint")[:, None], gathered("glow")[:, None]
    rgb = np.where(tint > 0, tint * spread([t.color for t in things]) / 255, gathered("color"))
    rgb = np.where(glow, rgb, rgb * light.shade(normal))
    ids = np.repeat(np.array([_packed_id(KINDS[t.kind], t.instance) for t in things], np.uint32), counts)
    ids |= np.where(glow[:, 0], np.uint32(_GLOW), np.uint32(0))
    return Chunks(
        vertices=_vertices(position, rgb, gathered("layer"), gathered("uv"), ids),
        indices=[(m.triangles.ravel() + s).astype(np.uint32) for m, s in zip(meshes, starts, strict=True)],
        center=np.array([(t.x, t.y) for t in things], np.float32),
        radius=np.array([_reach(t) for t in things], np.float32),
        rank=np.zeros(len(things), np.float32),
    )


def _turned(vectors: np.ndarray, turn: np.ndarray) -> np.ndarray:
    cos, sin = turn[:, 0], turn[:, 1]
    x, y, z = vectors.T
    return np.stack([cos * x - sin * y, sin * x + cos * y, z], axis=1)


def _reach(thing: Thing) -> float:
    margin = 2.0 if thing.kind in ("lamp_post", "traffic_light", "traffic_sign") else 0.5
    return math.hypot(thing.size[0], thing.size[1]) / 2 + margin


def surface_chunks(surfaces: Sequence[Surface], light: Illumination) -> Chunks:
    """Surfaces cut into pieces of about 40 m. All lie at z = 0: their heights only say which one covers another.

    The highest is drawn first, so that what it hides costs nothing.
    """
    levels = sorted({(surface.z_m, int(surface.label)) for surface in surfaces})
    parts = [
        _surface(surface, light, min(1 + levels.index((surface.z_m, int(surface.label))), 255))
        for surface in surfaces
        if len(surface.triangles)
    ]
    return join(parts) if parts else thing_chunks((), light, 0.0)


def _surface(surface: Surface, light: Illumination, level: int) -> Chunks:
    triangles = np.asarray(surface.triangles, np.float32).reshape(-1, 3, 2)
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    clockwise = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) < (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    triangles[clockwise] = triangles[clockwise][:, ::-1]
    cells = np.floor(triangles.mean(axis=1) / _CELL_M).astype(np.int64)
    order = np.lexsort(cells.T)
    triangles, cells = triangles[order], cells[order]
    cuts = np.flatnonzero((np.diff(cells, axis=0) != 0).any(axis=1)) + 1
    pieces = np.split(triangles, cuts)
    low = np.array([piece.min(axis=(0, 1)) for piece in pieces])
    high = np.array([piece.max(axis=(0, 1)) for piece in pieces])
    layer, scale = _SURFACE_LOOK.get(surface.label, (textures.GRAIN, 0.25))
    xy = triangles.reshape(-1, 2)
    rgb = np.array(surface.color, np.float32) / 255 * light.shade_ground()
    position = np.concatenate([xy, np.zeros((len(xy), 1), np.float32)], axis=1)
    ids = _packed_id(surface.label, 0, level)
    stops = np.cumsum([3 * len(piece) for piece in pieces])
    return Chunks(
        vertices=_vertices(position, np.repeat(rgb, len(xy), axis=0), layer, xy * scale, ids),
        indices=[np.arange(e - 3 * len(p), e, dtype=np.uint32) for e, p in zip(stops, pieces, strict=True)],
        center=(low + high) / 2,
        radius=np.linalg.norm(high - low, axis=1) / 2,
        rank=np.full(len(pieces), 256.0 - level, np.float32),
    )


def ground_chunks(ego: EgoPose, light: Illumination) -> Chunks:
    """The plane z = 0 around the ego vehicle, out to the horizon; its patches of color stay where they are."""
    first = np.round(np.array([ego.x, ego.y]) / (4 * _TILE_M)) * 4 - _TILES // 2
    steps = np.arange(_TILES + 1)
    column, row = np.meshgrid(steps, steps)
    index = np.stack([column, row], axis=-1).reshape(-1, 2) + first
    xy = (index * _TILE_M).astype(np.float32)
    hashed = np.sin(index @ np.array([12.9898, 78.233])) * 43758.5453
    tone = (0.86 + 0.28 * (hashed - np.floor(hashed))).astype(np.float32)
    far = (np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 4000.0 + xy[len(xy) // 2]).astype(np.float32)
    corners = [0, _TILES, (_TILES + 1) ** 2 - 1, (_TILES + 1) * _TILES]
    xy, tone = np.concatenate([xy, far]), np.concatenate([tone, np.ones(4, np.float32)])
    rgb = np.array(_GROUND_RGB, np.float32) / 255 * light.shade_ground() * tone[:, None]
    position = np.concatenate([xy, np.zeros((len(xy), 1), np.float32)], axis=1)
    layer, scale = _SURFACE_LOOK[Label.GROUND]
    pieces, center = _tile_indices()
    pieces = [*pieces, _skirt_indices(corners, len(xy) - 4)]
    center = np.concatenate([center * _TILE_M + first * _TILE_M, xy[None, len(xy) // 2]]).astype(np.float32)
    count = len(pieces)
    return Chunks(
        vertices=_vertices(position, rgb, layer, (xy - xy[0]) * scale, _packed_id(Label.GROUND, 0)),
        indices=pieces,
        center=center,
        radius=np.array([4 * _TILE_M * 0.71] * (count - 1) + [8000.0], np.float32),
        rank=np.full(count, 256.0, np.float32),
    )


@cache
def _tile_indices() -> tuple[list[np.ndarray], np.ndarray]:
    """Blocks of 4 x 4 ground tiles: their indices, and their middles in tiles [B, 2]."""
    stride, pieces, middles = _TILES + 1, [], []
    for row in range(0, _TILES, 4):
        for column in range(0, _TILES, 4):
            y, x = np.mgrid[row : row + 4, column : column + 4]
            a = (y * stride + x).ravel()
            quads = np.stack([a, a + 1, a + stride + 1, a, a + stride + 1, a + stride], axis=1)
            pieces.append(quads.ravel().astype(np.uint32))
            middles.append((column + 2.0, row + 2.0))
    return pieces, np.array(middles)


def _skirt_indices(inner: list[int], outer: int) -> np.ndarray:
    """From the edge of the tiles to the horizon."""
    triangles = []
    for i in range(4):
        j = (i + 1) % 4
        triangles += [inner[i], outer + i, outer + j, inner[i], outer + j, inner[j]]
    return np.array(triangles, np.uint32)


@dataclass(frozen=True)
class Eye:
    """A camera in the world."""

    origin: np.ndarray  # float64 [3]
    rotation: np.ndarray  # float64 [3, 3], camera to world

    @classmethod
    def of(cls, camera: Camera, ego: EgoPose) -> Eye:
        cos, sin = math.cos(ego.yaw), math.sin(ego.yaw)
        turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])
        return cls(turn @ camera.translation + (ego.x, ego.y, 0.0), turn @ camera.rotation)


def visible(chunks: Chunks, eye: Eye, intrinsic: np.ndarray, width: int) -> np.ndarray:
    """Indices of the pieces that may show in an image ``width`` pixels wide, in drawing order.

    Only the left and right edges and the distance cut: cameras look nearly level.
    """
    axis, right = eye.rotation[:2, 2], eye.rotation[:2, 0]
    offset = chunks.center - eye.origin[:2]
    ahead, across = offset @ axis, offset @ right
    tangent_right = (width - intrinsic[0, 2]) / intrinsic[0, 0]
    tangent_left = intrinsic[0, 2] / intrinsic[0, 0]
    inside = (ahead > -chunks.radius) & (ahead < _REACH_M + chunks.radius)
    inside &= across - tangent_right * ahead < chunks.radius * math.hypot(1, tangent_right)
    inside &= -across - tangent_left * ahead < chunks.radius * math.hypot(1, tangent_left)
    found = np.flatnonzero(inside)
    return found[np.lexsort((ahead[found] - chunks.radius[found], chunks.rank[found]))]
