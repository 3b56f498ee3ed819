"""Recipes of kind ``recon_pruner``: train a ReconPruner for the frozen vision tower of a VLA."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from fastdrive_node.models import SHIPPED_PRUNER
from fastdrive_node.planning.vla import Vla, load_vla
from fastdrive_node.pruning.files import save_pruner
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.types import InputError
from fastdrive_training.nuscenes_data import KeyframeDataset
from fastdrive_training.recipe import parse_recipe
from fastdrive_training.recon_data import ReconBatches
from fastdrive_training.recon_health import HealthLimits
from fastdrive_training.recon_model import LossWeights, ReconDecoder
from fastdrive_training.recon_trainer import ReconTrainer, Schedule
from fastdrive_training.scoring import score_figures, score_tokens
from fastdrive_training.token_cache import TokenCache, build_token_cache, camera_order

FIGURES_FILE = "figures.json"
PATHS = ("vla", "dataset", "val_dataset", "out", "cache")


@dataclass(frozen=True)
class ReconRecipe:
    """Keys of the recipe. Paths are relative to the working directory."""

    vla: str
    dataset: str
    out: str  # folder of the run: checkpoint.pt, log.jsonl, reconpruner.safetensors, figures.json
    train_split: str = "train"
    val_dataset: str | None = None  # None: the same data set
    val_split: str = "val"
    cache: str = "runs/token_cache"
    seed: int = 0
    device: str = "auto"
    precision: str = "float32"  # or bfloat16
    keyframes: int | None = None  # of the train split, evenly spread; None uses all
    val_keyframes: int = 100
    decoder_layers: int = 6
    normalise: bool = True  # RMSNorm before the Hadamard product
    loss: LossWeights = field(default_factory=LossWeights)
    schedule: Schedule = field(default_factory=Schedule)
    health: HealthLimits = field(default_factory=HealthLimits)

    def __post_init__(self) -> None:
        _one_of("precision", self.precision, ("float32", "bfloat16"))
        if self.decoder_layers < 1:
            raise ValueError("decoder_layers: must be at least 1")
        if self.keyframes is not None and self.keyframes < 1:
            raise ValueError("keyframes: must be at least 1, or null for all")
        if self.val_keyframes < 1:
            raise ValueError("val_keyframes: must be at least 1")

    @property
    def identity(self) -> str:
        """Digest of the recipe without its paths; a checkpoint serves the recipe that it was made by."""
        keys = {key: value for key, value in asdict(self).items() if key not in PATHS}
        return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{key}: must be one of {', '.join(allowed)}, is {value!r}")


def train(recipe: dict, resume: bool = False) -> dict:
    """Train from a recipe's mapping; returns the final losses, held-out figures and ``images_per_s``.

    Writes the pruner file only where the run came to its end in health.

    Raises:
        RecipeError, InputError, ModelError: the recipe, the data or the VLA cannot be used.
        TrainingError, CollapseError: see :class:`ReconTrainer`.
    """
    settings = parse_recipe(ReconRecipe, recipe)
    vla = load_vla(settings.vla, pick_device(settings.device))
    trainer = _trainer(settings, vla)
    figures = trainer.run(resume)
    pruner_file = trainer.out / SHIPPED_PRUNER
    save_pruner(pruner_file, trainer.pruner, vla.encoder_fingerprint)
    figures = {**figures, "pruner": str(pruner_file), "encoder": vla.encoder_fingerprint}
    (trainer.out / FIGURES_FILE).write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def pick_device(name: str) -> str:
    """``auto`` is CUDA where there is one, else the CPU."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _trainer(settings: ReconRecipe, vla: Vla) -> ReconTrainer:
    train_data, train_cache = _data(settings, vla, settings.dataset, settings.train_split)
    _, val_cache = _data(settings, vla, settings.val_dataset or settings.dataset, settings.val_split)
    torch.manual_seed(settings.seed)
    text_config, vision = vla.model.config.text_config, vla.model.config.vision_config
    pruner = ReconPruner.from_config(text_config, settings.normalise).to(vla.device)
    cell = vision.patch_size * vision.spatial_merge_size
    decoder = ReconDecoder(text_config, settings.decoder_layers, cell).to(vla.device)
    cameras = camera_order(vla)
    chosen = spread(len(train_data), settings.keyframes)
    batches = ReconBatches(
        train_data, train_cache, cameras, vla.spec.image_size, settings.schedule.batch, settings.seed, chosen
    )
    rows = spread(len(val_cache.tokens), settings.val_keyframes)
    val_tokens, val_coverage = val_cache.tokens[rows], val_cache.coverage[rows]
    return ReconTrainer(
        pruner,
        decoder,
        batches,
        vla.grid,
        Path(settings.out),
        settings.schedule,
        settings.loss,
        settings.health,
        seed=settings.seed,
        identity=f"{settings.identity}/{vla.encoder_fingerprint}",
        evaluate=lambda: score_figures(score_tokens(pruner, val_tokens, vla.grid), val_coverage),
        precision=settings.precision,
    )


def _data(settings: ReconRecipe, vla: Vla, root: str, split: str) -> tuple[KeyframeDataset, TokenCache]:
    dataset = KeyframeDataset(root, split)
    if not dataset.has_masks:
        raise InputError(f"{dataset.root}: no masks folder; the reconstruction needs foreground masks")
    return dataset, build_token_cache(dataset, vla, settings.cache)


def spread(total: int, count: int | None) -> np.ndarray:
    """int64 positions of ``count`` keyframes of ``total``, evenly spread; all where ``count`` is None or larger."""
    if count is None or count >= total:
        return np.arange(total)
    return (np.arange(count) * total) // count
