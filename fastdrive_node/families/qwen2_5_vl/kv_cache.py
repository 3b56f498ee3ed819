"""Keys and values of the lean language model, on a CPU in memory that comes again from plan to plan."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

import torch

_STEP = 64  # positions of all layers by which the memory of a cache grows: prompts differ by some tokens
_FREE = 2  # caches whose memory is kept while nobody holds them; one plan needs one


class KvCache:
    """Keys and values of each layer; ``used`` positions have been run.

    Args:
        keys, values: of each layer, [B, key/value heads, positions, head dim].
        missing: for each layer, how many of the positions that may be run do not reach it.
    """

    def __init__(self, keys: list[torch.Tensor], values: list[torch.Tensor], missing: tuple[int, ...]):
        self.keys, self.values, self.missing, self.used = keys, values, missing, 0

    def copy_from(self, source: KvCache, count: int) -> None:
        """Take the first ``count`` positions of another cache in which no layer misses any."""
        for ours, theirs in zip((*self.keys, *self.values), (*source.keys, *source.values), strict=True):
            ours[:, :, :count] = theirs[:, :, :count]


class KvMemory:
    """Gives caches. On a CPU the memory of a cache of one prompt is used again once nobody holds the cache.

    On a GPU torch's allocator does that already, and memory that is kept here would be missing for graphs. Batches
    take new memory, for they differ in size; so do calls outside of ``inference_mode``, where a gradient may need it.

    Args:
        config: the language model's.
    """

    def __init__(self, config: Any):
        self._layers, self._heads = config.num_hidden_layers, config.num_key_value_heads
        self._head_dim = config.hidden_size // config.num_attention_heads
        self._free: list[torch.Tensor] = []

    def cache(self, batch: int, length: int, like: torch.Tensor, missing: Sequence[int] | None = None) -> KvCache:
        """An empty cache of ``length`` positions for ``batch`` prompts; what is in its memory is not defined.

        Args:
            like: of the type and on the device of the keys and values.
            missing: see ``KvCache``; none where not given.
        """
        missing = tuple(missing or [0] * self._layers)
        shapes = [(batch, self._heads, length - less, self._head_dim) for less in missing for _ in range(2)]
        sizes = [math.prod(shape) for shape in shapes]
        again = batch == 1 and like.device.type == "cpu" and torch.is_inference_mode_enabled()
        memory = self._take(sum(sizes), like) if again else self._allocate(sum(sizes), like)
        places = memory[: sum(sizes)].split(sizes)
        parts = [place.view(shape) for place, shape in zip(places, shapes, strict=True)]
        cache = KvCache(parts[::2], parts[1::2], missing)
        if again:
            weakref.finalize(cache, _give_back, weakref.ref(self), memory)
        return cache

    def _take(self, elements: int, like: torch.Tensor) -> torch.Tensor:
        """The smallest free memory that is large enough, or new memory of whole steps."""
        fits = [each for each in self._free if each.numel() >= elements and each.dtype == like.dtype]
        if fits:
            found = min(fits, key=torch.Tensor.numel)
            self._free = [each for each in self._free if each is not found]
            return found
        step = 2 * self._layers * self._heads * self._head_dim * _STEP
        return self._allocate(-(-elements // step) * step, like)

    def _allocate(self, elements: int, like: torch.Tensor) -> torch.Tensor:
        return like.new_empty(elements)


def _give_back(memory: weakref.ref[KvMemory], part: torch.Tensor) -> None:
    owner = memory()
    if owner is not None:
        owner._free = sorted([*owner._free, part], key=torch.Tensor.numel)[-_FREE:]  # the largest serve every length
