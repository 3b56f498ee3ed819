"""Recipes of kind ``vla_tower``: the first of two stages, whose order makes training a small VLA possible on a CPU.

Vision tower and language model learn together. The tower's tokens must name the class of each cell; the hidden states
of the language model must give the waypoints, the light ahead, the gaps, and the answer's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, cross_entropy

from fastdrive_node.families import load_vla
from fastdrive_node.types import CAMERAS
from fastdrive_training.data.adapters import open_source
from fastdrive_training.engine.checkpoint import require_checkpoint, start_folder
from fastdrive_training.engine.config import parse_recipe, recipe_class
from fastdrive_training.engine.distributed import Processes, choose_precision
from fastdrive_training.vla.data import LABELS_PER_TOKEN, Arrays, prepare
from fastdrive_training.vla.planner import (
    CLASSES,
    WEIGHTS,
    TrainablePlanner,
    VlaBatch,
    VlaBatches,
    VlaRecipe,
    VlaTrainer,
    save_vla,
)
from fastdrive_training.vla.targets import AnswerText
from fastdrive_training.vla.tiny_model import build_tiny_vla

KIND = "vla_tower"


@recipe_class
class TowerRecipe(VlaRecipe):
    """Keys of a ``vla_tower`` recipe."""

    cameras: tuple[str, ...] = CAMERAS  # of the VLA, by the dataset's names
    # Tokens of these cameras carry gradient in every step, and those of one other, drawn anew; all would cost more.
    gradient_cameras: tuple[str, ...] = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT")

    def __post_init__(self) -> None:
        for camera in self.gradient_cameras:
            if camera not in self.cameras:
                raise ValueError(f"gradient_cameras: {camera!r} is no camera of the VLA; use {', '.join(self.cameras)}")


class TowerBatches(VlaBatches):
    """Batches of pixels, their light and sharpness varied."""

    def __init__(self, data: Arrays, answer: AnswerText, recipe: TowerRecipe, processes: Processes):
        super().__init__(data, answer, recipe, processes)
        self._always = [recipe.cameras.index(camera) for camera in recipe.gradient_cameras]

    def visual(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        pixels = _jitter(torch.from_numpy(self.data.pixels[indices]), rng)
        others = [camera for camera in range(pixels.shape[1]) if camera not in self._always]
        drawn = [int(rng.choice(others))] if others else []
        return {"visual": pixels, "learning": (*self._always, *drawn)}


class TowerPlanner(TrainablePlanner):
    """The losses of the first stage."""

    def forward(self, batch: VlaBatch) -> dict[str, Tensor]:
        with self.autocast():
            tokens = self.encode(batch.visual, batch.learning)
            plan = self.plan_losses(tokens, batch)
        return {"dense": WEIGHTS["dense"] * self.dense_loss(tokens, batch.labels, batch.learning), **plan}

    def encode(self, pixels: Tensor, learning: Sequence[int]) -> Tensor:
        """Tokens [B, C * n, D] of pixels [B, C, 3, H, W]; those of the cameras ``learning`` carry gradient."""
        batch, cameras = pixels.shape[:2]
        resting = [camera for camera in range(cameras) if camera not in learning]

        def run(chosen: list[int]) -> Tensor:
            patches = self.vision.patches(pixels[:, chosen].flatten(0, 1))
            return self.vision.encode_patches(patches).unflatten(0, (batch, len(chosen)))

        tokens = run(list(learning))
        if resting:
            with torch.no_grad():
                still = run(resting)
            tokens = torch.cat([tokens, still.to(tokens.dtype)], 1)
        order = torch.tensor([*learning, *resting]).argsort()
        return tokens[:, order.to(tokens.device)].flatten(1, 2)

    def dense_loss(self, tokens: Tensor, labels: Tensor, cameras: Sequence[int]) -> Tensor:
        """Cross entropy of the class of each fine cell; tokens [B, C * n, D], labels [B, C, rows, columns]."""
        batch, total = labels.shape[:2]
        (rows, columns), fine, chosen = self.grid, LABELS_PER_TOKEN, list(cameras)
        picked = tokens.unflatten(1, (total, rows * columns))[:, chosen].float()
        scores = self.classes(picked).reshape(batch, len(chosen), rows, columns, fine, fine, CLASSES)
        cells = labels[:, chosen].reshape(batch, len(chosen), rows, fine, columns, fine).transpose(3, 4)
        return cross_entropy(scores.flatten(0, 5), cells.flatten().long())


def train(recipe: dict, resume: bool) -> dict[str, Any]:
    """Train from a recipe's mapping; returns the final losses and ``images_per_s``.

    Writes a VLA directory whose tower is trained to ``<out>/vla``. An earlier run in the folder is archived unless it
    is resumed.

    Raises:
        RecipeError, InputError: the recipe or the data cannot be used.
        TrainingError: no checkpoint to resume, one of another recipe, or a loss that is not finite.
    """
    settings = parse_recipe(TowerRecipe, recipe)
    folder = Path(settings.out)
    if resume:
        require_checkpoint(folder)
    with TemporaryDirectory() as untrained:
        build_tiny_vla(untrained, settings.seed, cameras=settings.cameras)
        processes = Processes(settings.device)  # only now: in a group, transformers saves in the first process alone
        precision = choose_precision(settings.precision, processes.device)
        vla = load_vla(untrained, processes.device)
        with processes.first_goes_ahead():
            source = open_source(settings.dataset, settings.split, settings.dataset_kind, cameras=vla.spec.cameras)
            data = prepare(vla, source, Path(settings.cache))
        vla.model.requires_grad_(True)
        torch.manual_seed(settings.seed)
        planner = TowerPlanner(vla, precision)
        batches = TowerBatches(data, AnswerText.of(vla), settings, processes)
        trainer = VlaTrainer(planner, batches, settings, {}, processes)
        if processes.first and not resume:
            start_folder(folder, KIND, settings)
        figures = trainer.run(resume)
        if processes.first:
            save_vla(vla, Path(untrained), folder / "vla")
            planner.save_heads(folder)
    return figures


def _jitter(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Vary light, exposure, color cast, sharpness and sensor noise by keyframe; pixels uint8 [B, C, 3, H, W]."""

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (len(pixels), 1, channels, 1, 1))).float()

    values = (pixels.float() - 128) * draw(0.7, 1.3) * draw(0.9, 1.1, 3) + 128 + draw(-30, 30)
    soft = avg_pool2d(values.flatten(0, 2), 3, stride=1, padding=1, count_include_pad=False).view_as(values)
    values = torch.lerp(values, soft, draw(0, 1))
    grain = torch.from_numpy(rng.standard_normal((1, *values.shape[1:]), dtype=np.float32))  # one for all: enough
    return (values + grain * draw(0, 8)).clamp(0, 255).to(torch.uint8)
