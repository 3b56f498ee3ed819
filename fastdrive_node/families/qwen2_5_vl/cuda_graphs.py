"""The language model as CUDA graphs: one launch for a forward in place of hundreds.

A graph has fixed addresses and sizes. So it works on a key/value cache of its own, the static one, and on a few numbers
of tokens, up to which a call is padded. A prompt is padded at its end, which causal attention hides; behind it a mask
hides what is padded. The cache that a prefill gives is the static one, without a copy, until the next prompt needs it.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from fastdrive_node.families.base import PositionInputs
from fastdrive_node.families.qwen2_5_vl.kv_cache import KvCache
from fastdrive_node.families.qwen2_5_vl.language import TorchLanguage
from fastdrive_node.families.tokens import VisualTokens

if TYPE_CHECKING:
    from fastdrive_node.families.vla import Vla

_log = logging.getLogger(__name__)

LENGTHS = (1, 8, 16, 32, 64, 128, 256)  # tokens of a call behind a prompt; longer ones run without a graph
PREFILLS = 4  # graphs of prompts that are held
RECENT = 32  # prefills that tell which of those graphs are in use
_ROUND = 256  # positions
_LOGITS = 32  # rows that those of a prompt with a draft are padded to a multiple of


def padded_length(tokens: int) -> int:
    """Tokens of the graph that runs a prompt: a multiple of 16, and from 512 on at most 1/32 more than the prompt's."""
    step = max(16, 1 << max(tokens.bit_length() - 6, 0))
    return -(-tokens // step) * step


class _Step:
    """Inputs and outputs of one number of tokens behind a prompt, at fixed addresses."""

    def __init__(self, length: int, places: int, head_dim: int, like: torch.Tensor):
        self.ids = torch.zeros(1, length, dtype=torch.int64, device=like.device)
        self.cos = like.new_zeros(1, length, head_dim)
        self.sin = torch.zeros_like(self.cos)
        self.places = torch.arange(length, device=like.device)
        self.mask = torch.zeros(length, places, dtype=torch.bool, device=like.device)
        self.columns = torch.arange(places, device=like.device)
        self.logits: torch.Tensor
        self.graph: torch.cuda.CUDAGraph | None = None  # None on a CPU

    def set(self, ids: torch.Tensor, positions: PositionInputs, used: int) -> None:
        count = ids.shape[1]
        self.ids[:, :count] = ids
        for own, given in zip((self.cos, self.sin), positions, strict=True):
            own[:, :count] = given
        torch.arange(used, used + len(self.places), out=self.places)
        torch.le(self.columns, self.places[:, None], out=self.mask)


class _Prompt:
    """Inputs and outputs of one padded length of a prompt, at fixed addresses."""

    def __init__(self, length: int, rows: int, width: int, head_dim: int, like: torch.Tensor):
        self.embeddings = like.new_zeros(1, length, width)
        self.cos = like.new_zeros(1, length, head_dim)
        self.sin = torch.zeros_like(self.cos)
        self.rows = torch.zeros(rows, dtype=torch.int64, device=like.device)
        self.logits: torch.Tensor
        self.graph: torch.cuda.CUDAGraph | None = None  # None on a CPU, and where the graph is not held

    def set(self, embeddings: torch.Tensor, positions: PositionInputs, last: int) -> None:
        count = embeddings.shape[1]
        for own, given in zip((self.embeddings, self.cos, self.sin), (embeddings, *positions), strict=True):
            own[:, :count] = given
        self.embeddings[:, count:] = 0  # a prompt before may have left values that are not finite
        torch.arange(count - last, count - last + len(self.rows), out=self.rows)
        self.rows.clamp_(max=count - 1)


class _Static(KvCache):
    """The cache that graphs work on; ``memory`` is [2, layers, 1, kv heads, positions, head dim]."""

    def __init__(self, memory: torch.Tensor):
        super().__init__(list(memory[0]), list(memory[1]), (0,) * memory.shape[1])
        self.memory = memory

    def clear_behind(self, place: int) -> None:
        """What a mask hides must be finite."""
        self.memory[..., place:, :] = 0


class _Lent(KvCache):
    """The cache of a prompt of the static one's keys and values, until ``GraphedLanguage`` gives it its own."""

    def __init__(self, static: _Static, length: int, used: int):
        super().__init__(static.keys, static.values, static.missing)
        self.length, self.used = length, used
        self.own: KvCache | None = None  # whose memory it has when the static one is given to another prompt


class GraphedLanguage(TorchLanguage):
    """``TorchLanguage`` that runs one prompt, and the steps behind it, as CUDA graphs.

    A graph is captured when its number of tokens is first run. Of prompts ``PREFILLS`` are held; then a further length
    runs without a graph the first time, and takes the place of a length that the last ``RECENT`` prefills did not have
    when it comes again. A number of tokens for whose capture the memory is too small runs without a graph from then on.
    Batches, pruners that act inside of the language model, calls outside of ``inference_mode``, and calls under a
    dispatch mode, which would not see a graph's operations (a FLOP counter), run as ``TorchLanguage``'s. On a CPU the
    same steps run without a graph, for tests. So does a prompt behind a head.
    """

    takes_head = False  # a prompt's graph begins at position 0, and without a graph more is lost than the head saves

    def __init__(self, vla: Vla):
        super().__init__(vla)
        self._static: _Static | None = None
        self._bound: weakref.ref[KvCache] | None = None  # whose content the static cache has
        self._steps: dict[int, _Step] = {}
        self._prompts: dict[tuple[int, int], _Prompt] = {}
        self._recent: deque[tuple[int, int]] = deque(maxlen=RECENT)
        self._too_large: set[int | tuple[int, int]] = set()  # keys of steps and prompts that memory has no graph for
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None  # memory of all graphs, of which one runs at a time

    def prefill(
        self,
        ids: torch.Tensor,
        visual_positions: Sequence[torch.Tensor],
        visual: Sequence[VisualTokens],
        positions: PositionInputs,
        max_new_tokens: int,
        last: int = 1,
        head: KvCache | None = None,
    ) -> tuple[torch.Tensor, KvCache]:
        """See ``HeadedLanguageModel``."""
        if head is not None or not _able(ids):
            return super().prefill(ids, visual_positions, visual, positions, max_new_tokens, last, head)
        count = ids.shape[1]
        length = padded_length(count)
        self._release()
        static = self._reserve(max(length, count + max_new_tokens))
        key = (length, 1 if last == 1 else -(-last // _LOGITS) * _LOGITS)
        known = self._prompts.get(key)
        call = known or _Prompt(*key, self.config.hidden_size, self._head_dim, self._head.weight)
        call.set(self.embed_prompts(ids, visual_positions, visual), positions, last)
        static.clear_behind(length)
        if known is None and key not in self._too_large and self._make_place(key):
            self._hold(self._prompts, key, call, lambda: self._run_prompt(call, static))
        self._recent.append(key)
        if call.graph is None:
            self._run_prompt(call, static)
        else:
            call.graph.replay()
        cache = _Lent(static, count + max_new_tokens, count)
        self._bound = weakref.ref(cache)
        return call.logits[:, :last].clone(), cache  # the next replay overwrites them

    def decode_step(self, ids: torch.Tensor, positions: PositionInputs, cache: KvCache) -> torch.Tensor:
        """See ``LanguageModel``."""
        return self.extend(ids[:, None], positions, cache)[:, 0]

    def extend(self, ids: torch.Tensor, positions: PositionInputs, cache: KvCache) -> torch.Tensor:
        """See ``ExtendingLanguageModel``."""
        count = ids.shape[1]
        length = next((each for each in LENGTHS if each >= count), None)
        if length is None or any(cache.missing) or not _able(ids):
            self._release()
            return super().extend(ids, positions, cache)
        static = self._bind(cache)
        known = self._steps.get(length)
        call = known or _Step(length, static.memory.shape[-2], self._head_dim, self._head.weight)
        call.set(ids, positions, cache.used)
        if known is None and length not in self._too_large:
            self._hold(self._steps, length, call, lambda: self._run_step(call, static))
        if call.graph is None:
            self._run_step(call, static)
        else:
            call.graph.replay()
        cache.used += count
        return call.logits[:, :count].clone()

    def _run_prompt(self, call: _Prompt, static: _Static) -> None:
        static.used = 0
        call.logits = self.forward(call.embeddings, (call.cos, call.sin), static, call.rows)

    def _run_step(self, call: _Step, static: _Static) -> None:
        call.logits = self.run_static(call.ids, (call.cos, call.sin), static, call.places, call.mask)

    def _make_place(self, key: tuple[int, int]) -> bool:
        """Whether a prompt's graph may be captured and held; frees that of a length which is no longer in use."""
        if len(self._prompts) < PREFILLS:
            return True
        unused = next((each for each in self._prompts if each not in self._recent), None)
        if unused is None or key not in self._recent:
            return False
        del self._prompts[unused]
        return True

    def _hold(self, held: dict[Any, Any], key: int | tuple[int, int], call: Any, run: Callable[[], None]) -> None:
        """Capture a call and hold it; where the memory is too small its key has no graph from then on."""
        try:
            call.graph = self._capture(run)
            held[key] = call
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            self._too_large.add(key)
            self._free_graphs()  # what the capture took stays in their pool, and the run without a graph may need it
            what = f"steps of length {key}" if isinstance(key, int) else f"a prompt of {key[0]} tokens"
            _log.warning("GPU out of memory in the capture of %s: they run without a CUDA graph, slower", what)

    def _free_graphs(self) -> None:
        self._steps.clear()
        self._prompts.clear()
        self._pool = None

    def _reserve(self, length: int) -> _Static:
        """The static cache, with that many positions at least and those of the longest step."""
        needed = length + LENGTHS[-1]
        if self._static is None or self._static.memory.shape[-2] < needed:
            self._free_graphs()
            self._static = None  # before the memory for the next is taken
            positions = -(-(needed + _ROUND // 2) // _ROUND) * _ROUND  # a little longer prompt needs no larger one
            shape = (2, self.layers, 1, self.config.num_key_value_heads, positions, self._head_dim)
            self._static = _Static(self._head.weight.new_zeros(shape))
        return self._static

    def _bind(self, cache: KvCache) -> _Static:
        """Have the content of a cache in the static one."""
        if self._static is not None and self._bound is not None and self._bound() is cache:
            return self._static
        self._release()
        static = self._reserve(cache.keys[0].shape[2])
        static.copy_from(cache, cache.used)
        static.clear_behind(cache.used)
        self._bound = weakref.ref(cache)
        return static

    def _release(self) -> None:
        """Give the bound cache what was written since, where someone still has it."""
        bound = self._bound() if self._bound is not None else None
        if bound is not None and self._static is not None:
            if isinstance(bound, _Lent) and bound.keys is self._static.keys:
                bound.own = self.cache(1, bound.length)
                bound.keys, bound.values = bound.own.keys, bound.own.values
            bound.copy_from(self._static, min(bound.used, bound.keys[0].shape[2]))
        self._bound = None

    def _capture(self, run: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """A graph of a call whose inputs are set; None on a CPU."""
        device = self._head.weight.device
        if device.type != "cuda":
            return None
        with torch.cuda.device(device):
            self._stream, current = self._stream or torch.cuda.Stream(), torch.cuda.current_stream()
            self._stream.wait_stream(current)
            graph, pool = torch.cuda.CUDAGraph(), self._pool or torch.cuda.graph_pool_handle()
            try:
                with torch.cuda.stream(self._stream):  # around the capture, too: when it fails, it may not leave it
                    for _ in range(2):  # libraries take memory and choose kernels in their first runs
                        run()
                    with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                        run()
            finally:
                current.wait_stream(self._stream)
        self._pool = pool  # torch refuses a pool none of whose graphs is left, so not that of a failed capture
        return graph


def _able(ids: torch.Tensor) -> bool:
    """Whether a call may be a graph, or the steps of one."""
    return len(ids) == 1 and torch.is_inference_mode_enabled() and _get_current_dispatch_mode() is None


def _out_of_memory(error: BaseException | None) -> bool:
    """Also where the end of a failed capture raised another error, and where the graph itself found no memory."""
    if error is None:
        return False
    known = isinstance(error, torch.OutOfMemoryError) or "CUDA error: out of memory" in str(error)
    return known or _out_of_memory(error.__context__)
