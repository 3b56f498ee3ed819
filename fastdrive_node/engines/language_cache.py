"""Keys and values of a language engine, at addresses that come again from plan to plan."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from fastdrive_node.engines.graph_info import NEW_KEYS, NEW_VALUES, LanguageGraphInfo, cache_names

HIDDEN = -1e9  # added to the attention's logits of what is not seen; finite, so that no row turns into NaN
_LENGTHS = 8  # of caches whose memory is kept: prompts differ by some tokens of the vehicle's state
_Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


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


class CacheMemory:
    """Gives caches. The memory of one that nobody holds any more is used again, so plans allocate none.

    Args:
        info: of the engine.
        dtype, device: of keys and values.
    """

    def __init__(self, info: LanguageGraphInfo, dtype: torch.dtype, device: torch.device):
        self._info, self._dtype, self._device = info, dtype, device
        self._free: dict[int, _Parts] = {}  # by the cache's length

    def cache(self, length: int) -> EngineCache:
        """An empty cache of ``length`` positions."""
        parts = self._free.pop(length, None) or self._allocate(length)
        keys, values, mask = parts
        keys.zero_()  # a hidden value is multiplied by zero: it must be finite
        values.zero_()
        mask.fill_(HIDDEN)
        mask[:, -1] = 0
        cache = EngineCache(keys, values, mask)
        weakref.finalize(cache, _give_back, weakref.ref(self), length, parts)
        return cache

    def _allocate(self, length: int) -> _Parts:
        info, shape = self._info, (self._info.layers, self._info.kv_heads)
        return (
            torch.empty(*shape, info.head_dim, length, dtype=self._dtype, device=self._device),
            torch.empty(*shape, length, info.head_dim, dtype=self._dtype, device=self._device),
            torch.empty(1, length + 1, device=self._device),
        )


def _give_back(memory: weakref.ref[CacheMemory], length: int, parts: _Parts) -> None:
    owner = memory()
    if owner is not None:
        if len(owner._free) >= _LENGTHS:
            owner._free.clear()
        owner._free[length] = parts


def append(cache: EngineCache, tensors: Mapping[str, torch.Tensor], count: int) -> None:
    """Put what a run gave behind what the cache holds."""
    stop = cache.used + count
    cache.keys[..., cache.used : stop] = tensors[NEW_KEYS]
    cache.values[:, :, cache.used : stop] = tensors[NEW_VALUES]
    cache.mask[:, cache.used : stop] = 0
    cache.used = stop
