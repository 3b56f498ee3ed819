"""Tokens of the frozen vision tower, computed once per dataset and encoder and kept on disk.

``tokens.f16`` is a memory-mapped float16 array [keyframes, cameras, rows * cols, D]; ``coverage.f32`` the foreground
share of each cell [keyframes, cameras, rows * cols] where the dataset has masks. A folder is named by a digest of the
encoder fingerprint, the dataset's samples and the image size, so that nothing stale is ever read. A build that was cut
off goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from fastdrive_node.planning.vla import Vla
from fastdrive_node.types import CAMERAS, InputError
from fastdrive_node.vision import TorchVision
from fastdrive_training.nuscenes_data import Keyframe, KeyframeDataset, read_image

CHUNK = 16  # keyframes encoded at a time
TOKENS, COVERAGE, PROGRESS = "tokens.f16", "coverage.f32", "progress.json"
DTYPES = {TOKENS: np.float16, COVERAGE: np.float32}
_LARGEST = np.finfo(np.float16).max


@dataclass(frozen=True)
class TokenCache:
    """A complete cache. The arrays are memory-mapped and read-only."""

    folder: Path
    tokens: np.ndarray  # float16 [keyframes, cameras, rows * cols, D]
    coverage: np.ndarray | None  # float32 [keyframes, cameras, rows * cols]
    grid: tuple[int, int]


def build_token_cache(dataset: KeyframeDataset, vla: Vla, folder: str | Path) -> TokenCache:
    """Open the cache of ``dataset`` for the VLA's encoder below ``folder``; compute what is missing, with progress.

    Raises InputError: an image or mask is missing or unreadable, the encoder's tokens do not fit float16.
    """
    place = Path(folder) / cache_key(dataset, vla)
    place.mkdir(parents=True, exist_ok=True)
    shape = (len(dataset), len(vla.spec.cameras), vla.grid[0] * vla.grid[1], vla.width)
    shapes = {TOKENS: shape, COVERAGE: shape[:3]} if dataset.has_masks else {TOKENS: shape}
    done = _done(place, shapes)
    if done < len(dataset):
        mode = "r+" if done else "w+"
        _fill(dataset, vla, {name: _map(place, name, shapes[name], mode) for name in shapes}, place / PROGRESS, done)
    arrays = {name: _map(place, name, shapes[name], "r") for name in shapes}
    return TokenCache(place, arrays[TOKENS], arrays.get(COVERAGE), vla.grid)


def cache_key(dataset: KeyframeDataset, vla: Vla) -> str:
    """Digest of all that the tokens depend on: encoder, cameras, image size, samples and when they were written."""
    digest = hashlib.sha256(vla.encoder_fingerprint.encode())
    digest.update(json.dumps([vla.spec.cameras, vla.spec.image_size, dataset.tokens]).encode())
    stat = (dataset.root / dataset.version / "sample_data.json").stat()
    digest.update(f"{dataset.root.resolve()}|{stat.st_size}|{stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def camera_order(vla: Vla) -> list[int]:
    """Index in CAMERAS of each camera of the VLA. Raises InputError where it has one that nuScenes has not."""
    unknown = [camera for camera in vla.spec.cameras if camera not in CAMERAS]
    if unknown:
        raise InputError(f"{vla.path / 'vla.json'}: camera {unknown[0]} is none of nuScenes' ({', '.join(CAMERAS)})")
    return [CAMERAS.index(camera) for camera in vla.spec.cameras]


def encode_keyframes(vision: TorchVision, images: list[list[np.ndarray]]) -> torch.Tensor:
    """Tokens float [keyframes, cameras, rows * cols, D] of the images of several keyframes, without gradient."""
    with torch.inference_mode():
        flat = vision.encode([image for keyframe in images for image in keyframe])
    return flat.unflatten(0, (len(images), -1))


def _map(place: Path, name: str, shape: tuple[int, ...], mode: str) -> np.memmap:
    return np.memmap(place / name, DTYPES[name], mode, shape=shape)


def _done(place: Path, shapes: dict[str, tuple[int, ...]]) -> int:
    """Keyframes that are complete on disk; 0 where a file is missing or has another size than it must."""
    for name, shape in shapes.items():
        path, size = place / name, int(np.prod(shape)) * np.dtype(DTYPES[name]).itemsize
        if not path.exists() or path.stat().st_size != size:
            return 0
    try:
        return int(json.loads((place / PROGRESS).read_text())["done"])
    except (FileNotFoundError, ValueError, KeyError):
        return 0


def _fill(dataset: KeyframeDataset, vla: Vla, arrays: dict[str, np.memmap], progress: Path, done: int) -> None:
    vision = TorchVision(vla.model.model.visual, vla.spec.image_size, len(vla.spec.cameras))
    bar = tqdm(total=len(dataset), initial=done, desc="encoding", unit="keyframe")
    for start, stop, images, coverage in _chunks(dataset, vla, done):
        tokens = encode_keyframes(vision, images).float().cpu().numpy()
        if not np.abs(tokens).max() <= _LARGEST:
            raise InputError(f"{vla.path}: the encoder's tokens of sample {dataset.tokens[start]} do not fit float16")
        arrays[TOKENS][start:stop] = tokens
        if coverage is not None:
            arrays[COVERAGE][start:stop] = coverage
        for array in arrays.values():
            array.flush()
        _write_progress(progress, stop)
        bar.update(stop - start)
    bar.close()


def _chunks(dataset: KeyframeDataset, vla: Vla, done: int) -> Iterator[tuple]:
    """Chunks of decoded images and coverage, read one chunk ahead of the encoder."""
    order = camera_order(vla)

    def load(start: int) -> tuple:
        stop = min(start + CHUNK, len(dataset))
        keyframes = [dataset[index] for index in range(start, stop)]
        images = [vla_images(keyframe, order) for keyframe in keyframes]
        coverage = None
        if dataset.has_masks:
            coverage = np.stack([dataset.coverage(keyframe, vla.grid)[order] for keyframe in keyframes])
        return start, stop, images, coverage

    with ThreadPoolExecutor(1) as reader:
        starts = list(range(done, len(dataset), CHUNK))
        pending = reader.submit(load, starts[0])
        for following in [*starts[1:], None]:
            chunk = pending.result()
            if following is not None:
                pending = reader.submit(load, following)
            yield chunk


def vla_images(keyframe: Keyframe, order: list[int]) -> list[np.ndarray]:
    """The decoded images of the cameras ``order`` (indices in CAMERAS), uint8 RGB [H, W, 3] each. Raises InputError."""
    return [read_image(keyframe.images[camera]) for camera in order]


def _write_progress(path: Path, done: int) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"done": done}))
    os.replace(part, path)
