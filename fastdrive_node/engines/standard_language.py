"""A language engine of ONNX's operators, which gives new keys and values only; they are put into the cache here.

The address of the cache stays while an answer is written. See ``fastdrive_export.networks.language`` for the graph.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
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
)
from fastdrive_node.engines.language_cache import HIDDEN, EngineCache, append, require_positions
from fastdrive_node.engines.language_engine import EngineLanguage, LanguageRunner, source_of
from fastdrive_node.engines.manifest import LanguageManifest
from fastdrive_node.families import VisualTokens, Vla
from fastdrive_node.families.base import PositionInputs

# lengths of runs whose inputs and outputs are kept: 100 MB for a prefill of a thousand tokens of a 3B model
MOST_PREFILLS, MOST_EXTENSIONS = 2, 128


class StandardLanguage(EngineLanguage):
    """See ``EngineLanguage``."""

    def __init__(self, file: Path, manifest: LanguageManifest, runner: LanguageRunner, vla: Vla):
        super().__init__(file, manifest, runner, vla)
        self._step = self._buffers(1)  # of every step; the mask is the cache's
        # of the lengths that were run last, which come again; the last used is the last
        self._prefills: OrderedDict[tuple[int, ...], dict[str, torch.Tensor]] = OrderedDict()
        self._extensions: OrderedDict[tuple[int, ...], dict[str, torch.Tensor]] = OrderedDict()
        self._nothing = self._memory.cache(1)  # stands before a prompt that has no head: one position that is hidden

    def prefill(
        self,
        ids: torch.Tensor,
        visual_positions: Sequence[torch.Tensor],
        visual: Sequence[VisualTokens],
        positions: PositionInputs,
        max_new_tokens: int,
        last: int = 1,
        head: EngineCache | None = None,
    ) -> tuple[torch.Tensor, EngineCache]:
        """See ``EngineLanguage``."""
        self._require_one(ids)
        (cos, sin), rows = positions, visual[0].rows
        length, before = ids.shape[1], self._nothing if head is None else head
        tensors = self._prefill_buffers(length, max(1, len(rows)), last, before)
        tensors[IDS].copy_(ids[0])
        tensors[SOURCE].copy_(source_of(length, visual_positions[0]))
        tensors[VISUAL][: len(rows)] = rows
        tensors[COS].copy_(cos[0])
        tensors[SIN].copy_(sin[0])
        self._run(tensors, before.pointers, length, before.length)
        self._check(tensors[LOGITS])
        cache = self._memory.cache(before.used + length + max_new_tokens)
        cache.copy_from(before, before.used)
        append(cache, tensors, length)
        return tensors[LOGITS][None].to(ids.device, copy=True), cache

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

    def _prefill_buffers(self, count: int, shown: int, asked: int, before: EngineCache) -> dict[str, torch.Tensor]:
        """Inputs and outputs of a prompt of ``count`` tokens behind what ``before`` holds, the same at each call."""
        key = (count, shown, asked, before.length, before.used)

        def make() -> dict[str, torch.Tensor]:
            tensors = self._buffers(count, shown, asked)
            tensors[WANTED].copy_(torch.arange(count - asked, count))
            tensors[MASK] = self._mask(count, before.length)
            tensors[MASK][:, : before.used] = 0
            return tensors

        return _kept(self._prefills, MOST_PREFILLS, key, make)

    def _extension(self, count: int, earlier: int) -> dict[str, torch.Tensor]:
        """Inputs and outputs of ``count`` tokens behind a cache of ``earlier`` positions, the same at each call."""

        def make() -> dict[str, torch.Tensor]:
            tensors = self._buffers(count, asked=count)
            for name in (SOURCE, WANTED):
                tensors[name].copy_(torch.arange(count))
            tensors[MASK] = self._mask(count, earlier)
            return tensors

        return _kept(self._extensions, MOST_EXTENSIONS, (count, earlier), make)

    def _mask(self, count: int, earlier: int) -> torch.Tensor:
        """Each of ``count`` tokens sees itself and those before it, and none of the ``earlier`` positions."""
        mask = torch.full((count, earlier + count), HIDDEN, device=self.runner.device)
        mask[:, earlier:].triu_(1)
        return mask


def _kept(
    buffers: OrderedDict[tuple[int, ...], dict[str, torch.Tensor]],
    most: int,
    key: tuple[int, ...],
    make: Callable[[], dict[str, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """The buffers of a key, made where they are not there; those that were not used for longest are freed."""
    tensors = buffers.get(key)
    if tensors is None:
        tensors = buffers[key] = make()
        if len(buffers) > most:
            buffers.popitem(last=False)
    buffers.move_to_end(key)
    return tensors
