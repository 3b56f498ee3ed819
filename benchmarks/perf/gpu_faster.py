"""Cases of :mod:`benchmarks.perf.gpu_suite`: this package with drafts and CUDA graphs, each alone and both; stages."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.perf.gpu_report import ENDS, STOCK, ours_at
from benchmarks.perf.random_models import GraphedLanguage
from fastdrive_node.benchmark.implementations import FastDrive, FixedLength, HfGenerate
from fastdrive_node.benchmark.timing import Case
from fastdrive_node.benchmark.workload import Workload
from fastdrive_node.families import VisualTokens
from fastdrive_node.planning.drafts import ReplayedDrafter
from fastdrive_node.pruning.pruner import Prefilled


class Faster:
    """This package with drafts and with CUDA graphs, each alone and both.

    Random weights have no plan to draft: a draft is the answer itself, wrong at so many evenly spread places that it
    takes the stated number of forwards. Each pruning ratio has graphs of its own, as a vehicle has one ratio.

    Args:
        make: this package at a pruning ratio, without drafts and graphs.
        forwards: behind the prefill, of a drafted answer.
        graphs: measure the graphs too; on a CPU their steps run one by one.
    """

    def __init__(self, work: Workload, make: Callable[[float], FastDrive], forwards: int, graphs: bool):
        self._make = make
        self._graphed = {drop: GraphedLanguage(work.vla) for drop in ENDS} if graphs else {}
        self._cases: dict[str, tuple[FastDrive, Prefilled]] = {}
        self.figures: dict[str, dict] = {}
        for drop in ENDS:
            plain = make(drop)
            answer = plain.decode(plain.prefill(*pruned(plain)))
            wrong = np.linspace(1, len(answer) - 1, forwards + 1)[:forwards].round().astype(int).tolist()
            graphed = self._graphed.get(drop)
            variants: list[tuple[GraphedLanguage | None, bool, str]] = [(None, True, "_drafts")]
            if graphed is not None:
                variants += [(graphed, False, "_graphs"), (graphed, True, "_drafts_graphs")]
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

    def prefills(self) -> dict[str, Case]:
        """Prefills by graphs, of prompts without drafts."""
        cases = {}
        for drop, language in self._graphed.items():
            ours = self._make(drop)
            ours.generator.language = language
            cases[f"{ours_at(drop)}_graphs"] = prefill_case(ours)
        return cases

    def decoding(self) -> dict[str, Case]:
        """Decoding alone."""
        return {
            name: Case(lambda _, ours=ours, state=state: ours.decode(state))
            for name, (ours, state) in self._cases.items()
        }

    def whole(self) -> dict[str, Case]:
        """Patches to ids."""
        return {name: Case(lambda _, ours=ours: ours.end_to_end()) for name, (ours, _) in self._cases.items()}


def pruned(ours: FastDrive) -> tuple[VisualTokens, torch.Tensor]:
    """Tokens, and the indices of the kept ones."""
    tokens = ours.encode()
    return tokens, ours.prune(tokens)


def encode_cases(work: Workload) -> dict[str, Case]:
    """Images to visual tokens, which no ratio changes."""
    stock, ours = HfGenerate(work, 1), FastDrive(work, 1)
    return {STOCK: Case(lambda _: stock.encode()), "ours": Case(lambda _: ours.encode())}


def prefill_case(ours: FastDrive) -> Case:
    """The prefill alone, of tokens that are encoded and pruned before it."""
    return Case(lambda state: ours.prefill(*state), lambda: pruned(ours))
