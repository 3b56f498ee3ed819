"""A dataset in the nuScenes schema from simulated scenes, one world each, written by worker processes.

Beside the tables of ``nuscenes_schema`` a dataset holds, in its root:

- ``masks/<CAMERA>/<sample token>.png``: the class of each pixel, uint8 (``types.Label``);
- ``splits.json``: scene names by split;
- ``extras.json``: by sample token the ego state, command, future and history (``scene_writer.keyframe_extras``), and
  near a scene's end the objects of that future (``scene_writer.future_objects``); of the closed loop's scenes what
  ``drive.recorder`` adds (``lane_offset_m``, ``other_speeds``);
- what the scenario adds to ``extras.json`` and as images (``scenarios.SceneLog``); of step-out that is
  ``step_out/<CAMERA>/<sample token>.png``: uint8, the number of the pedestrian that a pixel shows, where there is one;
- ``sim.json``: the arguments, the label table, the foreground groups, and each scene's world seed and origin.

A scene is the unit of work: its rows are written to ``.work/`` by one rename after its images, so a run that was
stopped continues with the same arguments. The tables are put together when all scenes are there.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import cv2
from tqdm import tqdm

from fastdrive_node.errors import SimError, UsageError
from fastdrive_node.files import write_atomically
from fastdrive_node.supervision.child import die_with
from fastdrive_sim import __version__
from fastdrive_sim.domains import DEFAULT_DOMAIN
from fastdrive_sim.nuscenes_schema import SCENE_TABLES, VERSION, shared_tables
from fastdrive_sim.rig import DEFAULT_RIG, RIGS
from fastdrive_sim.scenarios import DEFAULT
from fastdrive_sim.scene_writer import SIM_HZ, ScenePlan, scene_steps, write_scene
from fastdrive_sim.sources import (
    ChoosesKeyframes,
    ImageSpec,
    RendererLike,
    SimulationLike,
    Sources,
    SourcesFactory,
    simulator_sources,
)
from fastdrive_sim.types import FOREGROUND_GROUPS, SPLITS, Label

_HELD_OUT_FRACTION = 0.15  # of the scenes, for val and test each
_FORMAT = 2
EPOCH_US = 1_700_000_000_000_000
_WORK = ".work"
# Values of arguments that are not recorded: datasets of before an argument was there have them too.
_OMITTED: dict[str, object] = {
    "scenario": DEFAULT,
    "rig": DEFAULT_RIG,
    "domain": DEFAULT_DOMAIN,
    "other_speeds": 0,
    "family": (),
}


@dataclass(frozen=True)
class DatasetSpec(ImageSpec):
    """What decides a dataset's bytes. ``split`` None divides the scenes over all three."""

    keyframes: int
    split: str | None = None
    hz: int = 2
    scene_keyframes: int = 40
    other_speeds: int = field(default=0, kw_only=True)  # labels of each keyframe for so many other speeds

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, value in (("keyframes", self.keyframes), ("scene-keyframes", self.scene_keyframes)):
            if value < 1:
                raise UsageError(f"--{option} {value}: give 1 or more")
        if not 0 <= self.other_speeds <= 16:
            raise UsageError(f"--other-speeds {self.other_speeds}: give 0 to 16")
        if self.split is not None and self.split not in SPLITS:
            raise UsageError(f"--split {self.split}: give one of {', '.join(SPLITS)}")
        if self.hz < 1 or SIM_HZ % self.hz:
            raise UsageError(f"--hz {self.hz}: keyframes are taken from {SIM_HZ} Hz; give a divisor of {SIM_HZ}")

    def arguments(self) -> dict:
        """What a rerun must repeat to continue a dataset; some of it only where it is not the default."""
        given = {key: value for key, value in asdict(self).items() if key not in _OMITTED or value != _OMITTED[key]}
        given = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}  # as in JSON
        return {"format": _FORMAT, "generator": f"fastdrive_sim {__version__}", **given}

    def scenes(self) -> list[ScenePlan]:
        """The scenes to write."""
        return plan_scenes(self)

    def simulation(self, sources: Sources, plan: ScenePlan) -> SimulationLike | ChoosesKeyframes:
        """What happens in one of them."""
        return sources.simulation(plan.world_seed, scene_steps(plan.keyframes, self.hz) / SIM_HZ, self.scenario)

    @property
    def label(self) -> str:
        """The start of scene names and the seed of the worlds; each scenario has its own."""
        return str(self.seed) if self.scenario == DEFAULT else f"{self.seed}-{self.scenario}"


def plan_scenes(spec: DatasetSpec) -> list[ScenePlan]:
    """The scenes of a dataset. World seeds are hashes of (seed, split, index), so splits and seeds share no world."""
    sizes = [spec.scene_keyframes] * (spec.keyframes // spec.scene_keyframes)
    if spec.keyframes % spec.scene_keyframes:
        sizes.append(spec.keyframes % spec.scene_keyframes)
    splits = [spec.split] * len(sizes) if spec.split else _deal(len(sizes))
    scene_us = scene_steps(spec.scene_keyframes, spec.hz) * 1_000_000 // SIM_HZ
    return [
        ScenePlan(
            name=f"sim{spec.label}-{split}-{index:04d}",
            split=split,
            world_seed=_world_seed(spec.label, split, index),
            keyframes=size,
            start_us=EPOCH_US + index * scene_us,
        )
        for index, (size, split) in enumerate(zip(sizes, splits, strict=True))
    ]


def _deal(scenes: int) -> list[str]:
    """Splits for scenes in order: 70 % train, 15 % val, 15 % test, each at least one where there are three."""
    held_out = max(1, round(scenes * _HELD_OUT_FRACTION)) if scenes >= 3 else 0
    return ["train"] * (scenes - 2 * held_out) + ["val"] * held_out + ["test"] * held_out


def _world_seed(label: str, split: str, index: int) -> int:
    digest = hashlib.sha256(f"fastdrive_sim world/{label}/{split}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 11  # 53 bits: exact in any JSON reader


def write_dataset(
    out: Path, spec: DatasetSpec, workers: int = 2, factory: SourcesFactory = simulator_sources, progress: bool = True
) -> dict:
    """Write a dataset, or the rest of one, and return its counts.

    ``workers`` processes write the scenes; 0 writes them in this process. ``keyframes_per_s`` counts what this call
    wrote, start of the workers included, and is None where there was nothing left to write.
    Raises SimError where ``out`` holds anything else, or a dataset of other arguments.
    """
    out = Path(out)
    if finished := _open_folder(out, spec):
        return {**finished, "keyframes_per_s": None}
    plans = spec.scenes()
    _warn_of_empty_splits(spec, plans)
    todo = [plan for plan in plans if not _shard(out, plan).exists()]
    started = time.perf_counter()
    done = sum(plan.keyframes for plan in plans) - sum(plan.keyframes for plan in todo)
    bar = tqdm(
        total=spec.keyframes, initial=done, unit="keyframe", mininterval=1, file=sys.stderr, disable=not progress
    )
    with bar:
        written = 0
        for keyframes in _run_scenes(out, spec, todo, workers, factory):
            written += keyframes
            bar.update(keyframes)
    elapsed = time.perf_counter() - started
    counts = _merge(out, spec, plans)
    rate = round(written / elapsed, 2) if todo else None
    return {**counts, "keyframes_per_s": rate}


def _warn_of_empty_splits(spec: DatasetSpec, plans: Sequence[ScenePlan]) -> None:
    empty = [split for split in SPLITS if split not in {plan.split for plan in plans}]
    if empty and spec.split is None:
        print(
            f"warning: of {len(plans)} scenes none is for {' and '.join(empty)}, all are for train; give more "
            "--keyframes, fewer --scene-keyframes, or a --split",
            file=sys.stderr,
        )


def _open_folder(out: Path, spec: DatasetSpec) -> dict | None:
    """Claim the folder for these arguments. Returns the counts where the dataset is already complete."""
    claim = out / _WORK / "arguments.json"
    if out.exists() and not out.is_dir():
        raise SimError(f"{out}: is a file; give a folder")
    for record in (out / "sim.json", claim):
        if record.exists():
            finished = _read_claim(record, out, spec)
            return finished.get("counts")
    leftovers = [path.name for path in out.iterdir() if path.name != _WORK] if out.exists() else []
    if leftovers:
        raise SimError(f"{out}: holds {leftovers[0]!r} and is no dataset of fastdrive sim; give a new folder")
    claim.parent.mkdir(parents=True, exist_ok=True)
    _write_whole(claim, json.dumps({"arguments": spec.arguments()}))
    return None


def _read_claim(record: Path, out: Path, spec: DatasetSpec) -> dict:
    try:
        content = json.loads(record.read_text())
        written = content["arguments"]
        now = spec.arguments()
        different = [key for key in {**now, **written} if written.get(key) != now.get(key)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SimError(f"{record}: is not readable as a record of fastdrive sim; give a new folder") from error
    if different:
        changes = ", ".join(f"{key} {_shown(written, key)} (now {_shown(now, key)})" for key in different)
        raise SimError(f"{out}: was begun with {changes}; repeat those arguments or give a new folder")
    return content


def _shown(arguments: dict, key: str) -> object:
    value = arguments.get(key, _OMITTED.get(key))
    return "none" if value == () else value


def _shard(out: Path, plan: ScenePlan) -> Path:
    return out / _WORK / f"{plan.name}.json"


def _run_scenes(
    out: Path, spec: DatasetSpec, plans: Sequence[ScenePlan], workers: int, factory: SourcesFactory
) -> Iterator[int]:
    """Write scenes; yields the keyframes of each when it is on disk."""
    if not plans:
        return
    if workers == 0:
        with closing(_SceneWriter(out, spec, factory)) as writer:
            for plan in plans:
                yield writer.write(plan)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(plans)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(os.getpid(), out, spec, factory),
    )
    try:
        for future in as_completed([pool.submit(_write_in_worker, plan) for plan in plans]):
            yield future.result()
    except BrokenProcessPool as error:
        raise SimError(f"{out}: a worker process died; repeat the command to continue, with fewer --workers") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _SceneWriter:
    """One process's simulation and renderer, and where its scenes go."""

    def __init__(self, out: Path, spec: DatasetSpec, factory: SourcesFactory) -> None:
        self._out, self._spec = out, spec
        self._sources = factory()
        self._renderer: RendererLike = self._sources.renderer(spec.width, spec.height, RIGS[spec.rig])

    def write(self, plan: ScenePlan) -> int:
        simulation = self._spec.simulation(self._sources, plan)
        rows = write_scene(self._out, plan, self._spec, self._spec.hz, simulation, self._renderer)
        _write_whole(_shard(self._out, plan), json.dumps(rows, separators=(",", ":")))
        return len(rows["extras"])

    def close(self) -> None:
        self._renderer.close()


_worker: Callable[[], _SceneWriter]  # of this worker process


def _start_worker(parent: int, out: Path, spec: DatasetSpec, factory: SourcesFactory) -> None:
    global _worker
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the whole group: end at once, without a traceback
    os.environ["LP_NUM_THREADS"] = "1"  # one worker per core: Mesa's rasteriser must not start threads of its own
    cv2.setNumThreads(1)
    # made with the first scene, for an error here would reach nobody
    _worker = cache(lambda: _SceneWriter(out, spec, factory))


def _write_in_worker(plan: ScenePlan) -> int:
    return _worker().write(plan)


def _merge(out: Path, spec: DatasetSpec, plans: Sequence[ScenePlan]) -> dict:
    """Put the scenes' rows together into the tables; ``sim.json`` comes last and makes the dataset complete."""
    work, tables = out / _WORK, out / _WORK / "tables"
    shutil.rmtree(tables, ignore_errors=True)
    tables.mkdir()
    for name, rows in shared_tables(spec.width, spec.height, RIGS[spec.rig]).items():
        with _Joined(tables / f"{name}.json", "[", "]") as file:
            file.add(map(_dump, rows))
    totals, classes, of_scenario, scenes = Counter(), Counter(), Counter(), {}
    with ExitStack() as stack:
        files = {name: stack.enter_context(_Joined(tables / f"{name}.json", "[", "]")) for name in SCENE_TABLES}
        extras = stack.enter_context(_Joined(work / "extras.json", "{", "}"))
        for plan in plans:
            shard = json.loads(_shard(out, plan).read_text())
            for name, file in files.items():
                file.add(map(_dump, shard["tables"][name]))
            extras.add(f"{json.dumps(key)}:{_dump(value)}" for key, value in shard["extras"].items())
            scenes[plan.name] = shard["scene"]
            totals.update(keyframes=len(shard["extras"]))
            totals.update(images=len(shard["tables"]["sample_data"]))
            totals.update(annotations=len(shard["tables"]["sample_annotation"]))
            classes.update(shard["classes"])
            of_scenario.update(shard["counts"])
    counts = {"scenes": len(plans), **totals, "classes": dict(sorted(classes.items()))}
    counts |= of_scenario
    shutil.rmtree(out / VERSION, ignore_errors=True)
    tables.rename(out / VERSION)
    (work / "extras.json").replace(out / "extras.json")
    splits = {split: [plan.name for plan in plans if plan.split == split] for split in SPLITS}
    _write_whole(out / "splits.json", json.dumps(splits, indent=1))
    _write_whole(out / "sim.json", json.dumps(_sim_json(spec, counts, scenes), indent=1))
    shutil.rmtree(work)
    return counts


def _sim_json(spec: DatasetSpec, counts: dict, scenes: dict) -> dict:
    return {
        "arguments": spec.arguments(),
        "seed": spec.seed,
        "size": {"width": spec.width, "height": spec.height},
        "labels": {label.name.lower(): int(label) for label in Label},
        "foreground_groups": {name: [int(label) for label in group] for name, group in FOREGROUND_GROUPS.items()},
        "counts": counts,
        "scenes": scenes,
    }


class _Joined:
    """A JSON array or object, written item by item, one on a line."""

    def __init__(self, path: Path, opening: str, closing: str) -> None:
        self._file, self._opening, self._closing, self._separator = path.open("w"), opening, closing, "\n"

    def __enter__(self) -> _Joined:
        self._file.write(self._opening)
        return self

    def add(self, items: Iterable[str]) -> None:
        for item in items:
            self._file.write(self._separator + item)
            self._separator = ",\n"

    def __exit__(self, *_: object) -> None:
        self._file.write(f"\n{self._closing}\n")
        self._file.close()


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _write_whole(path: Path, text: str) -> None:
    with write_atomically(path) as partial:
        partial.write_text(text)
