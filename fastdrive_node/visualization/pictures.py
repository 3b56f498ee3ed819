"""Pictures of plans: what the cameras saw, which tokens were kept, and where the vehicle is to go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastdrive_node.errors import InputError
from fastdrive_node.families.qwen2_5_vl.preprocess import resize
from fastdrive_node.types import Command, Plan
from fastdrive_node.visualization.projection import NUSCENES_FRONT, CameraModel

BACKGROUND = (13, 17, 23)
PANEL = (22, 27, 34)
GRID = (44, 52, 62)
TEXT = (230, 237, 243)
FAINT = (139, 148, 158)
KEPT = (72, 207, 173)
_KEPT = np.array(KEPT, np.float32)
_DIM = (0.4 * np.arange(256) + 8).astype(np.uint8)  # brightness of a dropped token's pixels
NEAR, FAR = np.array([255, 196, 61]), np.array([255, 82, 119])  # the trajectory, from now to its end

TILE_WIDTH = 480
GAP = 10
TITLE_HEIGHT = 64
FOOT_HEIGHT = 44
MAP_WIDTH = 400
SMOOTH = 3  # lines are drawn this much larger and averaged down
VEHICLE_M = (4.1, 1.75)  # length, width
REAR_OVERHANG_M = 0.9  # the ego frame's origin is the rear axle
LAYOUT = (("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"), ("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"))
# the part of the horizon that each of nuScenes' cameras sees best: from, to in degrees, counter-clockwise from ahead
VIEWS = {
    "CAM_FRONT": (-28, 28),
    "CAM_FRONT_LEFT": (28, 82),
    "CAM_BACK_LEFT": (82, 138),
    "CAM_BACK": (138, 222),
    "CAM_BACK_RIGHT": (222, 278),
    "CAM_FRONT_RIGHT": (278, 332),
}
STAGE_COLOURS = {
    "load": (110, 118, 129),
    "preprocess": (88, 166, 255),
    "encode": (47, 129, 247),
    "score": KEPT,
    "select": (46, 160, 131),
    "prefill": (210, 153, 34),
    "decode": (219, 109, 40),
    "parse": (163, 113, 247),
}  # of the bar in the foot


def draw_plan(
    plan: Plan,
    images: Sequence[np.ndarray],
    cameras: Sequence[str],
    speed_mps: float,
    command: Command = Command.NONE,
    front_camera: CameraModel | None = None,
) -> np.ndarray:
    """One picture of a plan.

    Args:
        images: uint8 RGB [H, W, 3], one for each of ``cameras``.
        speed_mps: at t0, for the title.
        front_camera: of CAM_FRONT; None for that of nuScenes' vehicles.

    Returns:
        uint8 RGB [height, width, 3].
    """
    rows = camera_layout(cameras)
    tile_height = round(TILE_WIDTH * images[0].shape[0] / images[0].shape[1])
    columns = max(map(len, rows))
    map_left = GAP + columns * (TILE_WIDTH + GAP)
    bottom = TITLE_HEIGHT + len(rows) * (tile_height + GAP)
    canvas = Image.new("RGB", (map_left + MAP_WIDTH + GAP, bottom + FOOT_HEIGHT), BACKGROUND)
    for row, names in enumerate(rows):
        for column, name in enumerate(names):
            index = list(cameras).index(name)
            tile = _tile(plan, images[index], index, name, tile_height, front_camera)
            canvas.paste(tile, (GAP + column * (TILE_WIDTH + GAP), TITLE_HEIGHT + row * (tile_height + GAP)))
    canvas.paste(_map(plan, cameras, bottom - GAP - TITLE_HEIGHT), (map_left, TITLE_HEIGHT))
    _title(canvas, plan, speed_mps, command)
    _foot(canvas, plan, bottom)
    return np.asarray(canvas)


def camera_layout(cameras: Sequence[str]) -> list[tuple[str, ...]]:
    """Rows of camera names: the surround layout for nuScenes' six, else rows of three in the given order."""
    if set(cameras) == {name for row in LAYOUT for name in row}:
        return list(LAYOUT)
    return [tuple(cameras[start : start + 3]) for start in range(0, len(cameras), 3)]


def overlay(image: np.ndarray, kept: np.ndarray, scores: np.ndarray | None = None) -> np.ndarray:
    """One camera's image with its kept tokens: dropped ones grey and dim, kept ones outlined.

    Args:
        image: uint8 RGB [H, W, 3].
        kept: bool [rows, columns].
        scores: float [rows, columns]; where given, the kept tokens are tinted, more with a higher score.

    Returns:
        uint8 RGB [H, W, 3].
    """
    height, width = image.shape[:2]
    cells = tuple(np.arange(side) * count // side for side, count in zip((height, width), kept.shape, strict=True))
    mask = kept[np.ix_(*cells)]
    grey = _DIM[np.asarray(Image.fromarray(image).convert("L"))]
    bright = image
    if scores is not None:
        weight = 0.35 * _relative(scores)[np.ix_(*cells)][..., None]
        bright = (image * (1 - weight) + _KEPT * weight).astype(np.uint8)
    result = np.where(mask[..., None], bright, grey[..., None])
    outline = _outline(mask, max(1, round(width / 300)))
    result[outline] = (0.25 * result[outline] + 0.75 * _KEPT).astype(np.uint8)
    return result


def save_picture(path: str | Path, picture: np.ndarray) -> None:
    """Write a picture; the suffix gives the format.

    Raises:
        InputError: the suffix is of no known format, or the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the picture cannot be written ({error}); use a name like plan.png") from error


def _relative(scores: np.ndarray) -> np.ndarray:
    """Scores scaled to 0..1."""
    low, high = float(scores.min()), float(scores.max())
    return ((scores - low) / max(high - low, 1e-9)).astype(np.float32)


def _outline(mask: np.ndarray, thickness: int) -> np.ndarray:
    """Pixels of the mask within ``thickness`` of its border (the image's own border left out)."""
    inner = mask.copy()
    for axis in (0, 1):
        for shift in (thickness, -thickness):
            moved = np.roll(mask, shift, axis)
            edge = [slice(None)] * 2
            edge[axis] = slice(0, thickness) if shift > 0 else slice(-thickness, None)
            moved[tuple(edge)] = True
            inner &= moved
    return mask & ~inner


def _tile(
    plan: Plan, image: np.ndarray, index: int, name: str, height: int, front_camera: CameraModel | None
) -> Image.Image:
    """One camera's view, with its tokens and, in the front view, the trajectory."""
    small = resize([image], (height, TILE_WIDTH))[0].permute(1, 2, 0).numpy()
    kept = plan.kept.mask()[index] if plan.kept else None
    some_dropped = plan.kept is not None and plan.kept.kept < plan.kept.total
    tile = Image.fromarray(overlay(small, kept) if some_dropped else small)
    if name == "CAM_FRONT":
        camera = (front_camera or NUSCENES_FRONT).scaled(TILE_WIDTH * SMOOTH, height * SMOOTH)
        tile = draw_smooth(tile, lambda draw: _ribbon(draw, plan.waypoints_m, camera))
    draw = ImageDraw.Draw(tile, "RGBA")
    text = name.removeprefix("CAM_").replace("_", " ").lower()
    if kept is not None:
        text += f"   {int(kept.sum())}/{kept.size}"
    font = _font(15)
    draw.rounded_rectangle((8, 8, 20 + draw.textlength(text, font), 32), 6, fill=(*BACKGROUND, 190))
    draw.text((14, 20), text, TEXT, font, anchor="lm")
    return tile


def draw_smooth(tile: Image.Image, paint: Callable[[ImageDraw.ImageDraw], None]) -> Image.Image:
    """Let ``paint`` draw on a larger transparent layer, and lay it over the tile."""
    layer = Image.new("RGBA", (tile.width * SMOOTH, tile.height * SMOOTH))
    paint(ImageDraw.Draw(layer, "RGBA"))
    layer = layer.reduce(SMOOTH)
    return Image.alpha_composite(tile.convert("RGBA"), layer).convert("RGB")


def path_through(waypoints_m: np.ndarray, samples: int = 24) -> np.ndarray:
    """A smooth path [n, 2] from the origin through the waypoints (uniform Catmull-Rom spline)."""
    knots = np.concatenate([[[0.0, 0.0]], waypoints_m])
    padded = np.concatenate([[2 * knots[0] - knots[1]], knots, [2 * knots[-1] - knots[-2]]])
    t = np.arange(samples)[:, None] / samples
    pieces = []
    for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        pieces.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return np.concatenate([*pieces, knots[-1:]])


def _ribbon(draw: ImageDraw.ImageDraw, waypoints_m: np.ndarray, camera: CameraModel) -> None:
    """The path on the ground, as wide as the vehicle, seen by the front camera; a dot at each waypoint."""
    path = path_through(waypoints_m)
    if np.linalg.norm(path[-1]) < 0.5:
        return
    left, right = _edges(path, VEHICLE_M[1] / 2)
    (left_px, depth), (right_px, _) = (camera.project(_on_ground(edge)) for edge in (left, right))
    for i in range(len(path) - 1):
        if min(depth[i], depth[i + 1]) > 0.8:
            colour = _shade(i / (len(path) - 1))
            quad = [left_px[i], left_px[i + 1], right_px[i + 1], right_px[i]]
            draw.polygon([tuple(point) for point in quad], fill=(*colour, 130))
    for edge in (left_px, right_px):
        for i in range(len(path) - 1):
            if min(depth[i], depth[i + 1]) > 0.8:
                draw.line([tuple(edge[i]), tuple(edge[i + 1])], fill=(*_shade(i / len(path)), 255), width=2 * SMOOTH)
    dots, depths = camera.project(_on_ground(waypoints_m))
    for i, ((x, y), away) in enumerate(zip(dots, depths, strict=True)):
        if away > 0.8:
            radius = SMOOTH * float(np.clip(60 / away, 3, 7))
            box = (x - radius, y - 0.6 * radius, x + radius, y + 0.6 * radius)
            draw.ellipse(box, fill=(255, 255, 255, 235), outline=(*_shade(i / 5), 255), width=SMOOTH)


def _edges(path: np.ndarray, half_width: float) -> tuple[np.ndarray, np.ndarray]:
    """The path moved to its left and right."""
    direction = np.gradient(path, axis=0)
    direction /= np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-6)
    normal = np.stack([-direction[:, 1], direction[:, 0]], axis=1) * half_width
    return path + normal, path - normal


def _on_ground(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points, np.zeros((len(points), 1))], axis=1)


def _shade(share: float) -> tuple[int, int, int]:
    """Colour of the trajectory after a share of its time."""
    return tuple(int(value) for value in NEAR + (FAR - NEAR) * np.clip(share, 0, 1))


def _map(plan: Plan, cameras: Sequence[str], height: int) -> Image.Image:
    """The trajectory from above: x up, y to the left, a grid in metres."""
    size = (MAP_WIDTH * SMOOTH, height * SMOOTH)
    panel = Image.new("RGB", size, PANEL)
    ahead = max(20.0, 1.15 * float(plan.waypoints_m[:, 0].max()) + 4)
    scale = size[1] * 0.78 / ahead  # px per metre
    scale = min(scale, size[0] * 0.44 / max(4.0, float(np.abs(plan.waypoints_m[:, 1]).max()) + 1))
    origin = np.array([size[0] / 2, size[1] * 0.84])
    draw = ImageDraw.Draw(panel, "RGBA")

    def px(points: np.ndarray) -> list[tuple[float, float]]:
        points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        return [tuple(origin + scale * np.array([-y, -x])) for x, y in points]

    _map_grid(draw, px, size, origin, scale)
    if plan.kept is not None:
        _map_views(draw, plan, cameras, origin, scale)
    _map_path(draw, plan.waypoints_m, px, scale)
    panel = panel.reduce(SMOOTH)
    _map_labels(ImageDraw.Draw(panel), plan, origin / SMOOTH, scale / SMOOTH, panel.size)
    return panel


def _map_grid(draw, px, size, origin, scale) -> None:
    step = _grid_step(scale / SMOOTH)
    reach = int(max(size) / scale / step) + 1
    for k in range(-reach, reach + 1):
        x, y = origin[0] - k * step * scale, origin[1] - k * step * scale
        draw.line([(x, 0), (x, size[1])], fill=GRID, width=SMOOTH)
        draw.line([(0, y), (size[0], y)], fill=GRID, width=SMOOTH)


def _grid_step(px_per_m: float) -> float:
    """Metres between grid lines: at least 40 px."""
    return next((step for step in (1, 2, 5, 10, 20, 50) if step * px_per_m >= 40), 100)


def _map_views(draw, plan: Plan, cameras: Sequence[str], origin: np.ndarray, scale: float) -> None:
    """A sector for each known camera, stronger the more of its tokens were kept."""
    shares = plan.kept.mask().mean(axis=(1, 2))
    radius = 85 * SMOOTH
    centre = origin - np.array([0, 1.4 * scale])
    for name, share in zip(cameras, shares, strict=True):
        if name in VIEWS:
            first, last = VIEWS[name]
            box = (*(centre - radius), *(centre + radius))
            # Pillow's angles are clockwise from the right
            draw.pieslice(box, -90 - last + 0.7, -90 - first - 0.7, fill=(*KEPT, int(18 + 90 * float(share))))


def _map_path(draw, waypoints_m: np.ndarray, px, scale: float) -> None:
    path = path_through(waypoints_m)
    for i in range(len(path) - 1):
        draw.line(px(path[i : i + 2]), fill=(*_shade(i / len(path)), 255), width=4 * SMOOTH)
    length, width = VEHICLE_M
    front, back = length - REAR_OVERHANG_M, -REAR_OVERHANG_M
    (x0, y0), (x1, y1) = px([[front, width / 2], [back, -width / 2]])
    draw.rounded_rectangle((x0, y0, x1, y1), 0.35 * scale, fill=(*TEXT, 255))
    draw.polygon(px([[front - 0.9, 0.65], [front - 0.9, -0.65], [front - 1.6, -0.6], [front - 1.6, 0.6]]), fill=PANEL)
    for i, (x, y) in enumerate(px(waypoints_m)):
        radius = 5 * SMOOTH
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(box, fill=(255, 255, 255, 255), outline=(*_shade(i / 5), 255), width=2 * SMOOTH)


def _map_labels(draw, plan: Plan, origin: np.ndarray, scale: float, size: tuple[int, int]) -> None:
    step = _grid_step(scale)
    for k in range(-5, 60):
        y = origin[1] - k * step * scale
        if 30 < y < size[1] - 10:
            draw.text((8, y - 2), f"{k * step:g} m", FAINT, _font(12), anchor="lb")
    last = np.full(2, -np.inf)
    for i, (x, y) in enumerate(plan.waypoints_m, start=1):
        place = np.array([origin[0] - y * scale + 14, origin[1] - x * scale])
        if (i * plan.dt_s).is_integer() and np.abs(place - last).max() > 18:
            draw.text(tuple(place), f"{i * plan.dt_s:g} s", TEXT, _font(14), anchor="lm")
            last = place
    draw.text((12, 10), "from above", FAINT, _font(14))


def _title(canvas: Image.Image, plan: Plan, speed_mps: float, command: Command) -> None:
    draw = ImageDraw.Draw(canvas)
    parts = [("t0", f"{plan.t0_ns * 1e-9:.3f} s")] if plan.t0_ns else []
    parts += [("speed", f"{speed_mps:.1f} m/s"), ("command", command.value)]
    if plan.kept is not None:
        parts += [
            ("tokens", f"{plan.kept.kept} of {plan.kept.total}"),
            ("drop", f"{1 - plan.kept.kept / plan.kept.total:.0%}"),
        ]
    if "total" in plan.stage_ms:
        parts.append(("latency", f"{plan.stage_ms['total']:.0f} ms"))
    if plan.mode != "nominal":
        parts.append(("mode", plan.mode))
    x = GAP + 2.0
    for name, value in parts:
        draw.text((x, 14), name, FAINT, _font(13))
        draw.text((x, 30), value, TEXT, _font(20))
        x += max(draw.textlength(value, _font(20)), draw.textlength(name, _font(13))) + 36


def _foot(canvas: Image.Image, plan: Plan, top: int) -> None:
    """The stages as parts of one bar, by their time."""
    stages = [(name, plan.stage_ms[name]) for name in STAGE_COLOURS if plan.stage_ms.get(name, 0) > 0]
    total = sum(ms for _, ms in stages)
    if not total:
        return
    draw = ImageDraw.Draw(canvas)
    x, width = float(GAP), canvas.width - 2 * GAP
    label_x = x
    for name, ms in stages:
        draw.rectangle((x, top + 2, x + max(width * ms / total - 2, 0), top + 9), fill=STAGE_COLOURS[name])
        text = f"{name} {ms:.1f} ms"
        draw.ellipse((label_x, top + 20, label_x + 8, top + 28), fill=STAGE_COLOURS[name])
        draw.text((label_x + 14, top + 24), text, FAINT, _font(14), anchor="lm")
        label_x += draw.textlength(text, _font(14)) + 34
        x += width * ms / total


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
