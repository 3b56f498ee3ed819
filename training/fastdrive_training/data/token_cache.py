"""What the frozen vision tower gives for each item of a dataset, computed once and kept on disk.

Two forms, both in folders that :func:`cache_key` names, so that nothing stale is ever read:

- :func:`build_token_cache`: float16 tokens of all items in one memory-mapped array, for training. A build that was cut
  off continues where it stopped.
- :class:`FeatureStore`: tokens in the VLA's own precision, and on request the attention that each receives, a file an
  item, for evaluation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from fastdrive_node.cluster import Cluster, map_items
from fastdrive_node.errors import InputError
from fastdrive_node.families import VisualTokens, Vla
from fastdrive_node.files import write_atomically
from fastdrive_training.data.adapters.base import ImageSource, Item, dataset_identity
from fastdrive_training.data.sampling import read_ahead

CHUNK = 16  # items encoded at a time
CHUNKS_AT_ONCE = 4  # that a worker of a cluster gets
TOKENS, PROGRESS = "tokens.f16", "progress.json"
_LAYER = "layer_features."
_LARGEST = np.finfo(np.float16).max


def build_token_cache(
    source: ImageSource,
    vla: Vla,
    folder: str | Path,
    cluster: Cluster | None = None,
    load_encoder: Callable[[], Vla] | None = None,
) -> np.memmap:
    """Open the cache of a dataset for the VLA's encoder below ``folder``; compute what is missing, with progress.

    Args:
        cluster: whose workers encode, each with the VLA of its own that ``load_encoder`` gives; None: this process,
            with ``vla``.

    Returns float16 [items, cameras, rows * cols, D], memory-mapped and read-only; where image sizes differ,
    [items, 1, N, D] with the tokens of camera after camera.
    Raises InputError: an image is missing or unreadable, the encoder's tokens do not fit float16.
    """
    folder = Path(folder) / cache_key(source, vla, source.cameras)
    folder.mkdir(parents=True, exist_ok=True)
    shape = (len(source), *token_shape(vla.grids_of(source.cameras)), vla.width)
    done = _done(folder, shape)
    if done < len(source):
        tokens = np.memmap(folder / TOKENS, np.float16, "r+" if done else "w+", shape=shape)
        make = partial(EncodingWorker, source, (cluster and load_encoder) or (lambda: vla))
        _fill(source, tokens, folder / PROGRESS, done, make, cluster)
    return np.memmap(folder / TOKENS, np.float16, "r", shape=shape)


def cache_key(source: ImageSource, vla: Vla, cameras: Sequence[str]) -> str:
    """Digest of all that tokens depend on: encoder, its precision, image size, cameras, items and their files."""
    parts = [vla.encoder_fingerprint, str(vla.dtype), vla.spec.image_size, list(cameras), dataset_identity(source)]
    if vla.spec.image_sizes:
        parts.append(vla.spec.sizes_of(cameras))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def require_cameras(source: ImageSource, vla: Vla) -> None:
    """Raises InputError where the dataset lacks a camera of the VLA."""
    absent = [camera for camera in vla.spec.cameras if camera not in source.cameras]
    if absent:
        raise InputError(
            f"{vla.path / 'vla.json'}: camera {absent[0]} is none of the dataset's ({', '.join(source.cameras)}); "
            "use a dataset that has it"
        )


def load_images(item: Item, cameras: Sequence[str]) -> list[np.ndarray]:
    """uint8 RGB [H, W, 3] of each camera. Raises InputError: one is missing or unreadable."""
    return [item.load_image(camera) for camera in cameras]


def token_shape(grids: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Rows of a set's token array and tokens in each: one for each image, or a single one where sizes differ."""
    counts = [rows * columns for rows, columns in grids]
    return (1, sum(counts)) if len(set(grids)) > 1 else (len(grids), counts[0])


class ImageEncoder:
    """A VLA's vision tower over images of any cameras, each at its own size, those of one size together."""

    def __init__(self, vla: Vla, cameras: Sequence[str]):
        sizes = vla.spec.sizes_of(cameras)
        self._groups = [
            ([place for place, other in enumerate(sizes) if other == size], vla.of_size(size).torch_vision())
            for size in dict.fromkeys(sizes)
        ]

    def encode(self, images: list[list[np.ndarray]]) -> torch.Tensor:
        """Tokens float [keyframes, *token_shape, D] of the images of several keyframes, without gradient."""
        tokens: dict[int, torch.Tensor] = {}
        for places, vision in self._groups:
            part = encode_keyframes(vision, [[keyframe[place] for place in places] for keyframe in images])
            if len(self._groups) == 1:
                return part
            tokens |= {place: part[:, row] for row, place in enumerate(places)}
        return torch.cat([tokens[place] for place in sorted(tokens)], 1).unsqueeze(1)


def encode_keyframes(vision: Any, images: list[list[np.ndarray]]) -> torch.Tensor:
    """Tokens float [keyframes, cameras, rows * cols, D] of the images of several keyframes, without gradient."""
    with torch.inference_mode():
        flat = vision.encode_patches(vision.preprocess([image for keyframe in images for image in keyframe]))
    return flat.unflatten(0, (len(images), -1))


def encode_items(items: Sequence[Item] | ImageSource, vla: Vla, task: str) -> Iterator[tuple[Item, torch.Tensor]]:
    """Each item with its tokens [cameras, N, D], encoded chunk by chunk, with progress."""
    vla.require_one_size(task)
    vision, cameras = vla.torch_vision(), vla.spec.cameras
    with tqdm(total=len(items), desc=task, unit="item") as bar:
        for start in range(0, len(items), CHUNK):
            chunk = [items[index] for index in range(start, min(start + CHUNK, len(items)))]
            yield from zip(chunk, encode_keyframes(vision, [load_images(one, cameras) for one in chunk]), strict=True)
            bar.update(len(chunk))


def pixel_encoder(vla: Vla) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function: uint8 pixels [B, 3, H, W] at an image size of the VLA -> tokens float32 [B, N, D], no gradient."""
    sizes = {vla.spec.image_size, *vla.spec.sizes}
    by_size = {size: vla.of_size(size).torch_vision() for size in sizes}

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        height, width = pixels.shape[-2:]
        vision = by_size[height, width]
        with torch.no_grad():
            return vision.encode_patches(vision.patches(pixels.to(vision.device))).float()

    return encode


def _done(folder: Path, shape: tuple[int, ...]) -> int:
    """Items that are complete on disk; 0 where the file is missing or has another size than it must."""
    path = folder / TOKENS
    if not path.exists() or path.stat().st_size != int(np.prod(shape)) * np.dtype(np.float16).itemsize:
        return 0
    try:
        return int(json.loads((folder / PROGRESS).read_text())["done"])
    except (FileNotFoundError, ValueError, KeyError):
        return 0


@dataclass(frozen=True)
class _Chunk:
    """Items that are encoded together."""

    start: int
    stop: int
    first: str  # name of the first item

    def __str__(self) -> str:
        return f"item {self.start} ({self.first})"


@dataclass(frozen=True)
class EncodedChunk:
    """float16 tokens [items, *token_shape, D] of the items from ``start`` on."""

    start: int
    tokens: np.ndarray


class EncodingWorker:
    """Encodes chunks of a dataset; ``load_encoder`` gives a VLA with its vision tower, called once."""

    def __init__(self, source: ImageSource, load_encoder: Callable[[], Vla]):
        self._source, self._vla = source, load_encoder()
        self._encoder = ImageEncoder(self._vla, source.cameras)

    def __call__(self, chunks: Iterable[_Chunk]) -> Iterator[EncodedChunk]:
        """Raises InputError: an image is missing or unreadable, tokens do not fit float16."""
        for chunk, images in read_ahead((chunk, self._read(chunk)) for chunk in chunks):
            encoded = self._encoder.encode(images).float().cpu().numpy()
            if not np.abs(encoded).max() <= _LARGEST:
                raise InputError(f"{self._vla.path}: the encoder's tokens of {chunk.first} do not fit float16")
            yield EncodedChunk(chunk.start, encoded.astype(np.float16))

    def _read(self, chunk: _Chunk) -> list[list[np.ndarray]]:
        items = [self._source[index] for index in range(chunk.start, chunk.stop)]
        return [load_images(item, self._source.cameras) for item in items]


def _fill(
    source: ImageSource,
    tokens: np.memmap,
    progress: Path,
    done: int,
    make: Callable[[], EncodingWorker],
    cluster: Cluster | None,
) -> None:
    """Chunks may come in any order; ``progress`` counts the items before the first that is missing."""
    starts = range(done, len(source), CHUNK)
    chunks = (_Chunk(start, min(start + CHUNK, len(source)), source.names[start]) for start in starts)
    ahead: dict[int, int] = {}  # chunks behind a missing one: start -> stop
    with tqdm(total=len(source), initial=done, desc="encoding", unit="item") as bar:
        for chunk in map_items(make, chunks, cluster, CHUNKS_AT_ONCE):
            stop = chunk.start + len(chunk.tokens)
            tokens[chunk.start : stop] = chunk.tokens
            tokens.flush()
            ahead[chunk.start] = stop
            while done in ahead:
                done = ahead.pop(done)
            with write_atomically(progress) as file:
                file.write_text(json.dumps({"done": done}))
            bar.update(len(chunk.tokens))


@dataclass(frozen=True)
class Features:
    """The tower's output for one item."""

    tokens: torch.Tensor  # [C, N, D], in the VLA's dtype, cameras in its order; [1, N, D] where image sizes differ
    tower_attention: torch.Tensor | None  # float32, likewise; None where no pruner asked for it
    layer_features: tuple[torch.Tensor, ...] = ()  # as in ``VisualTokens``

    def visual(self, grids: Sequence[tuple[int, int]]) -> VisualTokens:
        """As a vision backend gives them; ``grids`` holds the token rows and columns of each camera's image."""
        mixed = len(set(grids)) > 1
        grid = (1, self.tokens.shape[1]) if mixed else grids[0]
        visual = VisualTokens.from_raster(self.tokens, grid, self.tower_attention, self.layer_features)
        return replace(visual, grids=tuple(grids)) if mixed else visual


class FeatureStore:
    """Features of the VLA's cameras by item, one safetensors file each.

    Args:
        folder: below it they are kept; None keeps nothing.
        attention: whether the attention that each token receives in the tower is needed.

    Raises:
        InputError: the dataset lacks a camera of the VLA.
    """

    def __init__(self, source: ImageSource, vla: Vla, folder: Path | None, attention: bool):
        require_cameras(source, vla)
        self._source, self._vla, self._attention = source, vla, attention
        self._vision = vla.torch_vision()
        self._folder = None if folder is None else folder / cache_key(source, vla, vla.spec.cameras)

    def load(self, indices: Sequence[int]) -> list[Features]:
        """Features of some items by position; one that comes twice is computed once.

        Raises InputError: an image is missing or unreadable. ModelError: the tower has no attention over whole images.
        """
        found = {index: self._read(index) or self._encode(index) for index in dict.fromkeys(indices)}
        return [found[index] for index in indices]

    def _path(self, index: int) -> Path:
        assert self._folder is not None
        name = hashlib.sha256(self._source.names[index].encode()).hexdigest()[:32]
        return self._folder / f"{name}.safetensors"

    def _read(self, index: int) -> Features | None:
        if self._folder is None or not self._path(index).exists():
            return None
        try:
            tensors = load_file(self._path(index), device=str(self._vla.device))
        except (SafetensorError, OSError):
            return None  # damaged: it is written again
        expected = (*token_shape(self._vla.grids), self._vla.width)
        tokens, attention = tensors.get("tokens"), tensors.get("tower_attention")
        if tokens is None or tuple(tokens.shape) != expected or (self._attention and attention is None):
            return None
        layers = sorted(name for name in tensors if name.startswith(_LAYER))
        return Features(tokens, attention, tuple(tensors[name] for name in layers))

    @torch.inference_mode()
    def _encode(self, index: int) -> Features:
        images = load_images(self._source[index], self._vla.spec.cameras)
        visual = self._vision.encode(self._vision.preprocess(images), self._attention)
        features = Features(visual.raster(), visual.attention, visual.layer_features)
        if self._folder is not None:
            self._write(self._path(index), features)
        return features

    def _write(self, path: Path, features: Features) -> None:
        tensors = {"tokens": features.tokens, "tower_attention": features.tower_attention}
        tensors |= {f"{_LAYER}{index:02}": feature for index, feature in enumerate(features.layer_features)}
        with write_atomically(path) as partial:
            save_file({name: one.cpu().contiguous() for name, one in tensors.items() if one is not None}, partial)
