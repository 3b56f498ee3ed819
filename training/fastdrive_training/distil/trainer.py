"""The training of a pruner on targets that are known beforehand: the plan's sensitivity, or another pruner's scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.pruning.select import keep_count
from fastdrive_training.distil.config import DistilRecipe
from fastdrive_training.distil.sensitivity import TeacherPrompt
from fastdrive_training.distil.targets import target
from fastdrive_training.engine.distributed import Processes, choose_precision
from fastdrive_training.engine.loop import LoopOptions, Losses, StepBatches, Trainer, learning_rate

DROPS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Asked:
    """What a VLA is asked about a keyframe, and what it answers on all tokens."""

    prompt: TeacherPrompt
    whole: Tensor  # ``answer_states``, float32 [A, D]


@dataclass(frozen=True)
class PlanKeyframes:
    """K keyframes with what VLAs are asked about them; tokens and answers stay on disk until they are read."""

    names: tuple[str, ...]
    tokens: np.ndarray  # float16 [K, C, n, D]
    questions: list[list[TeacherPrompt]]  # of each VLA, of each keyframe
    whole: Sequence[np.ndarray]  # of each VLA, float32 [K, A, D], see ``whole_answers``
    covered: np.ndarray | None  # fraction of foreground, float32 [K, C * n]

    def read(self, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens float32 [B, C, n, D], foreground float32 [B, C * n] (zeros where it is not known), rows int64 [B]."""
        tokens = torch.from_numpy(self.tokens[rows].astype(np.float32))
        covered = torch.zeros(tokens.shape[0], tokens.shape[1] * tokens.shape[2])
        if self.covered is not None:
            covered = torch.from_numpy(self.covered[rows])
        return tokens, covered, torch.from_numpy(rows)

    def asked(self, vla: int, rows: Sequence[int]) -> list[Asked]:
        """Of one of the VLAs, about keyframes."""
        questions, whole = self.questions[vla], torch.from_numpy(self.whole[vla][list(rows)])
        return [Asked(questions[row], own[-questions[row].answer :]) for row, own in zip(rows, whole, strict=True)]


@dataclass(frozen=True)
class Keyframes:
    """K keyframes with their targets; everything stays on disk until it is read."""

    names: tuple[str, ...]
    tokens: np.ndarray  # float16 [K, C, n, D]
    sensitive: Sequence[np.ndarray]  # of each teacher, float32 [K, C * n]
    covered: np.ndarray | None  # float32 [K, C * n]
    power: float
    foreground_weight: float
    scores: np.ndarray | None = None  # of another pruner, float32 [K, C * n]; the target where they are given

    def read(self, rows: np.ndarray) -> tuple[Tensor, ...]:
        """Tokens float32 [B, C, n, D] and targets float32 [B, C * n]."""
        tokens = torch.from_numpy(self.tokens[rows].astype(np.float32))
        if self.scores is not None:
            return tokens, torch.from_numpy(self.scores[rows])
        covered = None if self.covered is None else self.covered[rows]
        wanted = target([each[rows] for each in self.sensitive], covered, self.power, self.foreground_weight)
        return tokens, torch.from_numpy(wanted)


class DistilBatches(StepBatches):
    """Shuffled keyframes."""

    def __init__(self, keyframes: Keyframes | PlanKeyframes, recipe: DistilRecipe, processes: Processes):
        count = len(keyframes.names)
        super().__init__(count, recipe.batch, recipe.seed, recipe.dataset, processes.count, [processes.rank])
        self._keyframes = keyframes

    def names(self, step: int) -> list[str]:
        return [self._keyframes.names[index] for index in self.indices(step)]

    def read(self, step: int) -> list[tuple[Tensor, ...]]:
        indices = self.indices(step)
        return [self._keyframes.read(indices[part :: self.parts]) for part in self.own]


class DistilTrainer(Trainer):
    """Trains ``pruner`` on ``batches``; ``held_out`` gives figures every ``evaluate_every`` steps, and at the end."""

    def __init__(
        self,
        recipe: DistilRecipe,
        pruner: ReconPruner,
        batches: StepBatches,
        grid: tuple[int, int],
        processes: Processes,
        identity: dict[str, Any],
        held_out: Keyframes | PlanKeyframes | None = None,
    ):
        trained = [weight for weight in pruner.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=recipe.rate, weight_decay=recipe.weight_decay)
        schedule = learning_rate(optimizer, recipe.warmup_steps, recipe.steps, recipe.final_rate, recipe.warmup_steps)
        options = LoopOptions(
            recipe.steps,
            recipe.clip,
            recipe.log_every,
            recipe.checkpoint_every,
            images_per_step=batches.batch * max(1, len(pruner.cameras)),
            workers=recipe.workers,
            identity={**recipe.identity, **identity},
            tensorboard=recipe.tensorboard,
        )
        super().__init__(Path(recipe.out), batches, {"pruner": pruner}, optimizer, schedule, options, processes)
        self.pruner, self.recipe, self._grid, self._held_out = pruner, recipe, grid, held_out
        self._distance = score_distance if recipe.scores_of else distance
        self._bfloat16 = choose_precision(recipe.precision, processes.device) == "bfloat16"

    def prepare(self, parts: list[Any]) -> list[Any]:
        return [tuple(tensor.to(self.processes.device) for tensor in part) for part in parts]

    def losses(self, part: tuple[Tensor, ...]) -> Losses:
        tokens, wanted = part
        each = self._distance(self.scores(self.wrapped["pruner"], tokens), wanted)
        return {"total": each.mean(), "each": each.detach()}

    def scores(self, pruner: Any, tokens: Tensor) -> Tensor:
        """Scores float32 [B, C * n] of tokens [B, C, n, D]."""
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self._bfloat16):
            scores = pruner(tokens.flatten(0, 1), self._grid)
        return scores.float().view(len(tokens), -1)

    def evaluate(self) -> dict[str, Any] | None:
        due = self.step % self.recipe.evaluate_every == 0 or self.step == self.options.total
        return self.judge(self._held_out) if due and self._held_out is not None else None

    def judge(self, keyframes: Keyframes | PlanKeyframes) -> dict[str, Any]:
        """``held_out``, the loss, and ``overlap`` of keyframes that fit into memory."""
        assert isinstance(keyframes, Keyframes)
        tokens, wanted = keyframes.read(np.arange(len(keyframes.names)))
        scores = self.scores_now(tokens)
        return {"held_out": float(self._distance(scores, wanted).mean()), "overlap": overlap(scores, wanted)}

    @torch.inference_mode()
    def scores_now(self, tokens: Tensor) -> Tensor:
        """Scores [K, C * n] on the CPU, of tokens [K, C, n, D], as in the node."""
        self.pruner.eval()
        scores = torch.cat([self.scores(self.pruner, one[None].to(self.processes.device)) for one in tokens]).cpu()
        self.pruner.train()
        return scores


def distance(scores: Tensor, wanted: Tensor) -> Tensor:
    """Cross entropy [B] between the softmax of scores [B, N] and a target [B, N], less the target's own entropy."""
    known = wanted.clamp(min=torch.finfo(wanted.dtype).tiny).log()
    return (wanted * (known - log_softmax(scores, -1))).sum(-1)


def score_distance(scores: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference [B] of scores [B, N] and those of another pruner: their signs and ratios count, too."""
    return (scores - wanted).square().mean(-1)


def overlap(scores: Tensor, wanted: Tensor) -> dict[str, float]:
    """Fraction of the target's first K tokens that are among the scores' first K, by pruning ratio."""
    found = {}
    for drop in DROPS:
        keep = keep_count(scores.shape[1], drop)
        ours, theirs = (values.topk(keep, 1).indices for values in (scores, wanted))
        chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(1, ours, True)
        found[f"{drop:g}"] = float(chosen.gather(1, theirs).float().mean())
    return found
