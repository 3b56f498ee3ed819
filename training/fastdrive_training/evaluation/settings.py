"""What to compare, and the rows that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastdrive_node.errors import UsageError
from fastdrive_node.pruning.catalog import NAMES, PRUNERS, reads_given_file
from fastdrive_node.types import PruningRatio
from fastdrive_training.data.sampling import Shard

SEEDED = frozenset({"random"})  # pruners that a seed changes


@dataclass(frozen=True)
class OpenLoopSettings:
    """What to compare, and where to keep it."""

    pruners: tuple[str, ...] = PRUNERS
    drops: tuple[float, ...] = (0.25, 0.5, 0.75)
    seeds: int = 1  # of the random pruner
    pruner_file: Path | None = None  # for reconpruner and its variants
    shuffled: bool = False  # each sample sees the images of a sample of another scene
    limit: int | None = None  # samples, evenly spread over the dataset
    batch: int = 16
    out: Path | None = None  # folder of a run that can be resumed; None keeps nothing
    cache: Path | None = None  # folder for encoder features; None: ``features`` in ``out``
    timing: bool = True  # whether times are measured
    masks: Path | None = None  # folder of ``fastdrive annotate`` that the oracle reads; None: the dataset's own
    shard: Shard | None = None  # the part of the samples that is run; None: all of them

    def __post_init__(self) -> None:
        unknown = [name for name in self.pruners if name not in NAMES]
        if unknown:
            raise UsageError(f"--pruners: {unknown[0]!r} is not known; known are {', '.join(NAMES)}")
        try:
            for drop in self.drops:
                PruningRatio(drop)
        except ValueError as error:
            raise UsageError(f"--{error}") from error
        for name in ("seeds", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name}: must be at least 1")
        if self.limit is not None and self.limit < 1:
            raise UsageError("--limit: must be at least 1")

    @property
    def rows(self) -> list[RowKey]:
        """Every row of the table, each once, in the order of the pruners as given."""
        keys = []
        for name in self.pruners:
            if name == "none":
                keys.append(RowKey("none", 0.0))
                continue
            for drop in self.drops:
                keys += [RowKey(name, drop, seed) for seed in range(self.seeds if name in SEEDED else 1)]
        return list(dict.fromkeys(keys))

    @property
    def reads_pruner(self) -> bool:
        """Whether a row depends on the pruner file."""
        return any(map(reads_given_file, self.pruners))

    @property
    def folder(self) -> Path | None:
        """Of the run: ``out``, or for a shard its own folder in it; None: nothing is kept."""
        return self.out / f"shard-{self.shard}" if self.out and self.shard else self.out

    @property
    def features(self) -> Path | None:
        """Where encoder features are kept between runs; None: nowhere."""
        return self.cache or (self.out / "features" if self.out else None)


@dataclass(frozen=True)
class RowKey:
    """One row of the table."""

    pruner: str
    drop: float
    seed: int = 0

    @property
    def kind(self) -> str:
        """Pruner and ratio; rows of one kind cost the same."""
        return f"{self.pruner}-{self.drop:g}"

    @property
    def slug(self) -> str:
        """A name that can be a file's."""
        return f"{self.kind}-{self.seed}"
