"""Batches for the reconstruction (tokens, image at the tower's input size, foreground mask), and its token masks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from fastdrive_node.errors import InputError
from fastdrive_node.families.images import resize
from fastdrive_training.data.adapters.base import ImageSource, Item
from fastdrive_training.data.masks import Regions, cell_coverage, size_of
from fastdrive_training.engine.loop import StepBatches
from fastdrive_training.scoring.token_metrics import POSITIVE_COVERAGE


@dataclass(frozen=True)
class ReconBatch:
    """B camera images: a step's batch, or the part of it that is worked on at a time."""

    tokens: torch.Tensor | None  # float32 [B, N, D]; None where the encoder runs in each step
    pixels: torch.Tensor  # uint8 [B, 3, H, W]
    foreground: torch.Tensor  # bool [B, 1, H, W]
    ignore: torch.Tensor  # bool [B, 1, H, W], True where the label is in doubt
    places: tuple[int, ...]  # place of each image in the step's whole batch
    grid: tuple[int, int]  # token rows and columns of each image


@dataclass(frozen=True)
class MaskedImage:
    """One camera image with its mask, at the size that the tower reads."""

    pixels: torch.Tensor  # uint8 [3, H, W]
    regions: Regions  # at that size
    coverage: np.ndarray | None = None  # float32 [N], of the mask at its own size; NaN where it is in doubt


def read_masked_image(
    item: Item, camera: str, size: tuple[int, int], grid: tuple[int, int] | None = None
) -> MaskedImage:
    """Read one image and its mask; with a ``grid`` of tokens, the coverage of each cell too.

    Raises InputError: an image or mask is missing, unreadable or of another size.
    """
    image = item.load_image(camera)
    regions = item.load_regions(camera, size_of(image))
    coverage = None if grid is None else cell_coverage(regions.foreground, *grid, regions.ignore)
    ignore = None if regions.ignore is None else resize_mask(regions.ignore, size)
    resized = Regions(resize_mask(regions.foreground, size), ignore)
    return MaskedImage(resize([image], size)[0], resized, coverage)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool [H, W] -> bool [height, width], nearest pixel."""
    return cv2.resize(mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST).astype(bool)


def require_masks(source: ImageSource) -> None:
    """Raises InputError where the dataset has no masks."""
    if not source.has_masks:
        raise InputError(f"{source.root}: no foreground masks; make some with fastdrive annotate and name their folder")


class ReconBatches(StepBatches):
    """Shuffled camera images of a dataset with their masks, and their tokens where they are cached.

    All images of a step have one size. Where cameras have several, the steps of an epoch are those of each size,
    shuffled.

    Args:
        source: with masks; its cameras are those of the tokens.
        tokens: of the same dataset, as ``build_token_cache`` gives them; None where the encoder runs in each step.
        sizes: (height, width) that the tower reads of each camera's images.
        grids: token rows and columns of each camera's image.
        batch: camera images per step; at most as many as there are of each size.
        items: use the items at these positions only; None uses all.
        parts, own: see StepBatches.

    Raises:
        InputError: the dataset has no masks, or fewer images than parts.
        TrainingError: the batch cannot be split into equal parts.
    """

    def __init__(
        self,
        source: ImageSource,
        tokens: np.ndarray | None,
        sizes: Sequence[tuple[int, int]],
        grids: Sequence[tuple[int, int]],
        batch: int,
        seed: int,
        items: np.ndarray | None = None,
        parts: int = 1,
        own: Sequence[int] = (0,),
    ):
        require_masks(source)
        self._source, self._tokens, self._sizes, self._grids = source, tokens, tuple(sizes), tuple(grids)
        ends = [0, *itertools.accumulate(rows * columns for rows, columns in grids)]
        self._spans = [slice(start, end) for start, end in itertools.pairwise(ends)]  # of a keyframe's tokens
        self._items = np.arange(len(source)) if items is None else items
        places = np.arange(len(self._items) * len(source.cameras)).reshape(len(self._items), -1)
        of_camera = [self._sizes.index(size) for size in self._sizes]
        self._groups = [places[:, np.equal(of_camera, size)].ravel() for size in sorted(set(of_camera))]
        fewest = min(map(len, self._groups))
        super().__init__(fewest, batch, seed, str(source.root), parts, own)

    def indices(self, step: int) -> np.ndarray:
        if len(self._groups) == 1:
            return super().indices(step)
        steps = [len(group) // self.batch for group in self._groups]  # of an epoch
        epoch, place = divmod(step, sum(steps))
        generator = np.random.default_rng((self.seed, epoch))
        order = generator.permutation(np.repeat(np.arange(len(steps)), steps))
        shuffled = [generator.permutation(group) for group in self._groups]
        start = self.batch * int((order[:place] == order[place]).sum())
        return shuffled[order[place]][start : start + self.batch]

    def names(self, step: int) -> list[str]:
        return [self._name(pair) for pair in self._pairs(step)]

    def read(self, step: int) -> list[ReconBatch]:
        return [self._part(self._pairs(step), part) for part in self.own]

    def _name(self, pair: tuple[int, int]) -> str:
        return f"{self._source.names[pair[0]]}/{self._source.cameras[pair[1]]}"

    def _pairs(self, step: int) -> list[tuple[int, int]]:
        """(item, camera) of each image of a step, as positions."""
        pairs = (divmod(int(index), len(self._source.cameras)) for index in self.indices(step))
        return [(int(self._items[row]), camera) for row, camera in pairs]

    def _part(self, pairs: list[tuple[int, int]], part: int) -> ReconBatch:
        places = tuple(range(part, self.batch, self.parts))
        pairs = [pairs[place] for place in places]
        cameras, size = self._source.cameras, self._sizes[pairs[0][1]]
        images = [read_masked_image(self._source[row], cameras[camera], size) for row, camera in pairs]
        tokens = None
        if self._tokens is not None:
            tokens = torch.from_numpy(np.stack([self._cached(*pair) for pair in pairs]).astype(np.float32))
        foreground = np.stack([image.regions.foreground for image in images])
        ignore = np.zeros_like(foreground)
        for row, image in enumerate(images):
            if image.regions.ignore is not None:
                ignore[row] = image.regions.ignore
        return ReconBatch(
            tokens,
            torch.stack([image.pixels for image in images]),
            torch.from_numpy(foreground).unsqueeze(1),
            torch.from_numpy(ignore).unsqueeze(1),
            places,
            self._grids[pairs[0][1]],
        )

    def _cached(self, item: int, camera: int) -> np.ndarray:
        """float16 [N, D]."""
        assert self._tokens is not None
        tokens = self._tokens[item]
        return tokens.reshape(-1, tokens.shape[-1])[self._spans[camera]]


def random_masks(count: int, grid: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Blobs of random size for the decoder to train on, float [count, rows * cols] in 0..1.

    Smooth noise of a random scale is cut at a random quantile, so that single tokens, blocks and half images all occur.
    Every other mask has random levels in place of 0 and 1, so that the decoder learns to paint a token by its level.
    """
    rows, cols = grid
    if not count:
        return torch.zeros(0, rows * cols)
    scale = int(torch.randint(1, 4, (1,), generator=generator))
    coarse = torch.rand(count, 1, max(rows // scale, 1) + 1, max(cols // scale, 1) + 1, generator=generator)
    noise = F.interpolate(coarse, size=grid, mode="bilinear", align_corners=True).flatten(1)
    covered = 0.05 + 0.9 * torch.rand(count, 1, generator=generator)
    rank = noise.argsort(dim=1).argsort(dim=1)
    hard = (rank < covered * rows * cols).float()
    levels = torch.rand(count, 2, generator=generator)
    levels[::2] = torch.tensor([0.0, 1.0])
    return torch.where(hard > 0, levels[:, 1:], levels[:, :1])


def cells_to_pixels(mask: torch.Tensor, grid: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """A token mask [B, N] as a pixel mask float [B, 1, H, W]: each cell's value over its pixels."""
    return F.interpolate(mask.reshape(len(mask), 1, *grid), size=size, mode="nearest")


def oracle_masks(foreground: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """1 where at least half of the token's cell is foreground, float [B, N] of a pixel mask float [B, 1, H, W]."""
    return (F.adaptive_avg_pool2d(foreground, grid).flatten(1) >= POSITIVE_COVERAGE).float()


def matched_random_masks(foreground: torch.Tensor, tokens: int, seeds: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """As many random tokens as an image has foreground: float [B, tokens] of a pixel mask float [B, 1, H, W].

    ``seeds`` has one for each image, so that its mask does not depend on the other images.
    """
    draws = np.stack([np.random.default_rng(seed).random(tokens, np.float32) for seed in seeds])
    covered = foreground.flatten(1).mean(1, keepdim=True)
    return (torch.from_numpy(draws).to(covered) < covered).float()
