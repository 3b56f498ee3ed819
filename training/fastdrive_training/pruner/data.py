"""Batches for the reconstruction: cached tokens, the image at the tower's input size, its foreground mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from fastdrive_node.errors import InputError, TrainingError
from fastdrive_node.families.qwen2_5_vl.preprocess import resize
from fastdrive_training.data.adapters.base import ImageSource, Item
from fastdrive_training.data.masks import Regions, cell_coverage


@dataclass(frozen=True)
class ReconBatch:
    """B camera images: a step's batch, or the part of it that is worked on at a time."""

    names: tuple[str, ...]  # "<item>/<camera>" of each, for messages
    tokens: torch.Tensor | None  # float32 [B, N, D]; None where the encoder runs on the fly
    pixels: torch.Tensor  # uint8 [B, 3, H, W]
    foreground: torch.Tensor  # bool [B, 1, H, W]
    ignore: torch.Tensor  # bool [B, 1, H, W], True where the label is in doubt
    places: tuple[int, ...]  # place of each image in the step's whole batch


@dataclass(frozen=True)
class Picture:
    """One camera image with its mask, at the size that the tower reads."""

    pixels: torch.Tensor  # uint8 [3, H, W]
    regions: Regions  # at that size
    coverage: np.ndarray | None = None  # float32 [N], of the mask at its own size; NaN where it is in doubt


def read_picture(item: Item, camera: str, size: tuple[int, int], grid: tuple[int, int] | None = None) -> Picture:
    """Read one image and its mask; with a ``grid`` of tokens, the coverage of each cell too.

    Raises InputError: an image or mask is missing, unreadable or of another size.
    """
    image = item.load_image(camera)
    regions = item.load_regions(camera, image.shape[:2])
    coverage = None if grid is None else cell_coverage(regions.foreground, *grid, regions.ignore)
    ignore = None if regions.ignore is None else resize_mask(regions.ignore, size)
    resized = Regions(resize_mask(regions.foreground, size), ignore)
    return Picture(resize([image], size)[0], resized, coverage)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool [H, W] -> bool [height, width], nearest pixel."""
    return cv2.resize(mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST).astype(bool)


def require_masks(source: ImageSource) -> None:
    """Raises InputError where the data set has no masks."""
    if not source.has_masks:
        raise InputError(
            f"{source.root}: no foreground masks; make some with fastdrive annotate, and name their folder"
        )


class ReconBatches:
    """Shuffled camera images of a data set. Which images a step gets depends on the seed and the step alone.

    A step's batch comes in ``parts`` of equal size (processes times accumulation): part p has every ``parts``-th image
    from place p on, so that the whole is the same however it is split.

    Args:
        source: with masks; its cameras are those of the tokens.
        tokens: of the same data set, [items, cameras, N, D]; None where the encoder runs on the fly.
        image_size: (height, width) that the tower reads.
        batch: camera images a step; at most as many as there are.
        items: use the items at these positions only; None uses all.
        workers: threads that read images.

    Raises:
        InputError: the data set has no masks, or fewer images than parts.
        TrainingError: the batch cannot be split into equal parts.
    """

    def __init__(
        self,
        source: ImageSource,
        tokens: np.ndarray | None,
        image_size: tuple[int, int],
        batch: int,
        seed: int,
        items: np.ndarray | None = None,
        parts: int = 1,
        workers: int = 1,
    ):
        require_masks(source)
        if batch % parts:
            raise TrainingError(
                f"schedule.batch: {batch} images cannot be split into {parts} equal parts (processes x "
                "schedule.accumulate); use a multiple"
            )
        self._source, self._tokens = source, tokens
        self._size, self._seed, self._workers = image_size, seed, workers
        self._chosen = np.arange(len(source)) if items is None else items
        self.images = len(self._chosen) * len(source.cameras)
        self.parts = parts
        self.batch = min(batch, self.images // parts * parts)
        if not self.batch:
            raise InputError(f"{source.root}: {self.images} images are too few for {parts} parts of a batch")

    def steps(self, start: int, stop: int, parts: Sequence[int] = (0,)) -> Iterator[list[ReconBatch]]:
        """The given parts of steps ``start`` .. ``stop - 1``; the next step is read while the caller works."""
        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(self._workers) as readers:

            def read(step: int) -> list[ReconBatch]:
                return [self._at(step, part, readers) for part in parts]

            pending = ahead.submit(read, start) if start < stop else None
            for step in range(start, stop):
                batches = pending.result()
                if step + 1 < stop:
                    pending = ahead.submit(read, step + 1)
                yield batches

    def at(self, step: int, part: int = 0) -> ReconBatch:
        """One part of a step's batch. Raises InputError: an image or mask is missing, unreadable or of another size."""
        with ThreadPoolExecutor(self._workers) as readers:
            return self._at(step, part, readers)

    def names(self, step: int) -> list[str]:
        """The names of a step's whole batch, in order; nothing is read."""
        return [self._name(pair) for pair in self._pairs(step)]

    def _name(self, pair: tuple[int, int]) -> str:
        return f"{self._source.names[pair[0]]}/{self._source.cameras[pair[1]]}"

    def _pairs(self, step: int) -> list[tuple[int, int]]:
        """(item, camera) of each image of a step, as positions."""
        epoch, place = divmod(step, self.images // self.batch)
        order = np.random.default_rng((self._seed, epoch)).permutation(self.images)
        chosen = order[place * self.batch : (place + 1) * self.batch]
        pairs = (divmod(int(index), len(self._source.cameras)) for index in chosen)
        return [(int(self._chosen[row]), column) for row, column in pairs]

    def _at(self, step: int, part: int, readers: ThreadPoolExecutor) -> ReconBatch:
        pairs = self._pairs(step)[part :: self.parts]
        pictures = list(readers.map(self._read, pairs))
        tokens = None
        if self._tokens is not None:
            tokens = torch.from_numpy(np.stack([self._tokens[pair] for pair in pairs]).astype(np.float32))
        foreground = np.stack([picture.regions.foreground for picture in pictures])
        ignore = np.zeros_like(foreground)
        for row, picture in enumerate(pictures):
            if picture.regions.ignore is not None:
                ignore[row] = picture.regions.ignore
        return ReconBatch(
            tuple(self._name(pair) for pair in pairs),
            tokens,
            torch.stack([picture.pixels for picture in pictures]),
            torch.from_numpy(foreground).unsqueeze(1),
            torch.from_numpy(ignore).unsqueeze(1),
            tuple(range(part, self.batch, self.parts)),
        )

    def _read(self, pair: tuple[int, int]) -> Picture:
        return read_picture(self._source[pair[0]], self._source.cameras[pair[1]], self._size)
