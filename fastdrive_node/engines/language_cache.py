"""Keys and values of a language engine, at addresses that come again from plan to plan."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fastdrive_node.engines.graph_info import (
    COS,
    NEW_KEYS,
    NEW_VALUES,
    SIN,
    LanguageGraphInfo,
    cache_names,
    written_name,
)
from fastdrive_node.errors import ModelError
from fastdrive_node.families.base import PositionInputs

HIDDEN = -1e9  # added to the attention's logits of what is not seen; finite, so that no row turns into NaN
_KEPT = 8  # capacities whose memory is kept: prompts differ by some tokens of the vehicle's state
_STEP = 64  # positions by which the memory of a ``FusedCache`` grows: what is behind its length is never read
_Parts = tuple[torch.Tensor, ...]


@dataclass
class EngineCache:
    """Keys and values of one prompt and its answer. What is not filled is zero, for it is multiplied by zero."""

    keys: torch.Tensor  # [layers, key/value heads, head dim, C]
    values: torch.Tensor  # [layers, key/value heads, C, head dim]
    mask: torch.Tensor  # float32 [1, C + 1], of a step: the cache, then the new token
    used: int = 0
    pointers: dict[str, int] = field(init=False)  # of each layer's part, by the graph's names

    def __post_init__(self) -> None:
        self.pointers = {}
        for layer, pair in enumerate(zip(self.keys, self.values, strict=True)):
            names = cache_names(layer)
            self.pointers |= {name: part.data_ptr() for name, part in zip(names, pair, strict=True)}

    @property
    def length(self) -> int:
        """C, positions that may be run."""
        return self.values.shape[2]

    def copy_from(self, head: EngineCache, count: int) -> None:
        """Begin with the first ``count`` positions of another cache."""
        self.keys[..., :count] = head.keys[..., :count]
        self.values[:, :, :count] = head.values[:, :, :count]
        self.mask[:, :count] = 0
        self.used = count


@dataclass
class FusedCache:
    """Keys and values that a graph of onnxruntime's operators writes, and the rotary angles of all its positions."""

    keys: torch.Tensor  # [layers, 1, key/value heads, capacity, head dim]
    values: torch.Tensor  # as keys
    cos: torch.Tensor  # float32 [capacity, head dim / 2]
    sin: torch.Tensor  # as cos
    length: int  # positions that may be run
    used: int = 0
    pointers: dict[str, int] = field(init=False)  # of each layer's part, as input and as output, and of the angles

    def __post_init__(self) -> None:
        self.pointers = {COS: self.cos.data_ptr(), SIN: self.sin.data_ptr()}
        for layer, pair in enumerate(zip(self.keys, self.values, strict=True)):
            for name, part in zip(cache_names(layer), pair, strict=True):
                self.pointers[name] = self.pointers[written_name(name)] = part.data_ptr()

    @property
    def capacity(self) -> int:
        """Positions in memory."""
        return len(self.cos)

    def copy_from(self, head: FusedCache, count: int) -> None:
        """Begin with the first ``count`` positions of another cache."""
        for ours, theirs in ((self.keys, head.keys), (self.values, head.values)):
            ours[..., :count, :] = theirs[..., :count, :]
        self.used = count

    def set_angles(self, positions: PositionInputs, count: int) -> None:
        """Set those of the next ``count`` positions: cos and sin [1, count, head dim], rotate-half's sign in sin."""
        (cos, sin), half = positions, self.cos.shape[1]
        self.cos[self.used : self.used + count] = cos[0, :, :half]
        self.sin[self.used : self.used + count] = sin[0, :, half:]  # in this half the sign is not folded


class CacheMemory:
    """Gives caches. The memory of one that nobody holds any more is used again, so plans allocate none.

    Args:
        info: of the engine.
        dtype, device: of keys and values.
    """

    def __init__(self, info: LanguageGraphInfo, dtype: torch.dtype, device: torch.device):
        self._info, self._dtype, self._device = info, dtype, device
        self._free: dict[int, _Parts] = {}  # by the cache's capacity

    def cache(self, length: int) -> EngineCache:
        """An empty cache of ``length`` positions."""
        parts = self._parts(length)
        keys, values, mask = parts
        keys.zero_()  # a hidden value is multiplied by zero: it must be finite
        values.zero_()
        mask.fill_(HIDDEN)
        mask[:, -1] = 0
        return self._lend(EngineCache(keys, values, mask), length, parts)

    def fused_cache(self, length: int) -> FusedCache:
        """An empty one of ``length`` positions, for a graph of onnxruntime's operators."""
        capacity = math.ceil(length / _STEP) * _STEP
        parts = self._parts(capacity)
        keys, values, cos, sin = parts
        return self._lend(FusedCache(keys, values, cos, sin, length), capacity, parts)

    def _parts(self, capacity: int) -> _Parts:
        return self._free.pop(capacity, None) or self._allocate(capacity)

    def _lend(self, cache: Any, capacity: int, parts: _Parts) -> Any:
        weakref.finalize(cache, _give_back, weakref.ref(self), capacity, parts)
        return cache

    def _allocate(self, capacity: int) -> _Parts:
        info, device = self._info, self._device
        shape = (info.layers, info.kv_heads)
        if info.fused:
            cache = (info.layers, 1, info.kv_heads, capacity, info.head_dim)
            angles = (capacity, info.head_dim // 2)
            both = (torch.zeros(cache, dtype=self._dtype, device=device) for _ in range(2))
            return (*both, *(torch.zeros(angles, device=device) for _ in range(2)))
        return (
            torch.empty(*shape, info.head_dim, capacity, dtype=self._dtype, device=device),
            torch.empty(*shape, capacity, info.head_dim, dtype=self._dtype, device=device),
            torch.empty(1, capacity + 1, device=device),
        )


def _give_back(memory: weakref.ref[CacheMemory], capacity: int, parts: _Parts) -> None:
    owner = memory()
    if owner is not None:
        if len(owner._free) >= _KEPT:
            owner._free.pop(next(iter(owner._free)))  # the one that was given back first
        owner._free[capacity] = parts


def require_positions(cache: EngineCache | FusedCache, count: int) -> None:
    """Raises ModelError where a cache has fewer positions left."""
    if cache.used + count > cache.length:
        raise ModelError(
            f"language engine: {count} more tokens behind {cache.used} are too many for the cache's {cache.length} "
            "positions; give it more positions"
        )


def append(cache: EngineCache, tensors: Mapping[str, torch.Tensor], count: int) -> None:
    """Put what a run gave behind what the cache holds."""
    stop = cache.used + count
    cache.keys[..., cache.used : stop] = tensors[NEW_KEYS]
    cache.values[:, :, cache.used : stop] = tensors[NEW_VALUES]
    cache.mask[:, cache.used : stop] = 0
    cache.used = stop
