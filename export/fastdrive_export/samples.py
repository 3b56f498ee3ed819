"""Frame sets to compare an engine with its reference on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fastdrive_node.errors import InputError
from fastdrive_node.families.vla import Vla
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
        history = EgoHistory((EgoState(0, 0.0, 0.0, 0.0, _SPEED_MPS),), vla.spec.history.interval_s)
        samples.append(Sample(images, history, Command.STRAIGHT))
    return Samples(f"synthetic images, seed {seed}", samples)


def _image(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    coarse = Image.fromarray(random.integers(0, 256, (4, 7, 3), dtype=np.uint8))
    image = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    for _ in range(6):
        top, left = random.integers(0, height), random.integers(0, width)
        bottom, right = top + random.integers(8, height // 2), left + random.integers(8, width // 2)
        image[top:bottom, left:right] = random.integers(0, 256, 3)
    return (image + random.integers(-12, 13, image.shape)).clip(0, 255).astype(np.uint8)


def dataset_samples(vla: Vla, root: str | Path, split: str | None, count: int) -> Samples:
    """Keyframes of a dataset in the nuScenes schema, evenly spread.

    Raises:
        InputError: no dataset there, or not the VLA's cameras.
        ModuleNotFoundError: nuscenes-devkit is not installed.
    """
    from fastdrive_training.data.nuscenes.keyframes import KeyframeDataset
    from fastdrive_training.data.token_cache import load_images, require_cameras

    if count < 1:
        raise InputError(f"--sets: {count}; give 1 or more")
    dataset = KeyframeDataset(root, split)
    require_cameras(dataset, vla)
    count = min(count, len(dataset))
    keyframes = (dataset[place * len(dataset) // count] for place in range(count))
    samples = [Sample(load_images(each, vla.spec.cameras), each.history, each.command) for each in keyframes]
    return Samples(f"{Path(root).name}, split {split or 'all'}", samples)
