"""What the vision tower gives for each sample, computed once and kept for the rows, and on disk for later runs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fastdrive_node.families.loading import Vla
from fastdrive_node.families.qwen2_5_vl.tower import TorchVision
from fastdrive_training.data.nuscenes.keyframes import KeyframeDataset
from fastdrive_training.data.token_cache import camera_order, vla_images

TOKENS, ATTENTION = "tokens", "tower_attention"


@dataclass(frozen=True)
class Features:
    """The tower's output for one keyframe."""

    tokens: torch.Tensor  # [C, N, D], in the VLA's dtype, cameras in its order
    tower_attention: torch.Tensor | None  # float32 [C, N]; None where no pruner asked for it


class FeatureStore:
    """Features by keyframe, one safetensors file each.

    Args:
        folder: where they are kept; a subfolder is named by a digest of encoder and dataset, so that nothing stale is
            read. None keeps nothing.
        attention: whether the attention that each token receives in the tower is needed.
    """

    def __init__(self, dataset: KeyframeDataset, vla: Vla, folder: Path | None, attention: bool):
        self._dataset, self._vla, self._attention = dataset, vla, attention
        self._order = camera_order(vla)
        self._vision = TorchVision(vla.model.model.visual, vla.spec.image_size, len(vla.spec.cameras))
        self._place = None if folder is None else folder / _key(dataset, vla)
        if self._place is not None:
            self._place.mkdir(parents=True, exist_ok=True)

    def load(self, indices: Sequence[int]) -> list[Features]:
        """Features of some keyframes, each position once where it comes twice.

        Raises InputError: an image is missing or unreadable. ModelError: the tower has no attention over whole images.
        """
        found = {index: self._read(index) or self._encode(index) for index in dict.fromkeys(indices)}
        return [found[index] for index in indices]

    def _path(self, index: int) -> Path:
        name = hashlib.sha256(self._dataset.tokens[index].encode()).hexdigest()[:32]
        return self._place / f"{name}.safetensors"

    def _read(self, index: int) -> Features | None:
        if self._place is None or not self._path(index).exists():
            return None
        try:
            tensors = load_file(self._path(index), device=str(self._vla.device))
        except (SafetensorError, OSError):
            return None  # damaged: it is written again
        expected = (len(self._order), self._vla.grid[0] * self._vla.grid[1], self._vla.width)
        tokens, attention = tensors.get(TOKENS), tensors.get(ATTENTION)
        if tokens is None or tuple(tokens.shape) != expected or (self._attention and attention is None):
            return None
        return Features(tokens, attention)

    @torch.inference_mode()
    def _encode(self, index: int) -> Features:
        patches = self._vision.preprocess(vla_images(self._dataset[index], self._order))
        if self._attention:
            features = Features(*self._vision.encode_with_attention(patches))
        else:
            features = Features(self._vision.encode_patches(patches), None)
        if self._place is not None:
            self._write(self._path(index), features)
        return features

    def _write(self, path: Path, features: Features) -> None:
        tensors = {TOKENS: features.tokens.cpu().contiguous()}
        if features.tower_attention is not None:
            tensors[ATTENTION] = features.tower_attention.cpu().contiguous()
        partial = path.with_suffix(".part")
        save_file(tensors, partial)
        os.replace(partial, path)


def _key(dataset: KeyframeDataset, vla: Vla) -> str:
    stat = (dataset.root / dataset.version / "sample_data.json").stat()
    words = [
        vla.encoder_fingerprint,
        str(vla.dtype),
        vla.spec.cameras,
        vla.spec.image_size,
        str(dataset.root.resolve()),
        stat.st_size,
        stat.st_mtime_ns,
    ]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]
