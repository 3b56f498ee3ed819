"""One image of a plan: what the cameras saw, which tokens were kept, and where the vehicle is to go."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from fastdrive_node.types import Command, Plan, Vehicle
from fastdrive_node.visualization.birds_eye import birds_eye
from fastdrive_node.visualization.layout import (
    FAINT,
    GAP,
    SMOOTH,
    TEXT,
    TILE_WIDTH,
    add_label,
    arrange,
    camera_title,
    draw_smooth,
    font,
    resized,
    tile_height,
)
from fastdrive_node.visualization.overlay import KEPT, draw_ribbon, overlay
from fastdrive_node.visualization.projection import NUSCENES_FRONT, CameraModel

TITLE_HEIGHT = 64
FOOT_HEIGHT = 44
MAP_WIDTH = 400
STAGE_COLORS = {
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
    vehicle: Vehicle | None = None,
) -> np.ndarray:
    """
    Args:
        images: uint8 RGB [H, W, 3], one for each of ``cameras``.
        speed_mps: at t0, for the title.
        front_camera: of CAM_FRONT; None for that of nuScenes' vehicles.
        vehicle: None for nuScenes' car.

    Returns:
        uint8 RGB [height, width, 3].
    """
    vehicle = vehicle or Vehicle()
    height = tile_height(images[0])
    tiles = [_tile(plan, image, index, height) for index, image in enumerate(images)]
    if "CAM_FRONT" in cameras:
        front = list(cameras).index("CAM_FRONT")
        camera = (front_camera or NUSCENES_FRONT).scaled(TILE_WIDTH * SMOOTH, height * SMOOTH)
        tiles[front] = draw_smooth(tiles[front], lambda draw: draw_ribbon(draw, plan.waypoints_m, camera, vehicle))
    for index, tile in enumerate(tiles):
        add_label(tile, _label(plan, index, cameras[index]))
    canvas, bottom = arrange(cameras, tiles, TITLE_HEIGHT, FOOT_HEIGHT, right=MAP_WIDTH + GAP)
    size = (MAP_WIDTH, bottom - GAP - TITLE_HEIGHT)
    canvas.paste(birds_eye(plan, cameras, size, vehicle), (canvas.width - MAP_WIDTH - GAP, TITLE_HEIGHT))
    _draw_title(canvas, plan, speed_mps, command)
    _draw_foot(canvas, plan, bottom)
    return np.asarray(canvas)


def _tile(plan: Plan, image: np.ndarray, index: int, height: int) -> Image.Image:
    small = resized(image, height)
    if plan.kept is None or plan.kept.kept == plan.kept.total:
        return Image.fromarray(small)
    return Image.fromarray(overlay(small, plan.kept.masks()[index]))


def _label(plan: Plan, index: int, name: str) -> str:
    if plan.kept is None:
        return camera_title(name)
    kept = plan.kept.masks()[index]
    return f"{camera_title(name)}   {int(kept.sum())}/{kept.size}"


def _draw_title(canvas: Image.Image, plan: Plan, speed_mps: float, command: Command) -> None:
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
        draw.text((x, 14), name, FAINT, font(13))
        draw.text((x, 30), value, TEXT, font(20))
        x += max(draw.textlength(value, font(20)), draw.textlength(name, font(13))) + 36


def _draw_foot(canvas: Image.Image, plan: Plan, top: int) -> None:
    """The stages as parts of one bar, by their time."""
    stages = [(name, plan.stage_ms[name]) for name in STAGE_COLORS if plan.stage_ms.get(name, 0) > 0]
    total = sum(ms for _, ms in stages)
    if not total:
        return
    draw = ImageDraw.Draw(canvas)
    x, width = float(GAP), canvas.width - 2 * GAP
    label_x = x
    for name, ms in stages:
        draw.rectangle((x, top + 2, x + max(width * ms / total - 2, 0), top + 9), fill=STAGE_COLORS[name])
        text = f"{name} {ms:.1f} ms"
        draw.ellipse((label_x, top + 20, label_x + 8, top + 28), fill=STAGE_COLORS[name])
        draw.text((label_x + 14, top + 24), text, FAINT, font(14), anchor="lm")
        label_x += draw.textlength(text, font(14)) + 34
        x += width * ms / total
