"""What all images for people share: colors, fonts, and camera tiles in rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastdrive_node.errors import InputError

BACKGROUND = (13, 17, 23)
TEXT = (230, 237, 243)
FAINT = (139, 148, 158)
TILE_WIDTH = 480  # px
GAP = 10
SMOOTH = 3  # lines are drawn this much larger and averaged down
SURROUND = (("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"), ("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"))


def camera_layout(cameras: Sequence[str]) -> list[tuple[str, ...]]:
    """Rows of camera names: the surround layout for nuScenes' six, else a grid of 3 or more columns in their order."""
    if set(cameras) == {name for row in SURROUND for name in row}:
        return list(SURROUND)
    columns = max(3, math.ceil(math.sqrt(len(cameras))))
    return [tuple(cameras[start : start + columns]) for start in range(0, len(cameras), columns)]


def camera_title(name: str) -> str:
    """A camera's name for people: ``CAM_FRONT_LEFT`` is "front left"."""
    return name.removeprefix("CAM_").replace("_", " ").lower()


def tile_height(image: np.ndarray) -> int:
    """px of a tile for images like this one [H, W, 3]; narrow and wide ones are distorted to a readable height."""
    return min(max(round(TILE_WIDTH * image.shape[0] / image.shape[1]), 40), 2 * TILE_WIDTH)


def resized(image: np.ndarray, height: int) -> np.ndarray:
    """uint8 RGB [H, W, 3] -> [height, TILE_WIDTH, 3]."""
    return np.asarray(Image.fromarray(image).resize((TILE_WIDTH, height), Image.Resampling.LANCZOS))


def arrange(
    cameras: Sequence[str], tiles: Sequence[Image.Image], top: int, foot: int, right: int = 0
) -> tuple[Image.Image, int]:
    """A canvas with the tiles in the layout of the cameras, with margins in px for what else is drawn.

    Returns:
        The canvas, and the y where the foot begins.
    """
    rows = camera_layout(cameras)
    height = tiles[0].height
    bottom = top + len(rows) * (height + GAP)
    canvas = Image.new("RGB", (GAP + max(map(len, rows)) * (TILE_WIDTH + GAP) + right, bottom + foot), BACKGROUND)
    for row, names in enumerate(rows):
        for column, name in enumerate(names):
            place = (GAP + column * (TILE_WIDTH + GAP), top + row * (height + GAP))
            canvas.paste(tiles[list(cameras).index(name)], place)
    return canvas, bottom


def add_label(tile: Image.Image, text: str) -> None:
    """Write a camera's label into the tile's upper left corner."""
    draw = ImageDraw.Draw(tile, "RGBA")
    draw.rounded_rectangle((8, 8, 20 + draw.textlength(text, font(15)), 32), 6, fill=(*BACKGROUND, 190))
    draw.text((14, 20), text, TEXT, font(15), anchor="lm")


def draw_smooth(tile: Image.Image, paint: Callable[[ImageDraw.ImageDraw], None]) -> Image.Image:
    """Let ``paint`` draw on a transparent layer ``SMOOTH`` times as large, and lay it over the tile."""
    layer = Image.new("RGBA", (tile.width * SMOOTH, tile.height * SMOOTH))
    paint(ImageDraw.Draw(layer, "RGBA"))
    layer = layer.reduce(SMOOTH)
    return Image.alpha_composite(tile.convert("RGBA"), layer).convert("RGB")


@lru_cache(maxsize=16)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def save_image(path: str | Path, image: np.ndarray) -> None:
    """Write uint8 RGB [H, W, 3]; the suffix gives the format.

    Raises:
        InputError: the suffix is of no known format, or the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the image cannot be written ({error}); use a name like plan.png") from error
