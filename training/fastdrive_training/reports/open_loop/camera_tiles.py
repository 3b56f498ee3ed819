"""The cameras of a sample as small images inside the page: dropped tokens dim, plans on the road."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from fastdrive_node.visualization.layout import SMOOTH, camera_layout, camera_title, draw_smooth
from fastdrive_node.visualization.overlay import MIN_DEPTH_M, on_ground, overlay, path_through
from fastdrive_node.visualization.projection import CameraModel
from fastdrive_training.reports.document import image_address
from fastdrive_training.reports.open_loop.source import DatasetSource, Rig
from fastdrive_training.reports.tiles import Tile

WIDTH, LEAST_WIDTH = 400, 160  # px of an image
FULL_SIZE = 10  # samples; the images of more are smaller, so that the page stays small
QUALITY = 76  # of JPEG
SPARE = 3.0  # sizes of the image beyond which no line is drawn


@dataclass(frozen=True)
class RoadLine:
    """A plan, or the path that was driven, as a line on the road."""

    points_m: np.ndarray  # float64 [points, 2], ego frame
    color: tuple[int, int, int]
    width: float  # px
    dots: bool = False


def tile_width(samples: int) -> int:
    """px of each image where so many samples are shown."""
    return max(LEAST_WIDTH, round(WIDTH * min(1.0, (FULL_SIZE / max(samples, 1)) ** 0.5)))


def camera_tiles(
    source: DatasetSource, rig: Rig, sample: int, kept: np.ndarray | None, road_lines: Sequence[RoadLine], width: int
) -> list[list[Tile]]:
    """Rows of images in the layout of the rig.

    Args:
        kept: int [K], the tokens that were kept; None for all.
        road_lines: the last one lies on top.

    Raises:
        InputError: an image is missing or not readable.
    """
    mask = rig.mask(kept)
    return [
        [_tile(source, sample, name, mask[rig.cameras.index(name)], road_lines, width) for name in row]
        for row in camera_layout(rig.cameras)
    ]


def _tile(
    source: DatasetSource, sample: int, name: str, mask: np.ndarray, road_lines: Sequence[RoadLine], width: int
) -> Tile:
    image, camera = source.image(sample, name)
    size = (width, max(1, round(width * image.shape[0] / image.shape[1])))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    tile = Image.fromarray(small if mask.all() else overlay(small, mask))
    if camera is not None and road_lines:
        scaled = camera.scaled(size[0] * SMOOTH, size[1] * SMOOTH)
        tile = draw_smooth(tile, lambda draw: _draw(draw, road_lines, scaled))
    title, caption = camera_title(name), f"{int(mask.sum())} of {mask.size} tokens"
    address = image_address(np.asarray(tile), "jpeg", quality=QUALITY, optimize=True)
    return Tile(address, f"{title} camera, {caption} kept", caption, title)


def _draw(draw: ImageDraw.ImageDraw, road_lines: Sequence[RoadLine], camera: CameraModel) -> None:
    for line in road_lines:
        path, depths = camera.project(on_ground(path_through(line.points_m)))
        seen = (depths > MIN_DEPTH_M) & (np.abs(path) < SPARE * max(camera.size)).all(axis=1)
        for first in np.flatnonzero(seen[:-1] & seen[1:]):
            ends = [tuple(path[first]), tuple(path[first + 1])]
            draw.line(ends, fill=(*line.color, 235), width=round(line.width * SMOOTH))
        if line.dots:
            _dots(draw, line, camera)


def _dots(draw: ImageDraw.ImageDraw, line: RoadLine, camera: CameraModel) -> None:
    places, depths = camera.project(on_ground(line.points_m))
    for (x, y), depth in zip(places, depths, strict=True):
        if depth > MIN_DEPTH_M:
            radius = SMOOTH * float(np.clip(50 / depth, 2.5, 5))
            box = (x - radius, y - 0.7 * radius, x + radius, y + 0.7 * radius)
            draw.ellipse(box, fill=(255, 255, 255, 240), outline=(*line.color, 255), width=SMOOTH)
