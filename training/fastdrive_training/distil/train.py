"""Recipes of kind ``distil``: a ReconPruner that ranks tokens by what the plans of VLAs depend on, or as another one.

The module, its file and its place in the node are those of the published pruner; the training is ours. The softmax of
the scores of all cameras' tokens shall be each keyframe's target, by cross entropy. With ``scores_of`` the scores shall
be those of another pruner: so a lite pruner learns from the full one. With ``objective: plan`` there is no target: the
answers on the chosen tokens shall be those on all of them (``plan.py``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from fastdrive_node.errors import ModelError
from fastdrive_node.families import PARTS, VISION, Vla, load_vla
from fastdrive_node.families.fingerprint import pruner_fingerprint
from fastdrive_node.files import SHIPPED_PRUNER, write_atomically
from fastdrive_node.pruning.checkpoint import load_pruner, save_pruner
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.pruning.select import keep_count
from fastdrive_training.data.adapters import open_source
from fastdrive_training.data.sampling import evenly_spaced, with_future
from fastdrive_training.data.token_cache import require_cameras
from fastdrive_training.distil.config import KIND, DistilRecipe
from fastdrive_training.distil.plan import PlanTrainer
from fastdrive_training.distil.sensitivity import Teacher, TeacherPrompt
from fastdrive_training.distil.targets import (
    Used,
    encoded,
    foreground,
    own_answers,
    pruner_scores,
    sensitivities,
    whole_answers,
)
from fastdrive_training.distil.trainer import DistilBatches, DistilTrainer, Keyframes, PlanKeyframes
from fastdrive_training.engine.checkpoint import require_checkpoint, start_folder
from fastdrive_training.engine.config import RecipeError, parse_recipe
from fastdrive_training.engine.distributed import Processes
from fastdrive_training.pruner.data import require_masks
from fastdrive_training.pruner.start import new_pruner

FIGURES_FILE = "figures.json"


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
        own, held_out, vlas = prepare(settings, processes.device)
    vla = vlas[0]
    pruner = start_pruner(settings, vla)
    identity: dict[str, Any] = {"encoder": vla.encoder_fingerprint}
    if settings.scores_of:
        identity["scores_of"] = pruner_fingerprint(settings.scores_of)
    if isinstance(own, PlanKeyframes):  # they are the loss, so another one is another run
        identity["languages"] = [each.language_fingerprint for each in vlas]
        _require_tokens(settings, own)
    batches = DistilBatches(own, settings, processes)
    judged = held_out if processes.first else None
    if isinstance(own, PlanKeyframes):
        assert judged is None or isinstance(judged, PlanKeyframes)
        trainer = PlanTrainer(settings, vlas, own, pruner, batches, processes, identity, judged)
    else:
        trainer = DistilTrainer(settings, pruner, batches, vla.grid, processes, identity, judged)
    if processes.first and not resume:
        start_folder(folder, KIND, settings)
    figures = {**trainer.run(resume), "pruner": str(folder / SHIPPED_PRUNER), **identity}
    if processes.first:
        save_pruner(figures["pruner"], pruner, vla.encoder_fingerprint)
        with write_atomically(folder / FIGURES_FILE) as partial:
            partial.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def prepare(
    settings: DistilRecipe, device: torch.device
) -> tuple[Keyframes | PlanKeyframes, Keyframes | PlanKeyframes, list[Vla]]:
    """The keyframes to train on and those held out, with what is known of them, and the VLAs that are asked.

    Raises:
        InputError: data that is missing or unusable.
        ModelError: a teacher has another encoder than the first, or cannot be one.
        RecipeError: the pruner of ``scores_of`` knows the camera, and the one to train shall not.
    """
    dtype = torch.bfloat16 if device.type == "cuda" and settings.precision != "float32" else torch.float32
    first = load_vla(settings.vla, device, dtype, frozenset({VISION}) if settings.scores_of else PARTS)
    held_out = settings.val_dataset or settings.dataset
    used = [
        _use(settings, first, settings.dataset, settings.train_split, settings.masks, settings.keyframes),
        _use(settings, first, held_out, settings.val_split, settings.val_masks, settings.val_keyframes),
    ]
    tokens = [encoded(one, first) for one in used]
    names = [_names(one) for one in used]
    if settings.scores_of:
        scores = _scores_of(settings, first, used, tokens)
        parts = zip(names, tokens, scores, strict=True)
        own, other = (Keyframes(name, token, [], None, settings.power, 0.0, score) for name, token, score in parts)
        return own, other, [first]
    vlas = [first, *(_teacher(path, first, settings, device, dtype) for path in settings.teachers)]
    weight = settings.foreground_weight
    covered = [foreground(one, first) if weight else None for one in used]
    if settings.objective == "plan":
        asked = [[_questions(one, vla, own, settings) for vla in vlas] for one, own in zip(used, tokens, strict=True)]
        whole = [
            [whole_answers(one, vla, own, each, settings.teacher_batch) for vla, each in zip(vlas, its, strict=True)]
            for one, own, its in zip(used, tokens, asked, strict=True)
        ]
        found = [PlanKeyframes(*each) for each in zip(names, tokens, asked, whole, covered, strict=True)]
    else:
        how = settings.draws, settings.seed, settings.teacher_batch
        known = [[sensitivities(one, vla, own, *how) for vla in vlas] for one, own in zip(used, tokens, strict=True)]
        parts = zip(names, tokens, known, covered, strict=True)
        found = [Keyframes(*each, settings.power, weight) for each in parts]
    return found[0], found[1], vlas


def _require_tokens(settings: DistilRecipe, keyframes: PlanKeyframes) -> None:
    """Raises RecipeError: a pruning ratio leaves no token."""
    count = keyframes.tokens.shape[1] * keyframes.tokens.shape[2]
    for drop in settings.drops:
        try:
            keep_count(count, drop)
        except ValueError as error:
            raise RecipeError(f"drops: {error}; give a smaller ratio") from None


def _teacher(path: str, first: Vla, settings: DistilRecipe, device: torch.device, dtype: torch.dtype) -> Vla:
    """Raises ModelError: it cannot be loaded, or does not see with the first one's encoder and cameras."""
    teacher = load_vla(path, device, dtype)
    if teacher.encoder_fingerprint != first.encoder_fingerprint or teacher.spec.cameras != first.spec.cameras:
        raise ModelError(f"{path}: teachers: has another encoder or other cameras than {settings.vla}")
    return teacher


def _questions(used: Used, vla: Vla, tokens: np.ndarray, settings: DistilRecipe) -> list[TeacherPrompt]:
    """What a VLA is asked about each keyframe. Raises as :class:`Teacher`, its ``prompt``, and ``own_answers``."""
    teacher, found = Teacher(vla, settings.draws, settings.seed), []
    written = own_answers(used, vla, tokens) if settings.answers == "own" else np.full((len(used), 0), -1)
    alike: dict[tuple[int, int], TeacherPrompt] = {}
    for position, ids in zip(tqdm(used.positions, desc="prompts", unit="keyframe"), written, strict=True):
        asked = teacher.prompt(used.source[int(position)], ids[ids >= 0].tolist())
        first = alike.setdefault(asked.form, asked)
        if torch.equal(first.positions, asked.positions) and torch.equal(first.visual, asked.visual):
            asked = replace(asked, positions=first.positions, visual=first.visual)  # kept once: most of the memory
        found.append(asked)
    return found


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
    """The pruner on the CPU in float32, with a bias for each camera where the recipe has one; what it does not train
    needs no gradient.

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
    if settings.trained == "camera_bias":
        for name, weight in pruner.named_parameters():
            weight.requires_grad_(name == "camera_bias")
    return pruner
