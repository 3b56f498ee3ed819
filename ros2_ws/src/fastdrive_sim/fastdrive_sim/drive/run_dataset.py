"""The runs of a drive as the scenes of a dataset: a planner's states with the expert's labels (DAgger)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fastdrive_node.errors import InputError, UsageError
from fastdrive_sim.dataset import EPOCH_US, DatasetSpec
from fastdrive_sim.domains import DEFAULT_DOMAIN
from fastdrive_sim.drive.kept import KEPT_START
from fastdrive_sim.drive.redrive import redrive
from fastdrive_sim.drive.storage import END_START, load_run
from fastdrive_sim.drive.suite import SUITES
from fastdrive_sim.drive.types import CONSTANT_VELOCITY, EXPERT, RECORD_S
from fastdrive_sim.scenarios import CLOSED_LOOP
from fastdrive_sim.scene_writer import ScenePlan
from fastdrive_sim.sources import Sources
from fastdrive_sim.types import SceneRecording

SCENE_US = 300 * 1_000_000  # between the starts of two scenes; no run is as long
_STEP = b'{"type":"step"'


@dataclass(frozen=True)
class RunFile:
    """A run's file; ``steps`` of its record."""

    path: str
    digest: str
    steps: int

    @property
    def name(self) -> str:
        """Of the scene. Runs of one scenario in two drives have two names."""
        path = Path(self.path)
        row = re.sub(r"[^A-Za-z0-9.]+", "_", path.parent.name)
        return f"run-{row}-{path.stem}-{self.digest[:8]}"

    def keyframes(self, hz: int) -> int:
        """The most that it can have."""
        return int((self.steps - 1) * RECORD_S * hz + 1e-6) + 1


class RecordedRun:
    """A run of a drive as a scene. Raises InputError where its file cannot be read or driven again."""

    def __init__(self, path: Path, other_speeds: int = 0):
        self._path, self._other_speeds = path, other_speeds

    def choose(self, keyframes: int, hz: int) -> SceneRecording:
        """All keyframes of the run, at most so many."""
        run = load_run(self._path, earlier=True)
        recording = redrive(run, self._path, hz, self._other_speeds).recording(slice(keyframes))
        return replace(recording, about={**recording.about, "row": run.row.name})


@dataclass(frozen=True, kw_only=True)
class RunDatasetSpec(DatasetSpec):
    """What decides the bytes of a dataset of runs; ``run_dataset_spec`` makes one."""

    runs: tuple[RunFile, ...]

    def arguments(self) -> dict:
        """The runs by their contents, wherever they lie; not what follows from them."""
        given = {key: value for key, value in super().arguments().items() if key not in asdict(self)}
        names = ["split", "hz", "width", "height", "jpeg_quality", "rig"]
        if self.other_speeds:
            names.append("other_speeds")
        if self.domain != DEFAULT_DOMAIN:
            names.append("domain")
        digest = hashlib.sha256("\n".join(run.digest for run in self.runs).encode()).hexdigest()
        return {**given, **{name: getattr(self, name) for name in names}, "runs": len(self.runs), "runs_sha256": digest}

    def scenes(self) -> list[ScenePlan]:
        assert self.split is not None  # by run_dataset_spec
        return [
            ScenePlan(run.name, self.split, 0, run.keyframes(self.hz), EPOCH_US + index * SCENE_US, run.path)
            for index, run in enumerate(self.runs)
        ]

    def simulation(self, sources: Sources, plan: ScenePlan) -> RecordedRun:
        return RecordedRun(Path(plan.run), self.other_speeds)


def run_dataset_spec(folder: Path, rows: Sequence[str] = (), split: str | None = None, **more: Any) -> RunDatasetSpec:
    """
    Args:
        folder: ``--out`` of a drive.
        rows: of the drive; empty: all that a node drove.
        split: of all scenes; None: train.
        more: fields of ``DatasetSpec``.

    Raises:
        InputError: no runs there, or one that cannot be read.
        UsageError: an unknown row, runs of scenarios of the standard suite, or a field that is out of range.
    """
    found = sorted(each.name for each in (folder / "runs").iterdir()) if (folder / "runs").is_dir() else []
    if not found:
        raise InputError(f"{folder}: no runs of a drive in it; give the --out of `fastdrive sim drive`")
    for row in rows:
        if row not in found:
            raise UsageError(f"--row {row}: not in the drive; give one of {', '.join(found)}")
    chosen = rows or [row for row in found if row not in (EXPERT, CONSTANT_VELOCITY)]
    # Not those that begin with a dot: a worker was killed while it wrote one.
    paths = [path.resolve() for row in chosen for path in sorted((folder / "runs" / row).glob("[!.]*.jsonl"))]
    for path in paths:
        _refuse_suite(path)
    runs = tuple(run for run in map(_run_file, paths) if run.steps)  # a run that was not tried has none
    if not runs:
        raise InputError(f"{folder}: no run of {', '.join(chosen) or 'a node'} in it; drive with --pruners")
    keyframes = sum(run.keyframes(more.get("hz", DatasetSpec.hz)) for run in runs)
    fixed = {"keyframes": keyframes, "seed": 0, "scenario": CLOSED_LOOP}
    return RunDatasetSpec(runs=runs, split=split or "train", **fixed, **more)


def _refuse_suite(path: Path) -> None:
    """Raises UsageError for a run of the suites, by which models are judged."""
    seed = path.stem.rpartition("-")[2]
    if seed.isdecimal() and int(seed) < max(SUITES.values()):
        raise UsageError(
            f"--from-drive: {path.parent.name}/{path.name} is of the standard suite, which is for evaluation; drive "
            f"other scenarios: fastdrive sim drive --seed {max(SUITES.values())} or more"
        )


def _run_file(path: Path) -> RunFile:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a folder of a drive") from error
    # a dataset does not depend on what is known of kept tokens, nor on the version that wrote the file
    apart = KEPT_START.encode(), END_START.encode()
    content = b"".join(line for line in content.splitlines(keepends=True) if not line.startswith(apart))
    return RunFile(str(path), hashlib.sha256(content).hexdigest(), content.count(_STEP))
