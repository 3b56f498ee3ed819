"""The recipe of kind ``recon_pruner``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import yaml

from fastdrive_training.engine.config import RecipeError
from fastdrive_training.engine.schedule import Schedule
from fastdrive_training.pruner.collapse import HealthLimits
from fastdrive_training.pruner.losses import LossWeights
from fastdrive_training.pruner.step import MASKS

KIND = "recon_pruner"
RECIPE_FILE = "recipe.yaml"
# Keys that change where and how fast a run goes, not what it computes; a run may be resumed with others.
FREE_KEYS = (
    *("vla", "dataset", "masks", "val_dataset", "val_masks", "out", "cache"),
    *("device", "workers", "tensorboard"),
)


@dataclass(frozen=True)
class ReconRecipe:
    """Keys of the recipe. Paths are relative to the working directory."""

    vla: str
    dataset: str
    out: str  # folder of the run, see docs/training_the_pruner.md
    dataset_kind: str = "auto"  # layout of the data sets: nuscenes, folder, kitti, waymo
    cameras: tuple[str, ...] | None = None  # by the data set's names; None takes all
    train_split: str = "train"
    masks: str | None = None  # folder of `fastdrive annotate`; None: the masks that the data set has
    val_dataset: str | None = None  # None: the same data set
    val_split: str = "val"
    val_masks: str | None = None
    features: str = "cached"  # tokens of the frozen encoder: on disk, or "live": encoded in each step
    cache: str = "runs/token_cache"
    seed: int = 0
    device: str = "auto"  # cpu, cuda, cuda:<index>; auto is cuda where there is one
    precision: str = "auto"  # float32, bfloat16; auto is bfloat16 on a GPU that has it
    workers: int = 2  # threads that read images, a process
    keyframes: int | None = None  # of the train split, evenly spread; None uses all
    val_keyframes: int = 100
    decoder_layers: int = 6
    normalise: bool = True  # RMSNorm before the Hadamard product
    pruner_init: int | None = None  # layer of the VLA's language model that PrunerLayer starts as; None: random
    decoder_init: int | None = None  # first of its layers that the decoder starts as; None: random
    mask: str = "pruner"  # for comparison: oracle, random (no pruner is trained, the decoder is)
    tensorboard: bool = True  # events beside log.jsonl, where the package is installed
    loss: LossWeights = field(default_factory=LossWeights)
    schedule: Schedule = field(default_factory=Schedule)
    health: HealthLimits = field(default_factory=HealthLimits)

    def __post_init__(self) -> None:
        _one_of("precision", self.precision, ("auto", "float32", "bfloat16"))
        _one_of("features", self.features, ("cached", "live"))
        _one_of("mask", self.mask, MASKS)
        for key in ("decoder_layers", "val_keyframes", "workers"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: must be at least 1")
        if self.keyframes is not None and self.keyframes < 1:
            raise ValueError("keyframes: must be at least 1, or null for all")
        if not 0 <= self.seed < 1 << 31:
            raise ValueError("seed: must be in 0..2147483647")

    @property
    def identity(self) -> str:
        """Digest of what the run computes; a checkpoint serves the recipe that it was made by."""
        keys = {key: value for key, value in asdict(self).items() if key not in FREE_KEYS}
        keys["schedule"].pop("accumulate")
        return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """The resolved recipe as RECIPE_FILE; ``fastdrive train`` takes it."""
        folder.mkdir(parents=True, exist_ok=True)
        keys = json.loads(json.dumps(asdict(self)))  # tuples become lists
        (folder / RECIPE_FILE).write_text(yaml.safe_dump({"kind": KIND, **keys}, sort_keys=False))


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{key}: must be one of {', '.join(allowed)}, is {value!r}")


def pick_device(name: str) -> str:
    """``auto`` is CUDA where there is one, else the CPU."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def usable_device(name: str) -> str:
    """The device of a recipe. Raises RecipeError where this machine has it not."""
    picked = pick_device(name)
    try:
        device = torch.device(picked)
    except RuntimeError:
        raise RecipeError(f"device: {name!r} is no device; use auto, cpu, cuda or cuda:<index>") from None
    there = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type not in ("cpu", "cuda") or (device.index or 0) >= there:
        raise RecipeError(f"device: {name!r} is not on this machine; use auto or cpu")
    return picked


def usable_precision(name: str, device: str) -> str:
    """``auto`` is bfloat16 on a GPU that has it. Raises RecipeError: bfloat16 on a GPU without."""
    gpu = torch.device(device).type == "cuda"
    has_it = not gpu or torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bfloat16" and not has_it:
        raise RecipeError("precision: this GPU has no bfloat16; use auto or float32")
    if name != "auto":
        return name
    return "bfloat16" if gpu and has_it else "float32"
