"""Weights of the cameras for Prune2Drive, found offline on keyframes that no reported figure uses.

The paper (Xiong et al., CVPR 2026, arXiv 2508.13305) finds a keep ratio for each view by black-box optimisation. With
six numbers and a noisy objective a random search is enough here: equal weights, draws over the whole simplex, then
small steps from the best one so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from fastdrive_node.errors import AnswerError, InputError
from fastdrive_node.families import LayeredLanguageModel, Vla
from fastdrive_node.planning.generator import Answer, Generator
from fastdrive_node.pruning.baselines.prune2drive import Prune2Drive, Prune2DriveInput
from fastdrive_node.pruning.pruner import PruningContext
from fastdrive_node.pruning.select import keep_count
from fastdrive_training.data.adapters.base import ImageSource
from fastdrive_training.data.sampling import with_future
from fastdrive_training.data.token_cache import encode_items, require_cameras
from fastdrive_training.evaluation.metrics.horizons import step_errors

REFUSED_M = 10.0  # what an answer that is no plan counts as
STEP = 0.5  # deviation of the logarithm of a weight in a small step
BATCH = 16


@dataclass(frozen=True)
class Trial:
    """One set of weights and what it cost."""

    weights: tuple[float, ...]  # of the views, their sum is 1
    error: float


def search_weights(
    objective: Callable[[tuple[float, ...]], float], views: int, trials: int, seed: int = 0, progress: bool = True
) -> list[Trial]:
    """Every trial in order; the first has equal weights.

    Args:
        objective: weights -> error, less is better.
    """
    generator = np.random.default_rng(seed)
    done: list[Trial] = []
    for index in tqdm(range(trials), desc="weights", unit="trial", disable=not progress):
        if index == 0:
            weights = np.full(views, 1 / views)
        elif index <= trials // 2:
            weights = generator.dirichlet(np.ones(views))
        else:
            weights = np.array(best_trial(done).weights) * np.exp(STEP * generator.standard_normal(views))
            weights /= weights.sum()
        chosen = tuple(float(weight) for weight in weights)
        done.append(Trial(chosen, objective(chosen)))
    return done


def best_trial(trials: Sequence[Trial]) -> Trial:
    """The one of the least error; of equal ones the first."""
    return min(trials, key=lambda trial: trial.error)


class PlanningError:
    """The objective: mean L2 over the points of all plans under Prune2Drive, in m, on a fixed set of items.

    Where torch runs the language model as a whole only, the pruner acts on the tower's tokens.

    Args:
        limit: items, evenly spread over those with a full future.
        drop: pruning ratio p.

    Raises:
        InputError: no item has a future as long as the VLA's plans, an image is unreadable, a camera is missing, or
            ``drop`` is out of range.
    """

    def __init__(self, source: ImageSource, vla: Vla, limit: int, drop: float):
        self._vla, self._generator = vla, Generator(vla)
        try:
            self._keep = keep_count(vla.tokens, drop)
        except ValueError as error:
            raise InputError(f"--{error}") from error
        require_cameras(source, vla)
        answer = vla.spec.answer
        chosen, _ = with_future(source, limit, answer.points, answer.interval_s)
        self._items = [source[index] for index in chosen]
        self._futures = [item.known_future(answer.points, answer.interval_s) for item in self._items]
        self._prompts = [self._generator.prompt(item.known_history, item.command) for item in self._items]
        self._tokens = [tokens for _, tokens in encode_items(self._items, vla, "encoding")]

    def __len__(self) -> int:
        return len(self._items)

    def __call__(self, weights: tuple[float, ...]) -> float:
        layered = isinstance(self._generator.language, LayeredLanguageModel)
        pruner = Prune2Drive(weights) if layered else Prune2DriveInput(weights)
        errors = []
        for start in range(0, len(self), BATCH):
            span = slice(start, start + BATCH)
            contexts = [PruningContext.of(tokens, self._vla.grid) for tokens in self._tokens[span]]
            answers = self._generator.generate(pruner, contexts, self._prompts[span], self._keep)
            errors += [
                self._error(each.answer, future) for each, future in zip(answers, self._futures[span], strict=True)
            ]
        return float(np.mean(errors))

    def _error(self, answer: Answer, future: np.ndarray) -> float:
        try:
            plan = self._generator.answer.parse(answer.ids).waypoints_m
        except AnswerError:
            return REFUSED_M
        return min(REFUSED_M, float(step_errors(plan, future).mean()))
