"""What ``fastdrive bench`` times: both implementations of each frame set, by stage, and ours without its parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastdrive_node.benchmark.implementations import FastDrive, ForcedDrafter, HfGenerate
from fastdrive_node.benchmark.timing import Case
from fastdrive_node.benchmark.workload import workload
from fastdrive_node.planning.answer_format import answer_format
from fastdrive_node.planning.pipeline import Pipeline
from fastdrive_node.replay.samples import PlanningSample

STOCK, OURS = "transformers", "ours"


@dataclass(frozen=True)
class Pair:
    """Both implementations of one sample, and what the ablation takes of ours."""

    stock: HfGenerate
    ours: FastDrive  # with all that the pipeline has
    lean: FastDrive  # in torch, all tokens, token by token
    pruned: FastDrive  # in torch, token by token
    forced: FastDrive  # in torch, drafts that hold what the format forces and no number
    drafted: FastDrive  # in torch
    answer: tuple[int, ...]  # of transformers, to its end

    @property
    def steps(self) -> dict[str, HfGenerate | FastDrive]:
        """The rows of the ablation, each with one thing more."""
        ours = {"lean": self.lean, "pruning": self.pruned, "forced": self.forced, "drafts": self.drafted}
        return {STOCK: self.stock, **ours} | ({} if self.ours is self.drafted else {"engines": self.ours})


def make_pair(pipeline: Pipeline, best: Pipeline, sample: PlanningSample) -> Pair:
    """Of one frame set; ``best``: the pipeline that "ours" runs, which may have engines."""
    vla = pipeline.vla
    work, form = workload(vla, pipeline.vision, sample, pipeline.threads), answer_format(vla)
    answer = HfGenerate(work, form.max_new_tokens).generate(sorted(form.stop_ids))
    count = len(answer)
    language, pruner, drop = pipeline.generator.language, pipeline.pruner, pipeline.drop
    drafted = FastDrive(work, count, pruner, drop, language, form.drafter, keep_head=True)
    forced = None if form.drafter is None else ForcedDrafter(form.drafter, vla.image_token_id)
    ours = drafted
    if best is not pipeline:
        other = workload(vla, best.vision, sample, best.threads)
        ours = FastDrive(other, count, best.pruner, best.drop, best.generator.language, form.drafter, True)
    lean, pruned = FastDrive(work, count, language=language), FastDrive(work, count, pruner, drop, language)
    held = FastDrive(work, count, pruner, drop, language, forced)
    return Pair(HfGenerate(work, count), ours, lean, pruned, held, drafted, answer)


class _Turns:
    """A call that takes the samples in turn."""

    def __init__(self, of: Sequence[Any], call: Callable[[Any, Any], object]):
        self._of, self._call, self._next = of, call, 0

    def __call__(self, states: Sequence[Any]) -> object:
        place = self._next % len(self._of)
        self._next += 1
        return self._call(self._of[place], states[place] if states else None)


def _case(of: Sequence[Any], call: Callable[[Any, Any], object], prepare: Callable[[Any], Any] | None = None) -> Case:
    """``call`` on one implementation of each sample, with what ``prepare`` gave for it."""
    return Case(_Turns(of, call), lambda: [] if prepare is None else [prepare(one) for one in of], of[0].threads)


def _encode(one: Any, _) -> object:
    return one.encode()


def _end_to_end(one: Any, _) -> object:
    return one.end_to_end()


def whole(pairs: Sequence[Pair]) -> dict[str, Case]:
    """Camera to plan."""
    return {
        OURS: _case([pair.ours for pair in pairs], lambda one, _: one.camera_to_plan()),
        STOCK: _case([pair.stock for pair in pairs], lambda one, _: one.camera_to_plan()),
    }


def cases(pairs: Sequence[Pair]) -> dict[str, dict[str, Case]]:
    """Both implementations of each stage; each starts from its own results of the stage before."""

    def pruned(one: FastDrive):
        visual = one.encode()
        return visual, one.prune(visual)

    def prefill(one: HfGenerate, tokens):
        return one.prefill(tokens)

    def decode(one: Any, state):
        return one.decode(state)

    ours, stock = [pair.ours for pair in pairs], [pair.stock for pair in pairs]
    return {
        "encode": {OURS: _case(ours, _encode), STOCK: _case(stock, _encode)},
        "prune": {OURS: _case(ours, lambda one, visual: one.prune(visual), FastDrive.encode)},
        "prefill": {
            OURS: _case(ours, lambda one, state: one.prefill(*state), pruned),
            STOCK: _case(stock, prefill, HfGenerate.encode),
        },
        "decode": {
            OURS: _case(ours, decode, lambda one: one.prefill(*pruned(one))),
            STOCK: _case(stock, decode, lambda one: one.prefill(one.encode())),
        },
        "end_to_end": {OURS: _case(ours, _end_to_end), STOCK: _case(stock, _end_to_end)},
        "camera_to_plan": whole(pairs),
        "ablation": {name: _case([pair.steps[name] for pair in pairs], _end_to_end) for name in pairs[0].steps},
    }
