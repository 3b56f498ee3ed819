"""Recipes of kind ``vla_language``: the second stage of training a small VLA.

The tower is frozen, its tokens are computed once, and the language model learns the text from them: from whole and
pruned sets, or, with ``sets``, from sets of other sizes and cameras of which no token is dropped.
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm import tqdm

from fastdrive_node.errors import InputError
from fastdrive_node.families import load_vla
from fastdrive_node.files import write_atomically
from fastdrive_training.data.adapters import open_source
from fastdrive_training.engine.checkpoint import require_checkpoint, start_folder
from fastdrive_training.engine.config import parse_recipe, recipe_class
from fastdrive_training.engine.distributed import Processes, choose_precision
from fastdrive_training.vla.arrangement import SetForms
from fastdrive_training.vla.data import LABELS_PER_TOKEN, Arrays, prepare
from fastdrive_training.vla.planner import (
    HEADS_FILE,
    TrainablePlanner,
    VlaBatch,
    VlaBatches,
    VlaRecipe,
    VlaTrainer,
    save_vla,
)
from fastdrive_training.vla.targets import AnswerText

KIND = "vla_language"
FOREGROUND_LABELS = (2, 3, 8, 9, 10, 11, 12)  # of the simulator: road, marks, vehicles, people, lights, signs, barriers
UNPRUNED = 0.35  # of the samples show all tokens to the language model, the others 20 to 90 %
CHUNK = 16  # keyframes encoded at a time


@recipe_class
class LanguageRecipe(VlaRecipe):
    """Keys of a ``vla_language`` recipe."""

    tower_run: str = "runs/tiny_tower"  # ``out`` of the tower's recipe
    pruned_by: Literal["foreground", "random", "mixed", "none"] = "foreground"  # which tokens pruned samples show
    sets: SetForms = field(default_factory=SetForms)

    def __post_init__(self) -> None:
        if self.sets.active and self.pruned_by != "none":
            raise ValueError("sets: sets of other forms are never pruned; set pruned_by to none")


class LanguageBatches(VlaBatches):
    """Batches of the frozen tower's tokens, some of them pruned."""

    def __init__(
        self,
        data: Arrays,
        answer: AnswerText,
        recipe: LanguageRecipe,
        processes: Processes,
        tokens: np.ndarray,
        grid: tuple[int, int],
    ):
        super().__init__(data, answer, recipe, processes)
        self._tokens, self._grid, self._pruned_by, self._sets = tokens, grid, recipe.pruned_by, recipe.sets

    def visual(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        kept = None
        if self._pruned_by != "none":
            kept = keep_some(self.data.labels[indices], self._grid, rng, self._pruned_by)
        arrangement = self._sets.draw(self.data.pixels.shape[1], rng)
        visual = torch.from_numpy(self._tokens[indices]).float()
        return {"visual": visual, "kept": kept, "arrangement": arrangement}


class LanguagePlanner(TrainablePlanner):
    """The losses of the second stage."""

    def forward(self, batch: VlaBatch) -> dict[str, Tensor]:
        with self.autocast():
            return self.plan_losses(batch.visual, batch)


def train(recipe: dict, resume: bool) -> dict[str, Any]:
    """Train from a recipe's mapping and the first stage's run; returns the final losses and ``images_per_s``.

    Writes the finished VLA directory to ``<out>/vla``. An earlier run in the folder is archived unless it is resumed.

    Raises:
        RecipeError, InputError, ModelError: the recipe, the data or the first stage's run cannot be used.
        TrainingError: no checkpoint to resume, one of another recipe or tower, or a loss that is not finite.
    """
    settings = parse_recipe(LanguageRecipe, recipe)
    folder, tower = Path(settings.out), Path(settings.tower_run)
    if resume:
        require_checkpoint(folder)
    if not (tower / HEADS_FILE).exists():
        raise InputError(f"{tower / HEADS_FILE}: missing; finish the training of the recipe that tower_run names")
    processes = Processes(settings.device)
    precision = choose_precision(settings.precision, processes.device)
    vla = load_vla(tower / "vla", processes.device)
    settings.sets.check(vla)
    torch.manual_seed(settings.seed)
    planner = LanguagePlanner(vla, precision)
    with processes.first_goes_ahead():
        source = open_source(settings.dataset, settings.split, settings.dataset_kind, cameras=vla.spec.cameras)
        data = prepare(vla, source, Path(settings.cache))
        tokens = cached_tokens(planner, data, vla.encoder_fingerprint)
    for name, state in torch.load(tower / HEADS_FILE, map_location="cpu", weights_only=True).items():
        getattr(planner, name).load_state_dict(state)
    vla.model.model.language_model.requires_grad_(True)
    planner.classes.requires_grad_(False)  # of the first stage
    batches = LanguageBatches(data, AnswerText.of(vla), settings, processes, tokens, vla.grid)
    trainer = VlaTrainer(planner, batches, settings, {"encoder": vla.encoder_fingerprint}, processes)
    if processes.first and not resume:
        start_folder(folder, KIND, settings)
    figures = trainer.run(resume)
    if processes.first:
        save_vla(vla, tower / "vla", folder / "vla")
    return figures


def keep_some(
    labels: np.ndarray, grid: tuple[int, int], rng: np.random.Generator, pruned_by: str = "foreground"
) -> Tensor:
    """Which visual tokens a sample's language model sees: all in about a third of the samples, else 20 to 90 %.

    Args:
        labels: uint8 [B, C, rows, columns], class of each fine cell.
        pruned_by: "foreground" keeps those of most foreground, with some noise; "random" any; "mixed" draws one of the
            two for each sample.

    Returns:
        bool [B, C * n].
    """
    batch, cameras = labels.shape[:2]
    cells = (batch, cameras, grid[0], LABELS_PER_TOKEN, grid[1], LABELS_PER_TOKEN)
    score = np.isin(labels, FOREGROUND_LABELS).reshape(cells).mean((3, 5)).reshape(batch, -1)
    by_foreground = {"foreground": 1.0, "random": 0.0, "mixed": 0.5}[pruned_by]
    score = score + rng.uniform(0.05, 1.5, (batch, 1)) * rng.random(score.shape)
    if by_foreground < 1:  # the draws above stay those of a run by foreground alone
        score = np.where(rng.random((batch, 1)) < by_foreground, score, rng.random(score.shape))
    drop = np.where(rng.random(batch) < UNPRUNED, 0.0, rng.uniform(0.1, 0.8, batch))
    rank = score.argsort(1).argsort(1)  # 0 is the lowest
    return torch.from_numpy(rank >= (drop * score.shape[1])[:, None])


@torch.inference_mode()
def cached_tokens(planner: TrainablePlanner, data: Arrays, fingerprint: str) -> np.ndarray:
    """The frozen tower's tokens of every keyframe, float16 [K, C * n, D], computed once and kept beside the pixels."""
    path = Path(str(data.pixels.filename)).with_name(f"tokens-{fingerprint[:16]}.npy")
    if not path.exists():
        device = planner.form.visual.device
        shape = (len(data), len(planner.form.visual), planner.classes.in_features)
        with write_atomically(path) as partial:
            tokens = open_memmap(partial, "w+", np.float16, shape)
            for start in tqdm(range(0, len(data), CHUNK), desc="encode", unit="batch"):
                pixels = torch.from_numpy(np.array(data.pixels[start : start + CHUNK])).to(device)
                encoded = planner.vision.encode_patches(planner.vision.patches(pixels.flatten(0, 1)))
                tokens[start : start + CHUNK] = encoded.reshape(len(pixels), *shape[1:]).cpu().numpy()
            tokens.flush()
    return np.load(path, mmap_mode="r")
