"""Plans from above, as SVG that follows the page's light or dark mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from markupsafe import Markup, escape

from fastdrive_node.visualization.overlay import path_through
from fastdrive_training.evaluation.metrics.drivable import boundary_lines
from fastdrive_training.evaluation.metrics.footprint import corners, ego_boxes, path_headings
from fastdrive_training.evaluation.metrics.judge import Surroundings
from fastdrive_training.reports.charts import printable

ASPECT = 1.3  # height over width
BEHIND_M, AHEAD_M, BESIDE_M = 5.0, 5.0, 4.0  # shown beyond what the plans reach
LEAST_M = 24.0  # shown along the road
NEAR_M = 0.15  # edges of the road are drawn to within this
ROAD = "fill:none;stroke:var(--faint);stroke-width:1.5;opacity:.6"
OBJECT = "fill:var(--faint);fill-opacity:.12;stroke:var(--faint);stroke-width:1;stroke-opacity:.5"
HIT = "fill:var(--bad);fill-opacity:.2;stroke:var(--bad);stroke-width:2"
VEHICLE = "fill:var(--ink);fill-opacity:.25;stroke:var(--ink);stroke-width:1.5"


@dataclass(frozen=True)
class Path:
    """A path to draw: a plan, or the path that was driven."""

    name: str
    points_m: np.ndarray  # float64 [points, 2], ego frame of t0
    color: str  # CSS
    width: float = 4.0
    dashes: str = ""  # of SVG
    dots: bool = False  # at each point
    hits: tuple[int, ...] = ()  # points at which the vehicle's box is drawn as a collision


def birds_eye(name: str, title: str, paths: Sequence[Path], around: Surroundings | None = None) -> Markup:
    """Paths from above: forward is up, left is left.

    Args:
        name: makes the ids unique; a letter, then letters, digits, -.
        title: for screen readers; the names of the paths are added.
        around: objects at all steps and the edges of the drivable area; None where they are not known.
    """
    view = _View.around([path.points_m for path in paths])
    parts = [*_grid(view), *_surroundings(view, around)]
    parts.append(_polygon(view, corners(ego_boxes(np.zeros((1, 2)), np.zeros(1), _MIDDLE_M))[0], VEHICLE))
    parts += [mark for path in paths for mark in _path(view, path)]
    described = f"From above: {', '.join(path.name for path in paths)}."
    return Markup(
        '<svg class="above" role="img" viewBox="0 0 {width:.0f} {height:.0f}" '
        'aria-labelledby="{name}-title {name}-desc">'
        '<title id="{name}-title">{title}</title><desc id="{name}-desc">{described}</desc>{content}</svg>'
    ).format(
        width=view.width,
        height=view.height,
        name=name,
        title=printable(title),
        described=printable(described),
        content=Markup("".join(parts)),
    )


_MIDDLE_M = 1.486  # of the vehicle's box ahead of the ego frame's origin


@dataclass(frozen=True)
class _View:
    """Which part of the ego frame is shown: x from ``low`` to ``high``, y from ``right`` to ``left``."""

    low: float
    high: float
    right: float
    left: float

    @classmethod
    def around(cls, paths: Sequence[np.ndarray]) -> _View:
        """All points, some metres around, in the image's shape."""
        points = np.concatenate([np.zeros((1, 2)), *paths])
        low, high = points[:, 0].min() - BEHIND_M, points[:, 0].max() + AHEAD_M
        high = max(high, low + LEAST_M)
        right, left = points[:, 1].min() - BESIDE_M, points[:, 1].max() + BESIDE_M
        if (high - low) < ASPECT * (left - right):
            high = low + ASPECT * (left - right)
        else:
            spare = (high - low) / ASPECT - (left - right)
            right, left = right - spare / 2, left + spare / 2
        return cls(float(low), float(high), float(right), float(left))

    @property
    def scale(self) -> float:
        """Units of the image a metre, so that all images have strokes of one width."""
        return 400 / (self.left - self.right)

    @property
    def width(self) -> float:
        return self.scale * (self.left - self.right)

    @property
    def height(self) -> float:
        return self.scale * (self.high - self.low)

    def place(self, points: np.ndarray) -> np.ndarray:
        """Ego points [n, 2] in the image."""
        points = np.asarray(points, np.float64).reshape(-1, 2)
        return self.scale * np.stack([self.left - points[:, 1], self.high - points[:, 0]], axis=1)

    def text(self, points: np.ndarray) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.place(points))


def _grid(view: _View) -> list[str]:
    step = next(step for step in (2, 5, 10, 20, 50, 100, 1e9) if step * view.scale >= 70)
    lines = []
    for x in np.arange(np.ceil(view.low / step), view.high / step) * step + 0.0:  # no negative zero
        y = view.scale * (view.high - x)
        lines.append(f'<line x1="0" y1="{y:.1f}" x2="{view.width:.0f}" y2="{y:.1f}" stroke="var(--grid)"/>')
        if y > 30:
            lines.append(f'<text x="5" y="{y - 4:.1f}" font-size="18" fill="var(--faint)">{x:g} m</text>')
    for y in np.arange(np.ceil(view.right / step), view.left / step) * step:
        x = view.scale * (view.left - y)
        lines.append(f'<line x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{view.height:.0f}" stroke="var(--grid)"/>')
    return lines


def _surroundings(view: _View, around: Surroundings | None) -> list[str]:
    if around is None:
        return []
    parts = []
    if around.frame is not None and around.area is not None:
        for line in boundary_lines(around.frame, around.area):
            coarse = cv2.approxPolyDP(line[:, None].astype(np.float32), NEAR_M, closed=False)[:, 0]
            parts.append(f'<polyline points="{view.text(coarse)}" style="{ROAD}"/>')
    for boxes in around.boxes or ():
        parts += [_polygon(view, one, OBJECT) for one in corners(boxes) if _seen(view, one)]
    return parts


def _seen(view: _View, points: np.ndarray) -> bool:
    x, y = view.place(points).T
    return bool(((x > 0) & (x < view.width) & (y > 0) & (y < view.height)).any())


def _polygon(view: _View, points: np.ndarray, style: str) -> str:
    return f'<polygon points="{view.text(points)}" style="{style}"/>'


def _path(view: _View, path: Path) -> list[str]:
    boxes = corners(ego_boxes(path.points_m, path_headings(path.points_m)))
    parts = [_polygon(view, boxes[step], HIT) for step in path.hits]
    style = f"fill:none;stroke:{path.color};stroke-width:{path.width:g};stroke-linecap:round;stroke-linejoin:round"
    dashes = f' stroke-dasharray="{path.dashes}"' if path.dashes else ""
    name = escape(printable(path.name))
    way = view.text(path_through(path.points_m, 8))
    parts.append(f'<polyline points="{way}" style="{style}"{dashes}><title>{name}</title></polyline>')
    if path.dots:
        radius = path.width + 1
        dot = f'r="{radius:g}" fill="var(--card)" stroke="{path.color}" stroke-width="{path.width / 2:g}"'
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" {dot}/>' for x, y in view.place(path.points_m)]
    return parts
