"""Samples of a run as images inside a page: score maps, and both reconstructions beside their targets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from fastdrive_node.visualization.layout import camera_layout, camera_title
from fastdrive_training.data.masks import cell_coverage
from fastdrive_training.reports.document import image_address
from fastdrive_training.reports.pruner_run.samples import HeldOutSamples
from fastdrive_training.scoring.pictures import Scale, heat_overlay
from fastdrive_training.scoring.token_metrics import POSITIVE_COVERAGE

MAX_WIDTH = 448  # px of an image on the page; score maps have just this, for the sake of their lines
MAX_HEIGHT = 4 * MAX_WIDTH
MAX_SAMPLES = 4
HEADS = ("image", "foreground", "rebuilt foreground", "background", "rebuilt background")


@dataclass(frozen=True)
class Tile:
    """One image with its title, caption and alternative text."""

    source: str  # data: address
    alt: str
    caption: str = ""
    title: str = ""


@dataclass(frozen=True)
class CameraRow:
    """The images of one camera, in the order of ``HEADS``."""

    camera: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class SampleTiles:
    """A held-out keyframe. ``maps`` are rows of the rig's layout."""

    name: str
    maps: tuple[tuple[Tile, ...], ...]
    scale: Scale
    above_zero: float  # fractions of the tokens
    foreground: float
    rows: tuple[CameraRow, ...]


def sample_tiles(samples: HeldOutSamples, masks: bool = False) -> list[SampleTiles]:
    """All images of the first samples. The score maps of all keyframes have one scale.

    Args:
        masks: the decoder rebuilds masks, not pixels.
    """
    scale, targets = Scale.of(samples.scores), samples.targets(white=masks)
    return [_one(samples, targets, index, scale) for index in range(min(len(samples.names), MAX_SAMPLES))]


def psnr(rebuilt: np.ndarray, target: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of uint8 images of one shape; infinite where they are equal."""
    error = np.mean((rebuilt.astype(np.float64) - target) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def _one(samples: HeldOutSamples, targets: tuple[np.ndarray, ...], index: int, scale: Scale) -> SampleTiles:
    scores = samples.scores[index]
    rows, cols = scores.shape[1:]
    positive = cell_coverage(samples.foreground[index], rows, cols) >= POSITIVE_COVERAGE
    layout = [[samples.cameras.index(name) for name in names] for names in camera_layout(samples.cameras)]
    return SampleTiles(
        name=samples.names[index],
        maps=tuple(tuple(_map(samples, index, camera, positive[camera], scale) for camera in row) for row in layout),
        scale=scale,
        above_zero=float((scores > 0).mean()),
        foreground=float(positive.mean()),
        rows=tuple(_row(samples, targets, index, camera) for row in layout for camera in row),
    )


def _map(samples: HeldOutSamples, index: int, camera: int, positive: np.ndarray, scale: Scale) -> Tile:
    scores, title = samples.scores[index, camera], camera_title(samples.cameras[camera])
    above = int((scores > 0).sum())
    image = heat_overlay(_to_width(samples.images[index, camera]), scores, scale)
    caption = f"{above} of {scores.size} above zero, {int(positive.sum())} foreground"
    return Tile(_encode(image), f"Score map of the {title} camera: {caption}", caption, title)


def _row(samples: HeldOutSamples, targets: tuple[np.ndarray, ...], index: int, camera: int) -> CameraRow:
    title = camera_title(samples.cameras[camera])
    fore, back = (target[index, camera] for target in targets)
    images = (samples.images[index, camera], fore, samples.fore[index, camera], back, samples.back[index, camera])
    captions = ("", "", _decibel(images[2], fore), "", _decibel(images[4], back))
    tiles = (
        Tile(_encode(_at_most(image)), f"{title}: {head}{', ' if caption else ''}{caption}", caption)
        for image, head, caption in zip(images, HEADS, captions, strict=True)
    )
    return CameraRow(title, tuple(tiles))


def _decibel(rebuilt: np.ndarray, target: np.ndarray) -> str:
    value = psnr(rebuilt, target)
    return "PSNR: equal" if value == float("inf") else f"PSNR {value:.1f} dB"


def _at_most(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return _to_width(image) if width > MAX_WIDTH or height > MAX_HEIGHT else image


def _to_width(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    size = (MAX_WIDTH, min(max(1, round(height * MAX_WIDTH / width)), MAX_HEIGHT))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def _encode(image: np.ndarray) -> str:
    return image_address(image, quality=85, method=4)
