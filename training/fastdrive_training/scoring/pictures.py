"""Score maps: a pruner's scores as heat over the images, six cameras in the layout of the rig."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from fastdrive_node.errors import InputError
from fastdrive_node.visualization.layout import (
    FAINT,
    GAP,
    TEXT,
    add_label,
    arrange,
    camera_title,
    font,
    resized,
    save_image,
    tile_height,
)
from fastdrive_training.data.image_sets import ImageSets

COLORMAP = "inferno"  # even in lightness, so that it reads without color vision
HEAT = 0.7  # fraction of the heat in a pixel; the rest is the image
RELIEF = 0.55  # how strongly edges of the image stand out from the heat
TITLE_HEIGHT, FOOT_HEIGHT = 48, 56


@dataclass(frozen=True)
class Scale:
    """The scores that the ends of the color map stand for; low < high."""

    low: float
    high: float

    @classmethod
    def of(cls, scores: np.ndarray) -> Scale:
        """The 1st and 99th percentile of all scores, any shape. Raises InputError where some are no finite numbers."""
        scores = np.asarray(scores)
        if not np.size(scores) or not np.isfinite(scores).all():
            raise InputError("scores: some are no finite numbers; the pruner file is damaged or its training failed")
        low, high = (float(value) for value in np.percentile(scores.astype(np.float64), (1, 99)))
        margin = 1e-6 * max(abs(low), abs(high), 1e-6)
        return cls(low, high) if high - low > margin else cls(low - margin, high + margin)

    def fraction(self, scores: np.ndarray) -> np.ndarray:
        """Scores as positions on the color map, 0..1."""
        return np.clip((np.asarray(scores, np.float64) - self.low) / (self.high - self.low), 0, 1)


def heat_overlay(image: np.ndarray, scores: np.ndarray, scale: Scale) -> np.ndarray:
    """One camera's image under its scores, a cell a token; a white line divides scores above zero from the others.

    Args:
        image: uint8 RGB [H, W, 3].
        scores: float [rows, cols].

    Returns:
        uint8 RGB [H, W, 3].
    """
    height, width = image.shape[:2]
    cells = np.ix_(
        *(np.arange(side) * count // side for side, count in zip((height, width), scores.shape, strict=True))
    )
    heat = 255 * _colors(scale.fraction(scores))[cells]
    grey = Image.fromarray(image).convert("L")
    brightness = np.asarray(grey, np.float64)
    relief = brightness - np.asarray(grey.filter(ImageFilter.GaussianBlur(width / 12)), np.float64)
    mixed = HEAT * heat + ((1 - HEAT) * brightness + RELIEF * relief)[..., None]
    mixed = np.clip(mixed, 0, 255).astype(np.uint8)
    _draw_border(mixed, (scores > 0)[cells])
    return mixed


def draw_score_maps(
    images: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
    cameras: Sequence[str],
    title: str = "",
    scale: Scale | None = None,
) -> np.ndarray:
    """One image of a keyframe's score maps.

    Args:
        images: uint8 RGB [H, W, 3], one for each of ``cameras``; sizes may differ.
        scores: float [rows, cols] of each camera.
        title: the keyframe's name.
        scale: None for the scores' own; give one to compare images.

    Returns:
        uint8 RGB [height, width, 3]; :func:`fastdrive_node.visualization.layout.save_image` writes it.

    Raises:
        InputError: the counts of images, scores and cameras differ, or a score is no finite number.
    """
    if not len(images) == len(scores) == len(cameras):
        raise InputError(f"{len(images)} images and {len(scores)} score maps for {len(cameras)} cameras: must be equal")
    together = np.concatenate([np.ravel(each) for each in scores])
    scale = scale or Scale.of(together)
    height = tile_height(images[0])
    tiles = [_tile(*each, height, scale) for each in zip(images, scores, cameras, strict=True)]
    canvas, bottom = arrange(cameras, tiles, TITLE_HEIGHT, FOOT_HEIGHT)
    _title(canvas, title, together)
    _foot(canvas, bottom, scale)
    return np.asarray(canvas)


def write_score_maps(
    folder: str | Path,
    sets: ImageSets,
    positions: Collection[int],
    scores: Sequence[Sequence[np.ndarray]],
    scale: Scale | None = None,
) -> list[Path]:
    """Draw the score maps of some sets into ``folder``, a PNG each; returns the files.

    Args:
        scores: float [rows, cols] of each position's cameras.
        scale: None for one scale of all these scores, so that the images can be compared.

    Raises:
        InputError: an image or score cannot be used, or a file cannot be written.
    """
    together = np.concatenate([np.ravel(each) for maps in scores for each in maps])
    scale, files = scale or Scale.of(together), []
    read = zip(sets.read(positions), positions, scores, strict=True)
    for (name, images), position, maps in tqdm(read, total=len(positions), desc="drawing", unit="image"):
        file = Path(folder) / f"{int(position):06d}_{file_name(name)}.png"
        save_image(file, draw_score_maps(images, maps, sets.cameras, name, scale))
        files.append(file)
    return files


def file_name(name: str) -> str:
    """A set's name as a part of a file's name, whatever the dataset calls it: letters, digits, - and _; at most 80."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:80]


def color_stops(count: int = 9) -> list[str]:
    """The color map from low to high as ``#rrggbb``."""
    return ["#" + bytes(color).hex() for color in (255 * _colors(np.linspace(0, 1, count))).astype(np.uint8)]


def _colors(fraction: np.ndarray) -> np.ndarray:
    """float [..., 3] in 0..1."""
    return matplotlib.colormaps[COLORMAP](fraction)[..., :3]


def _draw_border(image: np.ndarray, above: np.ndarray) -> None:
    """Draw the border of the bool mask ``above`` [H, W] into ``image`` in place: white on black, readable on any."""
    border = np.zeros(above.shape, bool)
    border[:, 1:] |= above[:, 1:] != above[:, :-1]
    border[1:] |= above[1:] != above[:-1]
    thin = max(1, round(image.shape[1] / 240))
    image[_thicken(border, thin + 1)] = 0
    image[_thicken(border, thin - 1)] = 255


def _thicken(mask: np.ndarray, pixels: int) -> np.ndarray:
    if pixels < 1:
        return mask
    grown = Image.fromarray(mask.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * (pixels // 2) + 1))
    return np.asarray(grown) > 0


def _tile(image: np.ndarray, scores: np.ndarray, name: str, height: int, scale: Scale) -> Image.Image:
    tile = Image.fromarray(heat_overlay(resized(image, height), scores, scale))
    add_label(tile, f"{camera_title(name)}   {int((scores > 0).sum())}/{scores.size} above zero")
    return tile


def _title(canvas: Image.Image, title: str, scores: np.ndarray) -> None:
    draw = ImageDraw.Draw(canvas)
    shown = " ".join(title.split())[:120]
    draw.text((GAP, TITLE_HEIGHT / 2), shown, TEXT, font(20), anchor="lm")
    figures = f"{(scores > 0).mean():.0%} of {scores.size} tokens above zero"
    draw.text((canvas.width - GAP, TITLE_HEIGHT / 2), figures, FAINT, font(16), anchor="rm")


def _foot(canvas: Image.Image, top: int, scale: Scale) -> None:
    """The color map with its ends, and zero where it lies between them."""
    draw = ImageDraw.Draw(canvas)
    left, width, height = GAP, 480, 16
    bar = np.broadcast_to((255 * _colors(np.linspace(0, 1, width))).astype(np.uint8), (height, width, 3))
    canvas.paste(Image.fromarray(np.ascontiguousarray(bar)), (left, top + 6))
    draw.text((left, top + 38), f"{scale.low:.3g}", TEXT, font(14), anchor="lm")
    draw.text((left + width, top + 38), f"{scale.high:.3g}", TEXT, font(14), anchor="rm")
    if scale.low < 0 < scale.high:
        zero = left + width * -scale.low / (scale.high - scale.low)
        draw.line((zero, top + 4, zero, top + 24), (255, 255, 255), 2)
        if left + 60 < zero < left + width - 60:
            draw.text((zero, top + 38), "0", TEXT, font(14), anchor="mm")
    note = "score of each token; the white line divides those above zero (foreground) from the others"
    draw.text((left + width + 24, top + 14), note, FAINT, font(14), anchor="lm")
