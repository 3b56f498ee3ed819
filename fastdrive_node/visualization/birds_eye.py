"""A plan from above: x up, y to the left, a grid in metres, and how many tokens each camera kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from fastdrive_node.types import KeptTokens, Plan, Vehicle
from fastdrive_node.visualization.layout import FAINT, SMOOTH, TEXT, font
from fastdrive_node.visualization.overlay import KEPT, path_through, time_color

PANEL = (22, 27, 34)
GRID = (44, 52, 62)
# the part of the horizon that each of nuScenes' cameras sees best: from, to in degrees, counter-clockwise from ahead
VIEWS = {
    "CAM_FRONT": (-28, 28),
    "CAM_FRONT_LEFT": (28, 82),
    "CAM_BACK_LEFT": (82, 138),
    "CAM_BACK": (138, 222),
    "CAM_BACK_RIGHT": (222, 278),
    "CAM_FRONT_RIGHT": (278, 332),
}
ToPixels = Callable[[ArrayLike], list[tuple[float, float]]]  # of points in metres, float [n, 2]


def birds_eye(plan: Plan, cameras: Sequence[str], size: tuple[int, int], vehicle: Vehicle) -> Image.Image:
    """The trajectory in a panel of ``size`` (width, height) px."""
    large = (size[0] * SMOOTH, size[1] * SMOOTH)
    panel = Image.new("RGB", large, PANEL)
    ahead = max(20.0, 1.15 * float(plan.waypoints_m[:, 0].max()) + 4)
    scale = large[1] * 0.78 / ahead  # px per metre
    scale = min(scale, large[0] * 0.44 / max(4.0, float(np.abs(plan.waypoints_m[:, 1]).max()) + 1))
    origin = np.array([large[0] / 2, large[1] * 0.84])
    draw = ImageDraw.Draw(panel, "RGBA")

    def px(points: ArrayLike) -> list[tuple[float, float]]:
        points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        return [tuple(origin + scale * np.array([-y, -x])) for x, y in points]

    _draw_grid(draw, large, origin, scale)
    if plan.kept is not None:
        _draw_views(draw, plan.kept, cameras, origin, scale)
    _draw_path(draw, plan.waypoints_m, px)
    _draw_vehicle(draw, vehicle, px, scale)
    _draw_waypoints(draw, plan.waypoints_m, px)
    panel = panel.reduce(SMOOTH)
    _draw_labels(ImageDraw.Draw(panel), plan, origin / SMOOTH, scale / SMOOTH, panel.size)
    return panel


def _draw_grid(draw: ImageDraw.ImageDraw, size: tuple[int, int], origin: np.ndarray, scale: float) -> None:
    step = _grid_step(scale / SMOOTH)
    reach = int(max(size) / scale / step) + 1
    for k in range(-reach, reach + 1):
        x, y = origin[0] - k * step * scale, origin[1] - k * step * scale
        draw.line([(x, 0), (x, size[1])], fill=GRID, width=SMOOTH)
        draw.line([(0, y), (size[0], y)], fill=GRID, width=SMOOTH)


def _grid_step(px_per_m: float) -> float:
    """Metres between grid lines: at least 40 px."""
    return next((step for step in (1, 2, 5, 10, 20, 50) if step * px_per_m >= 40), 100)


def _draw_views(
    draw: ImageDraw.ImageDraw, kept: KeptTokens, cameras: Sequence[str], origin: np.ndarray, scale: float
) -> None:
    """A sector for each camera of nuScenes, stronger the more of its tokens were kept."""
    fractions = [mask.mean() for mask in kept.masks()]
    radius = 85 * SMOOTH
    center = origin - np.array([0, 1.4 * scale])
    for name, fraction in zip(cameras, fractions, strict=True):
        if name in VIEWS:
            first, last = VIEWS[name]
            box = (*(center - radius), *(center + radius))
            # Pillow's angles are clockwise from the right
            draw.pieslice(box, -90 - last + 0.7, -90 - first - 0.7, fill=(*KEPT, int(18 + 90 * float(fraction))))


def _draw_path(draw: ImageDraw.ImageDraw, waypoints_m: np.ndarray, px: ToPixels) -> None:
    path = path_through(waypoints_m)
    for i in range(len(path) - 1):
        draw.line(px(path[i : i + 2]), fill=(*time_color(i / len(path)), 255), width=4 * SMOOTH)


def _draw_vehicle(draw: ImageDraw.ImageDraw, vehicle: Vehicle, px: ToPixels, scale: float) -> None:
    """Its outline with the windscreen."""
    back, half = -vehicle.rear_overhang_m, vehicle.width_m / 2
    front = back + vehicle.length_m
    (x0, y0), (x1, y1) = px([[front, half], [back, -half]])
    draw.rounded_rectangle((x0, y0, x1, y1), 0.35 * scale, fill=(*TEXT, 255))
    top, bottom = front - 0.22 * vehicle.length_m, front - 0.39 * vehicle.length_m
    wide, narrow = 0.74 * half, 0.68 * half
    draw.polygon(px([[top, wide], [top, -wide], [bottom, -narrow], [bottom, narrow]]), fill=PANEL)


def _draw_waypoints(draw: ImageDraw.ImageDraw, waypoints_m: np.ndarray, px: ToPixels) -> None:
    for i, (x, y) in enumerate(px(waypoints_m)):
        radius = 5 * SMOOTH
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(box, fill=(255, 255, 255, 255), outline=(*time_color(i / 5), 255), width=2 * SMOOTH)


def _draw_labels(
    draw: ImageDraw.ImageDraw, plan: Plan, origin: np.ndarray, scale: float, size: tuple[int, int]
) -> None:
    step = _grid_step(scale)
    for k in range(-5, 60):
        y = origin[1] - k * step * scale
        if 30 < y < size[1] - 10:
            draw.text((8, y - 2), f"{k * step:g} m", FAINT, font(12), anchor="lb")
    last = np.full(2, -np.inf)
    for i, (x, y) in enumerate(plan.waypoints_m, start=1):
        place = np.array([origin[0] - y * scale + 14, origin[1] - x * scale])
        if (i * plan.dt_s).is_integer() and np.abs(place - last).max() > 18:
            draw.text(tuple(place), f"{i * plan.dt_s:g} s", TEXT, font(14), anchor="lm")
            last = place
    draw.text((12, 10), "from above", FAINT, font(14))
