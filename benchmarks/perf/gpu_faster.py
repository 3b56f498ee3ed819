"""The drafts and CUDA graphs of :mod:`benchmarks.perf.gpu_suite`: this package with each alone, and with both."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.perf.gpu_report import DROPS, ours_at
from benchmarks.perf.random_models import GraphedLanguage
from fastdrive_node.benchmark.implementations import FastDrive, FixedLength
from fastdrive_node.benchmark.timing import Case
from fastdrive_node.benchmark.workload import Workload
from fastdrive_node.families import VisualTokens
from fastdrive_node.planning.drafts import ReplayedDrafter
from fastdrive_node.pruning.pruner import Prefilled


class Faster:
    """This package with drafts and with CUDA graphs, each alone and both.

    Random weights have no plan to draft: a draft is the answer itself, wrong at so many evenly spread places that it
    takes the stated number of forwards.
    """

    def __init__(self, work: Workload, make: Callable[[float], FastDrive], forwards: int):
        graphed = GraphedLanguage(work.vla) if work.vla.device.type == "cuda" else None
        variants: list[tuple[GraphedLanguage | None, bool, str]] = [(None, True, "_drafts")]
        if graphed is not None:
            variants += [(graphed, False, "_graphs"), (graphed, True, "_drafts_graphs")]
        self._cases: dict[str, tuple[FastDrive, Prefilled]] = {}
        self.figures: dict[str, dict] = {}
        for drop in (DROPS[0], DROPS[-1]):
            plain = make(drop)
            state = plain.prefill(*pruned(plain))
            answer = plain.decode(state)
            wrong = np.linspace(1, len(answer) - 1, forwards + 1)[:forwards].round().astype(int).tolist()
            self._cases[ours_at(drop)] = (plain, state)
            for language, drafts, name in variants:
                ours = make(drop)
                ours.generator.language = language or ours.generator.language
                state, found = self._decode(ours, answer, wrong if drafts else None)
                same = sum(a == b for a, b in zip(found, answer, strict=False)) / len(answer)
                self._cases[ours_at(drop) + name] = (ours, state)
                self.figures[ours_at(drop) + name] = {"tokens_equal_to_plain": same, "forwards": ours.forwards}

    def _decode(
        self, ours: FastDrive, answer: tuple[int, ...], wrong: list[int] | None
    ) -> tuple[Prefilled, tuple[int, ...]]:
        """The prefilled prompt and the first answer.

        With ``wrong``, drafts come from the answer that drafts give: rounding may change a token, and all behind it.
        """
        if wrong is None:
            state = ours.prefill(*pruned(ours))
            return state, ours.decode(state)
        first = state = None
        for _ in range(8):
            drafter = ReplayedDrafter(answer, wrong, ours.vla.config.text_config.vocab_size - 1)
            ours.generator.answer = FixedLength(len(answer), drafter=drafter)
            state = ours.prefill(*pruned(ours))
            found = ours.decode(state)
            first = first or found
            if found == answer:
                break
            answer = found
        assert first is not None and state is not None
        return state, first

    def decoding(self) -> dict[str, Case]:
        """Decoding alone."""
        return {
            name: Case(lambda _, ours=ours, state=state: ours.decode(state))
            for name, (ours, state) in self._cases.items()
        }

    def whole(self) -> dict[str, Case]:
        """Patches to ids."""
        return {
            name: Case(lambda _, ours=ours: ours.end_to_end())
            for name, (ours, _) in self._cases.items()
            if name in self.figures
        }


def pruned(ours: FastDrive) -> tuple[VisualTokens, torch.Tensor]:
    """Tokens, and the indices of the kept ones."""
    tokens = ours.encode()
    return tokens, ours.prune(tokens)
