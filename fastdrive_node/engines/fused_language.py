"""A language engine of onnxruntime's own operators, which write the cache themselves.

See ``fastdrive_export.networks.fused_language`` for the graph.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fastdrive_node.engines.graph_info import (
    ASKED,
    CAPACITY,
    IDS,
    LAST,
    LOGITS,
    NEW,
    SHOWN,
    SOURCE,
    TOTAL,
    VISUAL,
    WANTED,
)
from fastdrive_node.engines.language_cache import FusedCache, require_positions
from fastdrive_node.engines.language_engine import EngineLanguage, LanguageRunner, source_of
from fastdrive_node.engines.manifest import LanguageManifest
from fastdrive_node.families import VisualTokens, Vla
from fastdrive_node.families.base import PositionInputs

# lengths of runs whose memory is kept: 25 MB for a prefill of a thousand tokens of a 3B model
MOST_PREFILLS, MOST_EXTENSIONS = 8, 128
_Tensors = dict[str, torch.Tensor]


class FusedLanguage(EngineLanguage):
    """See ``EngineLanguage``."""

    def __init__(self, file: Path, manifest: LanguageManifest, runner: LanguageRunner, vla: Vla):
        super().__init__(file, manifest, runner, vla)
        # of the lengths that were run last, which come again; the last used is the last
        self._prefills: OrderedDict[tuple[int, int, int], _Tensors] = OrderedDict()
        self._extensions: OrderedDict[tuple[int, int, int], _Tensors] = OrderedDict()

    def prefill(
        self,
        ids: torch.Tensor,
        visual_positions: Sequence[torch.Tensor],
        visual: Sequence[VisualTokens],
        positions: PositionInputs,
        max_new_tokens: int,
        last: int = 1,
        head: Any = None,
    ) -> tuple[torch.Tensor, Any]:
        """See ``EngineLanguage``."""
        self._require_one(ids)
        known = 0 if head is None else head.used
        rows, length = visual[0].rows, ids.shape[1]
        tensors = self._run_buffers(self._prefills, MOST_PREFILLS, length, max(1, len(rows)), last)
        tensors[SOURCE].copy_(source_of(length, visual_positions[0]))
        tensors[VISUAL][: len(rows)] = rows
        cache = self._memory.fused_cache(known + length + max_new_tokens)
        if head is not None:
            cache.copy_from(head, known)
        logits = self._advance(ids, positions, tensors, cache)
        self._check(logits)
        return logits[None], cache

    def decode_step(self, ids: torch.Tensor, positions: PositionInputs, cache: Any) -> torch.Tensor:
        """See ``EngineLanguage``."""
        return self.extend(ids[:, None], positions, cache)[0]

    def extend(self, ids: torch.Tensor, positions: PositionInputs, cache: Any) -> torch.Tensor:
        """See ``EngineLanguage``."""
        count = ids.shape[1]
        require_positions(cache, count)
        tensors = self._run_buffers(self._extensions, MOST_EXTENSIONS, count, 1, count)
        return self._advance(ids, positions, tensors, cache)[None]

    def _advance(
        self, ids: torch.Tensor, positions: PositionInputs, tensors: _Tensors, cache: FusedCache
    ) -> torch.Tensor:
        """Run new tokens behind what the cache holds. Returns the logits that are wanted, in memory of their own."""
        count = ids.shape[1]
        tensors[IDS].copy_(ids[0])
        cache.set_angles(positions, count)
        length = cache.used + count
        tensors[LAST].fill_(length - 1)
        tensors[TOTAL].fill_(length)
        pointers = {name: tensor.data_ptr() for name, tensor in tensors.items()} | cache.pointers
        lengths = {NEW: count, CAPACITY: cache.capacity, SHOWN: len(tensors[VISUAL]), ASKED: len(tensors[WANTED])}
        self.runner.execute(pointers, lengths)
        cache.used = length
        return tensors[LOGITS].to(ids.device, copy=True)

    def _run_buffers(
        self, kept: OrderedDict[tuple[int, int, int], _Tensors], most: int, new: int, shown: int, asked: int
    ) -> _Tensors:
        """Inputs and outputs but those of the cache, the same at each call of these lengths while they are ``kept``."""
        key = (new, shown, asked)
        tensors = kept.get(key)
        if tensors is None:
            device = self.runner.device
            whole = {"dtype": torch.int32, "device": device}
            tensors = kept[key] = {
                IDS: torch.zeros(new, **whole),
                SOURCE: torch.arange(new, **whole),
                VISUAL: torch.zeros(shown, self.info.width, device=device),
                WANTED: torch.arange(new - asked, new, **whole),
                LAST: torch.zeros(1, **whole),
                TOTAL: torch.zeros((), **whole),
                LOGITS: torch.zeros(asked, self.info.vocabulary, device=device),
            }
            while len(kept) > most:
                kept.popitem(last=False)
        kept.move_to_end(key)
        return tensors
