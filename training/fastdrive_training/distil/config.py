"""The recipe of kind ``distil``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from fastdrive_training.engine.config import Count, Fraction, NotNegative, Positive, Seed, Steps, recipe_class

KIND = "distil"
# Keys that change where and how fast a run goes, not what it computes; a run may be resumed with others.
FREE_KEYS = (
    *("vla", "teachers", "start", "scores_of", "dataset", "masks", "val_dataset", "val_masks", "out", "cache"),
    *("device", "workers", "tensorboard", "teacher_batch", "log_every", "checkpoint_every"),
)

PLAN_KEYS = ("objective", "drops", "noise", "answers")  # of objective plan
SENSITIVITY_KEYS = ("power", "draws")  # of objective sensitivity
YOUNGER_KEYS = {"answers": "true", "trained": "all"}  # with the values that all runs had before the keys were there


@recipe_class
class DistilRecipe:
    """Keys of the recipe. Paths are relative to the working directory."""

    vla: str  # gives the encoder, and is the first teacher
    dataset: str  # with ego motion, but for scores_of
    out: str  # folder of the run, as that of a recon_pruner recipe
    teachers: tuple[str, ...] = ()  # more VLAs with the same encoder; the pruner then belongs to none of them
    objective: Literal["sensitivity", "plan"] = "sensitivity"  # plan: the answers on the kept tokens
    drops: tuple[Fraction, ...] = (0.25, 0.5, 0.75)  # of objective plan: pruning ratios, in turn, one a step
    noise: NotNegative = 1.0  # of objective plan: factor of the Gumbel noise on the scores
    # Of objective plan, what a VLA reads: the true answer, or its own on all tokens. Where a VLA is often wrong, true
    # answers are next to impossible to it, and the divergence behind them says nothing of its plans.
    answers: Literal["true", "own"] = "true"
    scores_of: str | None = None  # a pruner file whose scores are the target; no VLA plans then, and masks are not read
    lite_width: Count | None = None  # of a lite pruner, a multiple of the head size; None: the width of the tokens
    start: str | None = None  # the pruner file that it starts as; None: random weights
    camera_bias: bool = True  # a number for each camera that is added to its scores
    trained: Literal["all", "camera_bias"] = "all"  # camera_bias: the layer stays that of start, a control
    normalise: bool = True  # RMSNorm before the Hadamard product; of a pruner without ``start``
    foreground_weight: Fraction = 0.0  # of the target is foreground by the masks, the rest the plan's sensitivity; of
    # objective plan: weight of the scores' distance from the foreground in the loss, that of the plan is the rest
    power: Positive = 0.5  # of the sensitivity in the target; 0.5 keeps a few large ones from being all of it
    draws: Count = 2  # sampled answers for each keyframe
    dataset_kind: str = "auto"
    train_split: str = "train"
    masks: str | None = None  # folder of `fastdrive annotate`, for foreground_weight; None: the dataset's own
    val_dataset: str | None = None  # None: the same dataset
    val_split: str = "val"
    val_masks: str | None = None
    keyframes: Count | None = None  # of those with a future, evenly spaced; None uses all
    val_keyframes: Count = 100
    cache: str = "runs/distil_cache"  # the encoder's tokens, and what the teachers gave
    teacher_batch: Count = 8  # keyframes of a pass through a teacher, where their prompts have one length
    seed: Seed = 0
    steps: Count = 1500
    batch: Count = 64  # keyframes per step, over all processes
    rate: Positive = 1e-3  # linear warm-up, cosine decay
    warmup_steps: Steps = 50
    final_rate: NotNegative = 0.02  # fraction of rate that the cosine ends at
    weight_decay: NotNegative = 0.01
    clip: Positive = 1.0
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    workers: Steps = 2
    tensorboard: bool = True
    log_every: Count = 50
    evaluate_every: Count = 500
    checkpoint_every: Count = 250

    def __post_init__(self) -> None:
        if self.start and self.lite_width:
            raise ValueError("lite_width: the file of start has its width; set one of them")
        if self.trained == "camera_bias" and not (self.start and self.camera_bias):
            raise ValueError("trained: camera_bias needs start, whose layer stays as it is, and camera_bias: true")
        if self.scores_of and (self.teachers or self.foreground_weight):
            key = "teachers" if self.teachers else "foreground_weight"
            raise ValueError(f"{key}: not with scores_of, which is the whole target")
        if self.objective != "plan" and self.answers != "true":
            raise ValueError("answers: own is of objective plan; set objective: plan")
        if self.objective == "plan":
            if self.scores_of:
                raise ValueError("objective: plan asks VLAs, and scores_of asks a pruner; set one of them")
            if not self.drops or any(not 0 < drop < 1 for drop in self.drops):
                raise ValueError(f"drops: {list(self.drops)}: give pruning ratios between 0 and 1")

    @property
    def identity(self) -> dict[str, Any]:
        """The keys that say what the run computes; a checkpoint serves the recipe that it was made by."""
        found = {key: value for key, value in asdict(self).items() if key not in FREE_KEYS}
        # what does nothing decides nothing; checkpoints of before objective plan, and of before a key, serve on
        for key in PLAN_KEYS if self.objective == "sensitivity" else SENSITIVITY_KEYS:
            del found[key]
        for key, before in YOUNGER_KEYS.items():
            if found.get(key) == before:
                del found[key]
        return found
