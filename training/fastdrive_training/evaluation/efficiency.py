"""What a row costs: times of single samples as in the vehicle, floating-point operations, peak memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from fastdrive_node.benchmark.floor import count_operations
from fastdrive_node.pruning.pruner import Prefilled
from fastdrive_training.evaluation.answers import Answerer, EvaluationSample, PrunerRow

TIMED_SAMPLES = 20  # keyframes that the times are the medians of, one at a time
COUNTED_SAMPLES = 5  # of them, those whose operations are counted: prompts, and an adaptive K, differ
TIMES = ("pruner_ms", "prefill_ms", "decode_ms_per_token")
COLUMNS = (*TIMES, "flops", "decode_flops_per_token", "peak_memory_mb")


def measure(
    answerer: Answerer,
    rows: Sequence[PrunerRow],
    samples: Sequence[EvaluationSample],
    timing: bool = True,
    progress: bool = False,
) -> list[dict]:
    """The efficiency columns of some rows, which take turns on each sample, so that all see the same machine.

    Each is a median over samples. ``pruner_ms`` is what the pruner looks at, its scores and its choice (with a memory,
    without the sets before, which have run when a set comes); None for pruners inside of the language model, whose
    choice is part of the prefill, and for none. ``flops`` is of pruner and prefill, ``decode_flops_per_token`` of a
    decode step. ``peak_memory_mb`` is what weights and tensors take at once while a sample is pruned, prefilled and
    decoded. ``tokens_by_layer`` is there for pruners inside of the language model only. Without ``timing`` the
    times are None.
    """
    counter = _Counter(answerer)
    counted_samples, timed_samples = samples[:COUNTED_SAMPLES], samples[: TIMED_SAMPLES if timing else 0]
    steps = len(rows) * (len(counted_samples) + len(timed_samples))
    with tqdm(
        total=steps, desc="timing" if timing else "counting", unit="run", disable=not progress, leave=False
    ) as bar:
        counts: list[list[dict]] = [[] for _ in rows]  # it warms up, too
        for found, row in zip(counts, rows, strict=True):
            for sample in counted_samples:
                found.append(counter.count(row, sample))
                bar.update()
        counted = [_medians(each) for each in counts]
        times: list[list[dict]] = [[] for _ in rows]
        for turn, sample in enumerate(timed_samples):
            for place in range(len(rows)):
                number = (place + turn) % len(rows)
                times[number].append(_times(answerer, rows[number], sample))
                bar.update()
    medians = [_medians(each) for each in times]
    return [{**dict.fromkeys(COLUMNS), **figures, **each} for figures, each in zip(counted, medians, strict=True)]


def _medians(figures: Sequence[dict]) -> dict:
    """Median of each column; of a list, entry by entry. Counts stay whole numbers."""
    result = {}
    for name in figures[0] if figures else ():
        values = np.median([each[name] for each in figures], axis=0)
        whole = isinstance(figures[0][name], (int, list))
        result[name] = np.round(values).astype(int).tolist() if whole else float(values)
    return result


def _times(answerer: Answerer, row: PrunerRow, sample: EvaluationSample) -> dict[str, float]:
    """Milliseconds of one sample by itself."""
    run = _Stages(answerer, row, sample)
    times = {"pruner_ms": _clock(answerer, run.choose), "prefill_ms": _clock(answerer, run.prefill)}
    if not run.chooses:
        del times["pruner_ms"]
    times["decode_ms_per_token"] = _clock(answerer, run.decode) / run.decoded
    return times


class _Counter:
    """Operations and memory of single samples; those of a decode once for all with as many tokens in each layer."""

    def __init__(self, answerer: Answerer):
        self._answerer = answerer
        self._decodes: dict[tuple, tuple[int, int]] = {}  # operations, and bytes at once beside those of before

    def count(self, row: PrunerRow, sample: EvaluationSample) -> dict:
        """Of one sample by itself."""
        vla, run = self._answerer.vla, _Stages(self._answerer, row, sample)
        on_gpu = vla.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(vla.device)
        memory = PeakMemory()
        with nullcontext() if on_gpu else memory:
            flops = count_flops(run.before_decode)
        before = memory.live()
        run.decode()  # uncounted, which is far faster, for its number of tokens
        peak = torch.cuda.max_memory_allocated(vla.device) if on_gpu else 0
        decode_flops, more = self._decode(row, sample, run)
        if not on_gpu:
            weights = sum(tensor.nbytes for tensor in vla.model.parameters())
            peak = weights + max(memory.peak, before + more)
        by_layer = {"tokens_by_layer": list(run.prefilled.tokens_by_layer)} if row.pruner.acts_inside else {}
        per_token = round(decode_flops / run.decoded)
        return {"flops": flops, "decode_flops_per_token": per_token, "peak_memory_mb": peak / 1e6, **by_layer}

    def _decode(self, row: PrunerRow, sample: EvaluationSample, done: _Stages) -> tuple[int, int]:
        """Of a decode like the one that is done: they depend on lengths alone, not on which tokens there are."""
        lengths = (len(done.prefilled.prompts[0]), done.prefilled.tokens_by_layer, done.decoded)
        if lengths not in self._decodes:
            run, memory = _Stages(self._answerer, row, sample), PeakMemory()
            with memory:
                run.before_decode()
            before = memory.restart()
            with memory:
                flops = count_flops(run.decode)
            self._decodes[lengths] = flops, memory.peak - before
        return self._decodes[lengths]


class _Stages:
    """One sample on its way through a row, stage by stage."""

    prefilled: Prefilled  # of ``prefill``

    def __init__(self, answerer: Answerer, row: PrunerRow, sample: EvaluationSample):
        self._answerer, self._row, self._sample = answerer, row, sample
        self._pruner, self._keep = row.pruner_for(sample.item.name), row.keep_of(sample.visual, answerer.vla)
        self.decoded = 1  # tokens of the answer

    @property
    def chooses(self) -> bool:
        """Whether tokens are chosen before the language model."""
        return self._row.key.pruner != "none" and not self._row.pruner.acts_inside

    def before_decode(self) -> None:
        self.choose()
        self.prefill()

    @torch.inference_mode()
    def choose(self) -> None:
        self._context = self._answerer.context(self._row, self._sample)
        self._chosen = self._pruner.choose(self._context, self._keep).indices

    def prefill(self) -> None:
        inputs = [self._sample.prompt], [self._context.visual], [self._chosen]
        self.prefilled = self._answerer.generator.prefill(self._pruner, *inputs, self._keep)

    def decode(self) -> None:
        self.decoded = len(self._answerer.generator.decode(self.prefilled)[0].ids)


def _clock(answerer: Answerer, stage: Callable[[], None]) -> float:
    """Wall time of a stage in ms; waits for the GPU where there is one."""
    wait = torch.cuda.synchronize if answerer.vla.device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    stage()
    wait()
    return (time.perf_counter() - start) * 1e3


def count_flops(work: Callable[[], None]) -> int:
    """Floating-point operations; see ``count_operations``."""
    return sum(count_operations(work))


class PeakMemory(TorchDispatchMode):
    """The most bytes that tensors made in its block take at once (``peak``), on any device.

    What lives before the block, and the scratch space inside of a kernel, is not seen.
    """

    def __init__(self):
        super().__init__()
        self.peak = 0
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}  # by address, which a weak reference keeps from reuse
        self._bytes = 0  # of all in ``_made``, those that are gone included

    def live(self) -> int:
        """Bytes of the tensors made in its block that are still there."""
        self._made = {key: entry for key, entry in self._made.items() if not entry[0].expired()}
        self._bytes = sum(size for _, size in self._made.values())
        return self._bytes

    def restart(self) -> int:
        """Forget the peak so far; the bytes that are there now."""
        self.peak = self.live()
        return self.peak

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._made and storage._cdata not in known:
                self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                self._bytes += storage.nbytes()
        if self._bytes > self.peak:
            self.peak = max(self.peak, self.live())
        return result


def _tensors(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for item in value for tensor in _tensors(item)]
