"""The recipe of kind ``recon_pruner``."""

from __future__ import annotations

from dataclasses import asdict, field
from typing import Annotated, Any, Literal

from pydantic import Field

from fastdrive_training.engine.config import Count, NotNegative, Positive, Seed, Steps, recipe_class
from fastdrive_training.pruner.collapse import HealthLimits
from fastdrive_training.pruner.losses import LossWeights

KIND = "recon_pruner"
# Keys that change where and how fast a run goes, not what it computes; a run may be resumed with others.
FREE_KEYS = (
    *("vla", "dataset", "masks", "val_dataset", "val_masks", "out", "cache"),
    *("device", "workers", "tensorboard"),
)
BelowOne = Annotated[float, Field(ge=0, lt=1)]


@recipe_class
class Schedule:
    """Keys of a recipe's ``schedule``."""

    decoder_pretrain_steps: Steps = 300  # decoder alone, on random masks
    steps: Count = 3000  # pruner and decoder together
    rehearsal: BelowOne = 0.25  # fraction of the images that keep random masks, so that the decoder paints its input
    batch: Count = 16  # camera images per step, over all processes
    accumulate: Count = 1  # parts that each process splits its part of the batch into, to save memory
    lr: Positive = 2e-5  # of the decoder; linear warm-up, cosine decay over the joint steps
    pruner_rate: NotNegative = 0.3  # the pruner's learning rate as a fraction of lr
    warmup_steps: Steps = 50  # of the learning rate
    final_rate: NotNegative = 0.05  # fraction of lr that the cosine ends at
    weight_decay: NotNegative = 0.01
    clip: Positive = 1.0  # norm of the gradient, decoder and pruner each
    ema_decay: BelowOne = 0.0  # of the pruner's moving average over the joint steps, which is then shipped; 0: none
    log_every: Count = 20
    evaluate_every: Count = 500
    checkpoint_every: Count = 200

    @property
    def total(self) -> int:
        return self.decoder_pretrain_steps + self.steps

    def rehearsed(self, step: int, batch: int) -> int:
        """How many images of a step's batch have random masks: all of them while the decoder trains alone."""
        return batch if step < self.decoder_pretrain_steps else round(self.rehearsal * batch)


@recipe_class
class ReconRecipe:
    """Keys of the recipe. Paths are relative to the working directory."""

    vla: str
    dataset: str
    out: str  # folder of the run, see docs/training_the_pruner.md
    dataset_kind: str = "auto"  # layout of the datasets: nuscenes, folder, kitti, waymo
    cameras: tuple[str, ...] | None = None  # by the dataset's names; None takes all
    train_split: str = "train"
    masks: str | None = None  # folder of `fastdrive annotate`; None: the masks that the dataset has
    val_dataset: str | None = None  # None: the same dataset
    val_split: str = "val"
    val_masks: str | None = None
    features: Literal["cached", "live"] = "cached"  # tokens of the frozen encoder: on disk, or encoded in each step
    cache: str = "runs/token_cache"
    seed: Seed = 0
    device: str = "auto"  # cpu, cuda, cuda:<index>; auto is cuda where there is one
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto is bfloat16 on a GPU that has it
    workers: Steps = 2  # processes that read images, for each training process; 0: it reads them itself
    keyframes: Count | None = None  # of the train split, evenly spaced; None uses all
    val_keyframes: Count = 100
    decoder_layers: Count = 6
    decoder_offset: bool = True  # a learned vector is added to every token that enters the decoder; not in the paper
    normalise: bool = True  # RMSNorm before the Hadamard product
    lite_width: Count | None = None  # of a lite pruner, a multiple of the head size; None: the width of the tokens
    pruner_init: int | None = None  # layer of the VLA's language model that PrunerLayer starts as; None: random
    decoder_init: int | None = None  # first of its layers that the decoder starts as; None: random
    mask: Literal["pruner", "oracle", "random"] = "pruner"  # the latter two train the decoder alone, for comparison
    tensorboard: bool = True  # events beside log.jsonl, where the package is installed
    loss: LossWeights = field(default_factory=LossWeights)
    schedule: Schedule = field(default_factory=Schedule)
    health: HealthLimits = field(default_factory=HealthLimits)

    def __post_init__(self) -> None:
        if self.lite_width and self.pruner_init is not None:
            raise ValueError("pruner_init: a layer of the VLA does not fit a lite pruner; use null, or no lite_width")

    @property
    def identity(self) -> dict[str, Any]:
        """The keys that say what the run computes; a checkpoint serves the recipe that it was made by."""
        keys = {key: value for key, value in asdict(self).items() if key not in FREE_KEYS}
        keys["schedule"].pop("accumulate")
        return keys
