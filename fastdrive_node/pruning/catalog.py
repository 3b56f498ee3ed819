"""The pruners' names, and what may be done with ReconPruner's scores. Nothing here imports torch: ``--help`` needs it.

``registry`` makes a pruner of a name.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastdrive_node.errors import InputError
from fastdrive_node.types import TEMPORAL_RANGES

PRUNERS = (
    "none",
    "random",
    "uniform",
    "coverage",
    "ring-view",
    "fastv",
    "sparsevlm",
    "sparsevlm-unmerged",
    "vispruner",
    "divprune",
    "cdpruner",
    "prune2drive",
    "prune2drive-input",
    "dart",
    "prumerge",
    "matryoshka",
    "tokenpacker",
    "reconpruner",
    "oracle",
)
FILES = {  # pruners with a file of their own in the VLA directory
    "reconpruner-lite": "reconpruner_lite.safetensors",
    "reconpruner-plan": "reconpruner_plan.safetensors",
}
ADAPTIVE_THRESHOLD = 0.05  # a token whose probability to be foreground is one in twenty is kept


@dataclass(frozen=True)
class TemporalSettings:
    """Weights, and what ends a state.

    Raises:
        ValueError: a value is out of range; the text names it.
    """

    change: float = 0.5  # weight of what is new; 0: none
    memory: float = 0.5  # fraction of the score of the set before, in [0, 1)
    reach: int = 1  # rows and columns around a token's place in which its like is looked for in the set before
    max_gap_s: float = 0.25  # between the sets' t0: after more, the vehicle's own motion has changed every token
    max_slip_m: float = 2.0  # between where the vehicle is and where its speed says that it must be
    max_slip_rad: float = 0.35  # likewise of its heading

    def __post_init__(self) -> None:
        own = {"reach": (0, 64), "max_slip_m": (0, 100), "max_slip_rad": (0, 3.15)}
        for name, (low, high) in {**TEMPORAL_RANGES, **own}.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: {getattr(self, name)} is not in {low:g} .. {high:g}")


@dataclass(frozen=True)
class ScoreOptions:
    """What is done with scores before the best are taken; by default nothing.

    Raises:
        InputError: a value is out of range; the text names it.
    """

    calibrated: bool = False  # rank tokens of all cameras by their probability to be foreground
    keep_threshold: float = 0.0  # keep tokens of at least this probability; 0: as many as the pruning ratio leaves
    k_min: int = 16  # with a threshold, tokens that are kept at least; the pruning ratio says how many at most
    temporal: TemporalSettings | None = None
    even_spacing: float = 0.0  # fraction of K that is spread evenly over each camera, whatever its scores; 0: none
    # Cells of 2x2 tokens are ranked by mean score; the best keep their tokens, each other one becomes its mean.
    pooled: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.keep_threshold < 1:
            raise InputError(f"keep_threshold: {self.keep_threshold} is not in [0, 1)")
        if self.k_min < 1:
            raise InputError(f"k_min: {self.k_min}: must be at least 1")
        if not 0 <= self.even_spacing <= 1:
            raise InputError(f"even_spacing: {self.even_spacing} is not in [0, 1]")
        if self.pooled and self.even_spacing:
            raise InputError("pooled_cells, even_spacing: each says which tokens are kept; turn one of them off")

    @property
    def needs_calibration(self) -> bool:
        return self.calibrated or self.keep_threshold > 0

    @property
    def changes_scores(self) -> bool:
        return self.needs_calibration or self.temporal is not None

    @property
    def active(self) -> bool:
        return self.changes_scores or self.reads_all is not None

    @property
    def parameters(self) -> list[str]:
        """The node's parameters of the options that are on."""
        on = {
            "calibrated_scores": self.calibrated,
            "keep_threshold": self.keep_threshold > 0,
            "temporal_change, temporal_memory": self.temporal is not None,
            "even_spacing": self.even_spacing > 0,
            "pooled_cells": self.pooled,
        }
        return [name for name, is_on in on.items() if is_on]

    @property
    def reads_all(self) -> str | None:
        """The option by which tokens of any score may be kept, so that an engine must give all; None: none is on."""
        return "even_spacing" if self.even_spacing else "pooled_cells" if self.pooled else None


VARIANTS = {
    "reconpruner-calibrated": ScoreOptions(calibrated=True),
    "reconpruner-adaptive": ScoreOptions(keep_threshold=ADAPTIVE_THRESHOLD),
    "reconpruner-temporal": ScoreOptions(temporal=TemporalSettings()),
    "reconpruner-even25": ScoreOptions(even_spacing=0.25),
    "reconpruner-even50": ScoreOptions(even_spacing=0.5),
    "reconpruner-even75": ScoreOptions(even_spacing=0.75),
    "reconpruner-pooled": ScoreOptions(pooled=True),
    "reconpruner-plan-pooled": ScoreOptions(pooled=True),
}
VARIANT_FILES = {"reconpruner-plan-pooled": FILES["reconpruner-plan"]}  # variants of a file of their own
NAMES = (*PRUNERS, *FILES, *VARIANTS)


def reads_given_file(name: str) -> bool:
    """Whether a pruner reads the pruner file that a node or an evaluation is given, not one of its own or none."""
    return name == "reconpruner" or (name in VARIANTS and name not in VARIANT_FILES)
