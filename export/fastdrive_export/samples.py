"""Frame sets to compare an engine with its reference on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fastdrive_node.errors import UsageError
from fastdrive_node.families import Vla
from fastdrive_node.types import Command, EgoHistory, EgoState

_SPEED_MPS = 6.0


@dataclass(frozen=True)
class Sample:
    """One image of each camera, and what the prompt says of the vehicle."""

    images: list[np.ndarray]  # uint8 RGB [H, W, 3], in the VLA's camera order
    history: EgoHistory
    command: Command


@dataclass(frozen=True)
class Samples:
    """Samples with the name of their origin."""

    origin: str
    samples: list[Sample]


def synthetic_samples(vla: Vla, count: int, seed: int = 0) -> Samples:
    """Images of smooth areas, edges and noise, at the VLA's image size; they need no dataset."""
    random = np.random.default_rng(seed)
    samples = []
    for _ in range(count):
        images = [_image(random, *vla.spec.image_size) for _ in vla.spec.cameras]
        samples.append(Sample(images, _constant_speed(vla), Command.STRAIGHT))
    return Samples(f"synthetic images, seed {seed}", samples)


def _constant_speed(vla: Vla) -> EgoHistory:
    return EgoHistory((EgoState(0, 0.0, 0.0, 0.0, _SPEED_MPS),), vla.spec.history.interval_s)


def _image(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    coarse = Image.fromarray(random.integers(0, 256, (4, 7, 3), dtype=np.uint8))
    image = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    for _ in range(6):
        top, left = random.integers(0, height), random.integers(0, width)
        bottom, right = top + random.integers(8, height // 2), left + random.integers(8, width // 2)
        image[top:bottom, left:right] = random.integers(0, 256, 3)
    return (image + random.integers(-12, 13, image.shape)).clip(0, 255).astype(np.uint8)


def dataset_samples(vla: Vla, root: str | Path, split: str | None, count: int) -> Samples:
    """Items of a dataset of any layout that training reads, evenly spread.

    A dataset without ego motion gets the ego state of the synthetic samples.

    Raises:
        InputError: no dataset there, or not the VLA's cameras.
        UsageError: ``count`` is below 1.
    """
    from fastdrive_training.data.adapters import open_source
    from fastdrive_training.data.sampling import evenly_spaced
    from fastdrive_training.data.token_cache import load_images, require_cameras

    if count < 1:
        raise UsageError(f"--sets: {count}; give 1 or more")
    source = open_source(root, split, own_masks=False, all_splits=True)
    require_cameras(source, vla)
    items = (source[int(place)] for place in evenly_spaced(len(source), count))
    samples = [
        Sample(load_images(item, vla.spec.cameras), item.history or _constant_speed(vla), item.command)
        for item in items
    ]
    return Samples(f"{Path(root).name}, split {split or 'all'}", samples)
