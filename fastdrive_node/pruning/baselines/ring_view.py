"""Tokens that a neighboring camera sees, too, go first: the ring-view term of ST-Prune, by geometry alone.

Cameras around a vehicle overlap. Of two tokens on the same viewing ray the one farther from its camera's optical axis
is a duplicate. The geometry is a file in the VLA directory, because what a token sees follows from the rig that the VLA
was trained with. Rays are compared as directions: objects are taken to be far away against the distance of the cameras.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from fastdrive_node.errors import ModelError
from fastdrive_node.families import Vla
from fastdrive_node.files import GEOMETRY_FILE
from fastdrive_node.pruning.baselines.coverage import spread_order
from fastdrive_node.pruning.pruner import Pruner, PruningContext
from fastdrive_node.validation import parse_json, read_bytes

HOW = "write it with `fastdrive camera-geometry DATASET --vla DIR`, or use another pruner"

Row = Annotated[tuple[float, float, float], Field()]
Matrix = tuple[Row, Row, Row]


class ViewGeometry(BaseModel):
    """A pinhole camera; where it is on the vehicle does not matter here."""

    model_config = ConfigDict(strict=False, allow_inf_nan=False, frozen=True)
    size: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]  # width, height in px of the intrinsic
    intrinsic: Matrix  # px
    rotation: Matrix  # camera axes (x right, y down, z forward) to the ego frame

    def rays(self, grid: tuple[int, int]) -> torch.Tensor:
        """Unit vectors float64 [rows * columns, 3] in the ego frame through the centers of a grid's cells."""
        rows, columns = grid
        y, x = torch.meshgrid(*((torch.arange(n, dtype=torch.float64) + 0.5) / n for n in grid), indexing="ij")
        pixels = torch.stack([x.flatten() * self.size[0], y.flatten() * self.size[1], torch.ones(rows * columns)], 1)
        rays = pixels.double() @ torch.linalg.inv(_tensor(self.intrinsic)).T @ _tensor(self.rotation).T
        return rays / rays.norm(dim=1, keepdim=True)

    def sees(self, rays: torch.Tensor) -> torch.Tensor:
        """bool [n]: which rays [n, 3] of the ego frame fall into the image."""
        local = rays @ _tensor(self.rotation) @ _tensor(self.intrinsic).T
        inside = torch.stack([local[:, i] < local[:, 2] * self.size[i] for i in (0, 1)])
        return (local > 0).all(dim=1) & inside.all(dim=0)

    def cosine_to_axis(self, rays: torch.Tensor) -> torch.Tensor:
        """float64 [n]: of the angle between each ray and the optical axis."""
        return rays @ _tensor(self.rotation)[:, 2]


class GeometryFile(BaseModel):
    """Content of ``GEOMETRY_FILE``."""

    cameras: dict[str, ViewGeometry]


def _tensor(matrix: Matrix) -> torch.Tensor:
    return torch.tensor(matrix, dtype=torch.float64)


def duplicates(
    views: Sequence[ViewGeometry], grids: Sequence[tuple[int, int]], times: Sequence[int] | None = None
) -> torch.Tensor:
    """bool [N]: tokens whose ray another image of the same time has nearer to its optical axis.

    Args:
        views, grids: of each image.
        times: of each image, equal where they were taken together; None: all were.
    """
    times = times or [0] * len(views)
    found = []
    for number, (view, grid) in enumerate(zip(views, grids, strict=True)):
        rays = view.rays(grid)
        own, seen = view.cosine_to_axis(rays), torch.zeros(len(rays), dtype=torch.bool)
        for other, time in zip(views, times, strict=True):
            if other is not view and time == times[number]:
                seen |= other.sees(rays) & (other.cosine_to_axis(rays) > own)
        found.append(seen)
    return torch.cat(found)


@dataclass
class RingView(Pruner):
    """Keeps evenly spaced tokens, over all cameras, of those that are no duplicates; duplicates where K is larger.

    Args:
        views: the camera of each image that the VLA reads; times: their steps before t0.
    """

    views: tuple[ViewGeometry, ...] | None = None  # None: not known, ``select`` raises ModelError
    times: tuple[int, ...] | None = None
    name: str = "ring-view"
    _ranks: dict[tuple[tuple[int, int], ...], torch.Tensor] = field(default_factory=dict, repr=False)

    def select(self, context: PruningContext, scores: None, keep: int) -> torch.Tensor:
        if self.views is None:
            raise ModelError(f"pruner ring-view: {GEOMETRY_FILE} is missing in the VLA directory; {HOW}")
        grids = context.visual.image_grids
        if len(grids) != len(self.views):
            raise ValueError(
                f"cameras of {len(self.views)} images, but {len(grids)} are there; past images are missing"
            )
        if grids not in self._ranks:
            order = torch.cat([spread_order(*grid) for grid in grids])
            self._ranks[grids] = torch.sort(order + duplicates(self.views, grids, self.times), stable=True).indices
        return self._ranks[grids][:keep].sort().values


def load_ring_view(vla: Vla) -> RingView:
    """The pruner for a VLA, with the geometry beside it.

    Raises:
        ModelError: the file is missing, no JSON, or lacks a camera.
    """
    path = vla.path / GEOMETRY_FILE
    try:
        text = read_bytes(path)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: missing, and the pruner ring-view needs it; {HOW}") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable ({error}); {HOW}") from error
    cameras = parse_json(TypeAdapter(GeometryFile), text, path, "correct this field").cameras
    for camera in vla.spec.cameras:
        if camera not in cameras:
            raise ModelError(f"{path}: cameras: {camera} is missing; give each camera of the VLA its geometry")
    views = {camera: cameras[camera] for camera in vla.spec.cameras}
    for camera, view in views.items():
        if abs(float(torch.linalg.det(_tensor(view.intrinsic)))) < 1e-9:
            raise ModelError(f"{path}: cameras.{camera}.intrinsic: is singular; give focal lengths above zero")
    images = [(views[vla.spec.cameras[camera]], step) for camera, step in vla.images]
    return RingView(tuple(view for view, _ in images), tuple(step for _, step in images))


def save_geometry(path: Path, cameras: Mapping[str, ViewGeometry]) -> None:
    """Write a geometry file."""
    content = {name: view.model_dump(mode="json") for name, view in cameras.items()}
    path.write_text(json.dumps({"cameras": content}, indent=2) + "\n", encoding="utf-8")
