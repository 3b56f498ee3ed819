"""Sets of images, one of each camera, out of a data set or a bag, and the scores that a pruner gives them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from fastdrive_node.visualization.layout import save_image
from fastdrive_node.families.loading import Vla
from fastdrive_node.families.qwen2_5_vl.tower import TorchVision
from fastdrive_training.data.adapters import ImageSource
from fastdrive_training.data.masks import cell_coverage
from fastdrive_training.scoring.pictures import Scale, draw_score_maps
from fastdrive_training.scoring.score import score_tokens
from fastdrive_training.data.token_cache import CHUNK, encode_keyframes


class ImageSets(Protocol):
    """Sets of images in time order. ``read`` takes ascending positions and gives (name, uint8 RGB [H, W, 3] of each
    camera); it raises InputError for an image that cannot be read."""

    cameras: tuple[str, ...]

    def __len__(self) -> int: ...

    def read(self, positions: Sequence[int]) -> Iterator[tuple[str, list[np.ndarray]]]: ...


class SourceSets:
    """The items of a data set as ImageSets."""

    def __init__(self, source: ImageSource):
        self.source, self.cameras = source, source.cameras
        self._sizes: dict[int, list[tuple[int, int]]] = {}  # (height, width) of the images of what was read

    def __len__(self) -> int:
        return len(self.source)

    def read(self, positions: Sequence[int]) -> Iterator[tuple[str, list[np.ndarray]]]:
        for index in positions:
            item = self.source[int(index)]
            images = [item.load_image(camera) for camera in self.cameras]
            self._sizes[int(index)] = [image.shape[:2] for image in images]
            yield f"{item.scene} {item.name}", images

    def coverage(self, positions: Sequence[int], grid: tuple[int, int]) -> np.ndarray:
        """float32 [positions, cameras, rows * cols]: foreground share of each token's cell, NaN where it is in doubt.

        Raises InputError: no masks, or one that is missing, damaged or of another size than its image.
        """
        return np.stack([self._coverage(int(index), grid) for index in tqdm(positions, desc="masks", unit="set")])

    def _coverage(self, index: int, grid: tuple[int, int]) -> np.ndarray:
        item = self.source[index]
        sizes = self._sizes.get(index) or [item.load_image(camera).shape[:2] for camera in self.cameras]
        regions = [item.load_regions(camera, size) for camera, size in zip(self.cameras, sizes, strict=True)]
        return np.stack([cell_coverage(each.foreground, *grid, each.ignore) for each in regions])


def score_sets(sets: ImageSets, positions: Sequence[int], vla: Vla, pruner) -> np.ndarray:
    """Scores float32 [positions, cameras, rows, cols], encoded chunk by chunk, with progress. Raises InputError."""
    vision = TorchVision(vla.model.model.visual, vla.spec.image_size, len(sets.cameras))
    read, scores = sets.read(positions), []
    with tqdm(total=len(positions), desc="scoring", unit="set") as bar:
        while images := [images for _, images in islice(read, CHUNK)]:
            tokens = encode_keyframes(vision, images).float().cpu().numpy()
            scores.append(score_tokens(pruner, tokens, vla.grid))
            bar.update(len(images))
    return np.concatenate(scores).reshape(len(positions), len(sets.cameras), *vla.grid)


def write_score_maps(
    folder: str | Path, sets: ImageSets, positions: Sequence[int], scores: np.ndarray, scale: Scale | None = None
) -> list[Path]:
    """Draw the score maps of some sets into ``folder``, a PNG each; returns the files.

    Args:
        scores: float [positions, cameras, rows, cols].
        scale: None for one scale of all these scores, so that the pictures can be compared.

    Raises:
        InputError: an image or score cannot be used, or a file cannot be written.
    """
    scale, files = scale or Scale.of(scores), []
    read = zip(sets.read(positions), positions, scores, strict=True)
    for (name, images), position, maps in tqdm(read, total=len(positions), desc="drawing", unit="picture"):
        file = Path(folder) / f"{int(position):06d}_{file_name(name)}.png"
        save_image(file, draw_score_maps(images, maps, sets.cameras, name, scale))
        files.append(file)
    return files


def file_name(name: str) -> str:
    """A set's name as a part of a file's name, whatever a data set calls it: letters, digits, - and _; at most 80."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:80]
