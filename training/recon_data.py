"""Batches for the reconstruction: cached tokens, the image at the tower's input size, its foreground mask."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from fastdrive_node.types import InputError
from fastdrive_node.vision.preprocess import resize
from fastdrive_training.nuscenes_data import KeyframeDataset, read_image
from fastdrive_training.token_cache import TokenCache


@dataclass(frozen=True)
class ReconBatch:
    """B camera images."""

    names: tuple[str, ...]  # "<sample token>/<camera>" of each, for messages
    tokens: torch.Tensor  # float32 [B, N, D]
    pixels: torch.Tensor  # uint8 [B, 3, H, W]
    foreground: torch.Tensor  # bool [B, 1, H, W]


class ReconBatches:
    """Shuffled camera images of a data set. Which images a step gets depends on the seed and the step alone.

    Args:
        dataset: with masks.
        cache: tokens of the same data set.
        cameras: index in CAMERAS of each camera of the cache.
        image_size: (height, width) that the tower reads.
        batch: camera images a step; at most as many as there are.
        keyframes: use the keyframes at these positions only; None uses all.

    Raises:
        InputError: the data set has no masks.
    """

    def __init__(
        self,
        dataset: KeyframeDataset,
        cache: TokenCache,
        cameras: list[int],
        image_size: tuple[int, int],
        batch: int,
        seed: int,
        keyframes: np.ndarray | None = None,
    ):
        if not dataset.has_masks:
            raise InputError(f"{dataset.root}: no masks folder; the reconstruction needs foreground masks")
        self._dataset, self._cache, self._cameras = dataset, cache, cameras
        self._size, self._seed = image_size, seed
        self._chosen = np.arange(len(dataset)) if keyframes is None else keyframes
        self.images = len(self._chosen) * len(cameras)
        self.batch = min(batch, self.images)

    def steps(self, start: int, stop: int) -> Iterator[ReconBatch]:
        """The batches of steps ``start`` .. ``stop - 1``; the next one is read while the caller works."""
        with ThreadPoolExecutor(1) as reader:
            pending = reader.submit(self.at, start) if start < stop else None
            for step in range(start, stop):
                batch = pending.result()
                if step + 1 < stop:
                    pending = reader.submit(self.at, step + 1)
                yield batch

    def at(self, step: int) -> ReconBatch:
        """The batch of one step. Raises InputError: an image or mask is missing, unreadable or of another size."""
        per_epoch = self.images // self.batch
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng((self._seed, epoch)).permutation(self.images)
        chosen = order[place * self.batch : (place + 1) * self.batch]
        pairs = [divmod(int(index), len(self._cameras)) for index in chosen]
        return self._read([(int(self._chosen[row]), column) for row, column in pairs])

    def _read(self, pairs: list[tuple[int, int]]) -> ReconBatch:
        names, tokens, images, masks = [], [], [], []
        for index, column in pairs:
            keyframe, camera = self._dataset[index], self._cameras[column]
            names.append(f"{keyframe.token}/{keyframe.images[camera].parent.name}")
            tokens.append(self._cache.tokens[index, column])
            images.append(read_image(keyframe.images[camera]))
            mask = self._dataset.load_foreground(keyframe, camera).astype(np.uint8)
            masks.append(cv2.resize(mask, self._size[::-1], interpolation=cv2.INTER_NEAREST))
        return ReconBatch(
            tuple(names),
            torch.from_numpy(np.stack(tokens).astype(np.float32)),
            resize(images, self._size),
            torch.from_numpy(np.stack(masks)).bool().unsqueeze(1),
        )
