"""A language engine of ONNX's operators, which gives new keys and values only; they are put into the cache here.

The address of the cache stays while an answer is written. See ``fastdrive_export.networks.language`` for the graph.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from fastdrive_node.engines.graph_info import (
    ASKED,
    COS,
    IDS,
    LOGITS,
    MASK,
    NEW,
    NEW_KEYS,
    NEW_VALUES,
    PAST,
    SEEN,
    SHOWN,
    SIN,
    SOURCE,
    VISUAL,
    WANTED,
    cache_names,
)
from fastdrive_node.engines.language_cache import HIDDEN, EngineCache, append, require_positions
from fastdrive_node.engines.language_engine import EngineLanguage, LanguageRunner, source_of
from fastdrive_node.engines.manifest import LanguageManifest
from fastdrive_node.families import VisualTokens, Vla
from fastdrive_node.families.base import PositionInputs

MOST_BUFFERS = 128  # numbers of tokens and of positions whose inputs and outputs are kept


class StandardLanguage(EngineLanguage):
    """See ``EngineLanguage``."""

    def __init__(self, file: Path, manifest: LanguageManifest, runner: LanguageRunner, vla: Vla):
        super().__init__(file, manifest, runner, vla)
        self._step = self._buffers(1)  # of every step; the mask is the cache's
        self._extensions: OrderedDict[tuple[int, int], dict[str, torch.Tensor]] = OrderedDict()  # the last used is last
        earlier = self.info.kv_heads * self.info.head_dim  # P = 1, of a prefill
        self._before = torch.zeros(earlier, dtype=self._stored, device=runner.device)

    def prefill(
        self,
        ids: torch.Tensor,
        visual_positions: Sequence[torch.Tensor],
        visual: Sequence[VisualTokens],
        positions: PositionInputs,
        max_new_tokens: int,
        last: int = 1,
    ) -> tuple[torch.Tensor, EngineCache]:
        """See ``EngineLanguage``."""
        self._require_one(ids)
        (cos, sin), rows = positions, visual[0].rows
        length = ids.shape[1]
        tensors = self._buffers(length, max(1, len(rows)), last)
        tensors[IDS].copy_(ids[0])
        tensors[SOURCE].copy_(source_of(length, visual_positions[0]))
        tensors[VISUAL][: len(rows)] = rows
        tensors[COS].copy_(cos[0])
        tensors[SIN].copy_(sin[0])
        tensors[WANTED].copy_(torch.arange(length - last, length))
        tensors[MASK] = self._causal(length)
        past = {name: self._before.data_ptr() for layer in range(self.info.layers) for name in cache_names(layer)}
        self._run(tensors, past, length, 1)
        self._check(tensors[LOGITS])
        cache = self._memory.cache(length + max_new_tokens)
        append(cache, tensors, length)
        return tensors[LOGITS][None].to(ids.device), cache

    def decode_step(self, ids: torch.Tensor, positions: PositionInputs, cache: EngineCache) -> torch.Tensor:
        """See ``EngineLanguage``."""
        require_positions(cache, 1)
        cos, sin = positions
        tensors = {**self._step, MASK: cache.mask}
        tensors[IDS].copy_(ids)
        tensors[COS].copy_(cos[0])
        tensors[SIN].copy_(sin[0])
        cache.mask[:, cache.used : -1] = HIDDEN  # ``used`` may have been set back
        self._run(tensors, cache.pointers, 1, cache.length)
        append(cache, tensors, 1)
        return tensors[LOGITS].to(ids.device, copy=True)

    def extend(self, ids: torch.Tensor, positions: PositionInputs, cache: EngineCache) -> torch.Tensor:
        """See ``EngineLanguage``."""
        count = ids.shape[1]
        require_positions(cache, count)
        cos, sin = positions
        tensors = self._extension(count, cache.length)
        tensors[IDS].copy_(ids[0])
        tensors[COS].copy_(cos[0])
        tensors[SIN].copy_(sin[0])
        tensors[MASK][:, : cache.used] = 0
        tensors[MASK][:, cache.used : cache.length] = HIDDEN
        self._run(tensors, cache.pointers, count, cache.length)
        append(cache, tensors, count)
        return tensors[LOGITS][None].to(ids.device, copy=True)

    def _run(self, tensors: Mapping[str, torch.Tensor], past: Mapping[str, int], new: int, earlier: int) -> None:
        pointers = {name: tensor.data_ptr() for name, tensor in tensors.items()} | dict(past)
        lengths = {NEW: new, PAST: earlier, SEEN: earlier + new, SHOWN: len(tensors[VISUAL])}
        lengths[ASKED] = len(tensors[WANTED])
        self.runner.execute(pointers, lengths)

    def _buffers(self, new: int, shown: int = 1, asked: int = 1) -> dict[str, torch.Tensor]:
        """Zeros for every input and output but the mask and the cache."""
        lengths: dict[int | str, int] = {NEW: new, SHOWN: shown, ASKED: asked}
        tensors = self.info.inputs() | self.info.outputs()
        names = (IDS, SOURCE, VISUAL, COS, SIN, WANTED, LOGITS, NEW_KEYS, NEW_VALUES)
        return {
            name: torch.zeros(
                [int(lengths.get(length, length)) for length in tensors[name].shape],
                dtype=getattr(torch, tensors[name].dtype),
                device=self.runner.device,
            )
            for name in names
        }

    def _extension(self, count: int, earlier: int) -> dict[str, torch.Tensor]:
        """Inputs and outputs of ``count`` tokens behind a cache of ``earlier`` positions, the same at each call."""
        key = (count, earlier)
        tensors = self._extensions.get(key)
        if tensors is None:
            tensors = self._extensions[key] = self._buffers(count, asked=count)
            for name in (SOURCE, WANTED):
                tensors[name].copy_(torch.arange(count))
            tensors[MASK] = torch.full((count, earlier + count), HIDDEN, device=self.runner.device)
            tensors[MASK][:, earlier:].triu_(1)
            if len(self._extensions) > MOST_BUFFERS:
                self._extensions.popitem(last=False)
        self._extensions.move_to_end(key)
        return tensors

    def _causal(self, length: int) -> torch.Tensor:
        """The mask of a prefill: the one earlier position is hidden from all."""
        mask = torch.full((length, length + 1), HIDDEN, device=self.runner.device).triu(2)
        mask[:, 0] = HIDDEN
        return mask
