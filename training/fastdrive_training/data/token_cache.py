"""Tokens of the frozen vision tower, computed once per dataset and encoder and kept on disk.

``tokens.f16`` is a memory-mapped float16 array [items, cameras, rows * cols, D]. A folder is named by a digest of the
encoder fingerprint, the dataset's identity and the image size, so that nothing stale is ever read. A build that was cut
off goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from fastdrive_node.families.loading import Vla
from fastdrive_node.errors import InputError
from fastdrive_node.types import CAMERAS
from fastdrive_node.families.qwen2_5_vl.tower import TorchVision
from fastdrive_training.data.adapters.base import ImageSource
from fastdrive_training.data.nuscenes.keyframes import Keyframe, read_image

CHUNK = 16  # keyframes encoded at a time
TOKENS, PROGRESS = "tokens.f16", "progress.json"
_LARGEST = np.finfo(np.float16).max


@dataclass(frozen=True)
class TokenCache:
    """A complete cache. The array is memory-mapped and read-only."""

    folder: Path
    tokens: np.ndarray  # float16 [items, cameras, rows * cols, D]


def build_token_cache(source: ImageSource, vla: Vla, folder: str | Path) -> TokenCache:
    """Open the cache of a data set for the VLA's encoder below ``folder``; compute what is missing, with progress.

    Raises InputError: an image is missing or unreadable, the encoder's tokens do not fit float16.
    """
    place = Path(folder) / cache_key(source, vla)
    place.mkdir(parents=True, exist_ok=True)
    shape = (len(source), len(source.cameras), vla.grid[0] * vla.grid[1], vla.width)
    done = _done(place, shape)
    if done < len(source):
        tokens = np.memmap(place / TOKENS, np.float16, "r+" if done else "w+", shape=shape)
        _fill(source, vla, tokens, place / PROGRESS, done)
    return TokenCache(place, np.memmap(place / TOKENS, np.float16, "r", shape=shape))


def cache_key(source: ImageSource, vla: Vla) -> str:
    """Digest of all that the tokens depend on: encoder, its dtype, image size, cameras, items and their files."""
    dtype = str(vla.model.model.visual.dtype)
    words = [vla.encoder_fingerprint, dtype, vla.spec.image_size, source.cameras, source.identity]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]


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


def pixel_encoder(vla: Vla) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function: uint8 pixels [B, 3, H, W] at the tower's image size -> tokens float32 [B, N, D] without gradient."""
    visual = vla.model.model.visual
    vision = TorchVision(visual, vla.spec.image_size, len(vla.spec.cameras))

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return vision.encode_patches(vision.patches(pixels.to(visual.device))).float()

    return encode


def _done(place: Path, shape: tuple[int, ...]) -> int:
    """Items that are complete on disk; 0 where the file is missing or has another size than it must."""
    path = place / TOKENS
    if not path.exists() or path.stat().st_size != int(np.prod(shape)) * np.dtype(np.float16).itemsize:
        return 0
    try:
        return int(json.loads((place / PROGRESS).read_text())["done"])
    except (FileNotFoundError, ValueError, KeyError):
        return 0


def _fill(source: ImageSource, vla: Vla, tokens: np.memmap, progress: Path, done: int) -> None:
    vision = TorchVision(vla.model.model.visual, vla.spec.image_size, len(source.cameras))
    bar = tqdm(total=len(source), initial=done, desc="encoding", unit="keyframe")
    for start, images in _chunks(source, done):
        stop = start + len(images)
        encoded = encode_keyframes(vision, images).float().cpu().numpy()
        if not np.abs(encoded).max() <= _LARGEST:
            raise InputError(f"{vla.path}: the encoder's tokens of {source.names[start]} do not fit float16")
        tokens[start:stop] = encoded
        tokens.flush()
        _write_progress(progress, stop)
        bar.update(len(images))
    bar.close()


def _chunks(source: ImageSource, done: int) -> Iterator[tuple[int, list[list[np.ndarray]]]]:
    """(position of the first item, images by item and camera), read one chunk ahead of the encoder."""

    def load(start: int) -> tuple[int, list[list[np.ndarray]]]:
        items = [source[index] for index in range(start, min(start + CHUNK, len(source)))]
        return start, [[item.load_image(camera) for camera in source.cameras] for item in items]

    with ThreadPoolExecutor(1) as reader:
        starts = list(range(done, len(source), CHUNK))
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
