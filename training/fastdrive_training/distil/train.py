"""Recipes of kind ``distil``: a ReconPruner that ranks tokens by what the plans of VLAs depend on, or as another one.

The module, its file and its place in the node are those of the published pruner; the training is ours. The softmax of
the scores of all cameras' tokens shall be each keyframe's target, by cross entropy. With ``scores_of`` the scores shall
be those of another pruner: so a lite pruner learns from the full one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from fastdrive_node.errors import ModelError
from fastdrive_node.families import PARTS, VISION, Vla, load_vla
from fastdrive_node.families.fingerprint import pruner_fingerprint
from fastdrive_node.files import write_atomically
from fastdrive_node.planning.loading import SHIPPED_PRUNER
from fastdrive_node.pruning.checkpoint import load_pruner, save_pruner
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.pruning.select import keep_count
from fastdrive_training.data.adapters import open_source
from fastdrive_training.data.sampling import evenly_spaced, with_future
from fastdrive_training.data.token_cache import require_cameras
from fastdrive_training.distil.config import KIND, DistilRecipe
from fastdrive_training.distil.targets import Used, encoded, foreground, pruner_scores, sensitivities, target
from fastdrive_training.engine.checkpoint import require_checkpoint, start_folder
from fastdrive_training.engine.config import RecipeError, parse_recipe
from fastdrive_training.engine.distributed import Processes, choose_precision
from fastdrive_training.engine.loop import LoopOptions, Losses, StepBatches, Trainer, learning_rate
from fastdrive_training.pruner.data import require_masks
from fastdrive_training.pruner.start import new_pruner

FIGURES_FILE = "figures.json"
DROPS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Keyframes:
    """K keyframes with their targets; everything stays on disk until it is read."""

    names: tuple[str, ...]
    tokens: np.ndarray  # float16 [K, C, n, D]
    sensitive: list[np.ndarray]  # of each teacher, float32 [K, C * n]
    covered: np.ndarray | None  # float32 [K, C * n]
    power: float
    foreground_weight: float
    scores: np.ndarray | None = None  # of another pruner, float32 [K, C * n]; the target where they are given

    def read(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Tokens float32 [B, C, n, D] and targets float32 [B, C * n]."""
        tokens = torch.from_numpy(self.tokens[rows].astype(np.float32))
        if self.scores is not None:
            return tokens, torch.from_numpy(self.scores[rows])
        covered = None if self.covered is None else self.covered[rows]
        wanted = target([each[rows] for each in self.sensitive], covered, self.power, self.foreground_weight)
        return tokens, torch.from_numpy(wanted)


class DistilBatches(StepBatches):
    """Shuffled keyframes."""

    def __init__(self, keyframes: Keyframes, recipe: DistilRecipe, processes: Processes):
        count = len(keyframes.names)
        super().__init__(count, recipe.batch, recipe.seed, recipe.dataset, processes.count, [processes.rank])
        self._keyframes = keyframes

    def names(self, step: int) -> list[str]:
        return [self._keyframes.names[index] for index in self.indices(step)]

    def read(self, step: int) -> list[tuple[Tensor, Tensor]]:
        indices = self.indices(step)
        return [self._keyframes.read(indices[part :: self.parts]) for part in self.own]


class DistilTrainer(Trainer):
    """Trains ``pruner`` on ``batches``; ``held_out`` are figures of every ``evaluate_every`` steps, and at the end."""

    def __init__(
        self,
        recipe: DistilRecipe,
        pruner: ReconPruner,
        batches: StepBatches,
        grid: tuple[int, int],
        processes: Processes,
        identity: dict[str, Any],
        held_out: Keyframes | None = None,
    ):
        optimizer = torch.optim.AdamW(pruner.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay)
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
        self.pruner, self._recipe, self._grid, self._held_out = pruner, recipe, grid, held_out
        self._distance = score_distance if recipe.scores_of else distance
        self._bfloat16 = choose_precision(recipe.precision, processes.device) == "bfloat16"

    def prepare(self, parts: list[Any]) -> list[Any]:
        return [tuple(tensor.to(self.processes.device) for tensor in part) for part in parts]

    def losses(self, part: tuple[Tensor, Tensor]) -> Losses:
        tokens, wanted = part
        each = self._distance(self._scores(self.wrapped["pruner"], tokens), wanted)
        return {"total": each.mean(), "each": each.detach()}

    def _scores(self, pruner: Any, tokens: Tensor) -> Tensor:
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self._bfloat16):
            scores = pruner(tokens.flatten(0, 1), self._grid)
        return scores.float().view(len(tokens), -1)

    def evaluate(self) -> dict[str, Any] | None:
        due = self.step % self._recipe.evaluate_every == 0 or self.step == self.options.total
        return self.judge(self._held_out) if due and self._held_out is not None else None

    def judge(self, keyframes: Keyframes) -> dict[str, Any]:
        """``held_out``, the loss, and ``overlap`` of keyframes that fit into memory."""
        tokens, wanted = keyframes.read(np.arange(len(keyframes.names)))
        self.pruner.eval()
        with torch.inference_mode():
            scores = torch.cat([self._scores(self.pruner, one[None].to(self.processes.device)) for one in tokens]).cpu()
        self.pruner.train()
        return {"held_out": float(self._distance(scores, wanted).mean()), "overlap": overlap(scores, wanted)}


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


def train(recipe: dict, resume: bool = False) -> dict[str, Any]:
    """Train from a recipe's mapping; returns the final loss, held-out figures and ``images_per_s``.

    Writes the pruner file into ``out``. An earlier run there is archived unless it is resumed.

    Raises:
        RecipeError, InputError, ModelError: the recipe, the data or a VLA cannot be used.
        TrainingError: no checkpoint to resume, one of another recipe, or a loss that is not finite.
    """
    settings = parse_recipe(DistilRecipe, recipe)
    folder = Path(settings.out)
    if resume:
        require_checkpoint(folder)
    processes = Processes(settings.device)
    with processes.first_goes_ahead():
        own, held_out, vla = prepare(settings, processes.device)
    pruner = start_pruner(settings, vla)
    identity = {"encoder": vla.encoder_fingerprint}
    if settings.scores_of:
        identity["scores_of"] = pruner_fingerprint(settings.scores_of)
    batches = DistilBatches(own, settings, processes)
    judged = held_out if processes.first else None
    trainer = DistilTrainer(settings, pruner, batches, vla.grid, processes, identity, judged)
    if processes.first and not resume:
        start_folder(folder, KIND, settings)
    figures = {**trainer.run(resume), "pruner": str(folder / SHIPPED_PRUNER), **identity}
    if processes.first:
        save_pruner(figures["pruner"], pruner, vla.encoder_fingerprint)
        with write_atomically(folder / FIGURES_FILE) as partial:
            partial.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def prepare(settings: DistilRecipe, device: torch.device) -> tuple[Keyframes, Keyframes, Vla]:
    """The keyframes to train on and those held out, with what all teachers gave, and the first VLA.

    Raises:
        InputError: data that is missing or unusable.
        ModelError: a teacher has another encoder than the first, or cannot be one.
        RecipeError: the pruner of ``scores_of`` knows the camera, and the one to train shall not.
    """
    dtype = torch.bfloat16 if device.type == "cuda" and settings.precision != "float32" else torch.float32
    first = load_vla(settings.vla, device, dtype, frozenset({VISION}) if settings.scores_of else PARTS)
    used = [
        _use(settings, first, settings.dataset, settings.train_split, settings.masks, settings.keyframes),
        _use(
            settings,
            first,
            settings.val_dataset or settings.dataset,
            settings.val_split,
            settings.val_masks,
            settings.val_keyframes,
        ),
    ]
    tokens = [encoded(one, first) for one in used]
    if settings.scores_of:
        scores = _scores_of(settings, first, used, tokens)
        own, held_out = (
            Keyframes(_names(one), tokens[place], [], None, settings.power, 0.0, scores[place])
            for place, one in enumerate(used)
        )
        return own, held_out, first
    sensitive: list[list[np.ndarray]] = [[], []]
    for path in (settings.vla, *settings.teachers):
        teacher = first if path == settings.vla else load_vla(path, device, dtype)
        if teacher.encoder_fingerprint != first.encoder_fingerprint or teacher.spec.cameras != first.spec.cameras:
            raise ModelError(f"{path}: teachers: has another encoder or other cameras than {settings.vla}")
        for place, one in enumerate(used):
            found = sensitivities(one, teacher, tokens[place], settings.draws, settings.seed, settings.teacher_batch)
            sensitive[place].append(found)
    weight = settings.foreground_weight
    own, held_out = (
        Keyframes(
            _names(one),
            tokens[place],
            sensitive[place],
            foreground(one, first) if weight else None,
            settings.power,
            weight,
        )
        for place, one in enumerate(used)
    )
    return own, held_out, first


def _names(used: Used) -> tuple[str, ...]:
    return tuple(used.source.names[int(index)] for index in used.positions)


def _scores_of(settings: DistilRecipe, vla: Vla, used: Sequence[Used], tokens: Sequence[np.ndarray]) -> list[np.memmap]:
    """The scores of the recipe's pruner on the keyframes of each dataset. Raises as :func:`prepare`."""
    file = str(settings.scores_of)
    pruner = load_pruner(file, vla, torch.float32)
    if pruner.cameras and not settings.camera_bias:
        raise RecipeError(f"scores_of: {file} has a bias for each camera; set camera_bias to true")
    vla.require_one_size("distillation")
    known = pruner_fingerprint(file)
    return [pruner_scores(one, vla, own, pruner, known) for one, own in zip(used, tokens, strict=True)]


def _use(settings: DistilRecipe, vla: Vla, root: str, split: str, masks: str | None, keyframes: int | None) -> Used:
    source = open_source(root, split, settings.dataset_kind, masks, vla.spec.cameras)
    require_cameras(source, vla)
    if settings.foreground_weight:
        require_masks(source)
    if settings.scores_of:  # no plan is asked for
        known = np.arange(len(source))
    else:
        answer = vla.spec.answer
        known = np.array(with_future(source, None, answer.points, answer.interval_s)[0])
    return Used(source, known[evenly_spaced(len(known), keyframes)], Path(settings.cache))


def start_pruner(settings: DistilRecipe, vla: Vla) -> ReconPruner:
    """The pruner on the CPU in float32, with a bias for each camera where the recipe has one.

    Raises RecipeError: ``start`` has a bias for each camera already, and the recipe wants none; or a width is wrong.
    """
    torch.manual_seed(settings.seed)
    cameras = vla.spec.cameras if settings.camera_bias else ()
    if settings.start is None:
        return new_pruner(vla, settings.lite_width, settings.normalise, cameras)
    stored = load_pruner(settings.start, vla, torch.float32)
    if stored.cameras and not cameras:
        raise RecipeError(f"start: {settings.start} has a bias for each camera; set camera_bias to true")
    token_width = None if stored.narrow is None else stored.width
    pruner = ReconPruner(vla.family, stored.layer.sizes(), stored.normalise, cameras, token_width)
    pruner.load_state_dict({**pruner.state_dict(), **stored.state_dict()})
    return pruner
