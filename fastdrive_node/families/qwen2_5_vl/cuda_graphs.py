"""The language model behind its prefill as CUDA graphs: one launch for a forward in place of hundreds.

A graph has fixed addresses and sizes, so it works on a key/value cache of its own, into which that of a prefill is
copied, and on a few numbers of tokens, up to which a call is padded. What is padded is hidden by the mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastdrive_node.families.base import PositionInputs
from fastdrive_node.families.qwen2_5_vl.language import KvCache, TorchLanguage

if TYPE_CHECKING:
    from fastdrive_node.families.vla import Vla

LENGTHS = (1, 8, 16, 32, 64, 128, 256)  # tokens of a call; longer ones run without a graph
_ROUND = 256  # positions


class _Call:
    """Inputs and outputs of one number of tokens, at fixed addresses; ``graph`` is None on a CPU."""

    def __init__(self, length: int, cache: KvCache, head_dim: int, device: torch.device, dtype: torch.dtype):
        self.ids = torch.zeros(1, length, dtype=torch.int64, device=device)
        self.cos = torch.zeros(1, length, head_dim, dtype=dtype, device=device)
        self.sin = torch.zeros_like(self.cos)
        self.places = torch.arange(length, device=device)
        self.mask = torch.zeros(length, cache.keys[0].shape[2], dtype=torch.bool, device=device)
        self.columns = torch.arange(self.mask.shape[1], device=device)
        self.logits: torch.Tensor
        self.graph: torch.cuda.CUDAGraph | None = None

    def set(self, ids: torch.Tensor, positions: PositionInputs, used: int) -> None:
        count = ids.shape[1]
        self.ids[:, :count] = ids
        for own, given in zip((self.cos, self.sin), positions, strict=True):
            own[:, :count] = given
        torch.arange(used, used + len(self.places), out=self.places)
        torch.le(self.columns, self.places[:, None], out=self.mask)


class GraphedLanguage(TorchLanguage):
    """``TorchLanguage`` whose steps of one prompt are CUDA graphs, captured when a number of tokens is first run.

    On a CPU the same steps run without a graph, for tests.
    """

    def __init__(self, vla: Vla):
        super().__init__(vla)
        self._static: KvCache | None = None
        self._bound: KvCache | None = None  # whose content the static cache has
        self._calls: dict[int, _Call] = {}

    def decode_step(self, ids: torch.Tensor, positions: PositionInputs, cache: KvCache) -> torch.Tensor:
        """See ``LanguageModel``."""
        return self.extend(ids[:, None], positions, cache)[:, 0]

    def extend(self, ids: torch.Tensor, positions: PositionInputs, cache: KvCache) -> torch.Tensor:
        """See ``ExtendingLanguageModel``."""
        count = ids.shape[1]
        length = next((each for each in LENGTHS if each >= count), None)
        if len(ids) > 1 or length is None or any(cache.missing):
            self._release()
            return super().extend(ids, positions, cache)
        self._bind(cache)
        call = self._calls.get(length) or self._prepare(length)
        call.set(ids, positions, cache.used)
        if call.graph is None:
            self._run(call)
        else:
            call.graph.replay()
        cache.used += count
        return call.logits[:, :count]

    def _bind(self, cache: KvCache) -> None:
        """Have the content of a cache in the static one."""
        if self._bound is cache:
            return
        self._release()
        needed = cache.keys[0].shape[2] + LENGTHS[-1]
        if self._static is None or self._static.keys[0].shape[2] < needed:
            self._calls.clear()
            self._static = self.cache(1, -(-needed // _ROUND) * _ROUND)
            for part in (*self._static.keys, *self._static.values):
                part.zero_()  # what the mask hides must be finite
        _copy(cache, self._static, cache.used)
        self._bound = cache

    def _release(self) -> None:
        """Give the bound cache what was written since."""
        if self._bound is not None and self._static is not None:
            _copy(self._static, self._bound, min(self._bound.used, self._bound.keys[0].shape[2]))
        self._bound = None

    def _prepare(self, length: int) -> _Call:
        weight = self._head.weight
        assert self._static is not None
        call = self._calls[length] = _Call(length, self._static, self._head_dim, weight.device, weight.dtype)
        if weight.device.type == "cuda":
            # what the warm-up writes lies behind all that is used
            call.places.copy_(torch.arange(length) + self._static.keys[0].shape[2] - length)
            call.mask.fill_(True)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):
                    self._run(call)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._run(call)
            call.graph = graph
        return call

    def _run(self, call: _Call) -> None:
        assert self._static is not None
        call.logits = self.run_static(call.ids, (call.cos, call.sin), self._static, call.places, call.mask)


def _copy(source: KvCache, target: KvCache, count: int) -> None:
    for ours, theirs in zip((*target.keys, *target.values), (*source.keys, *source.values), strict=True):
        ours[:, :, :count] = theirs[:, :, :count]
