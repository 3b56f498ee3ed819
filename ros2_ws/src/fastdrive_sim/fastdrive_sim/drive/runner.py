"""Drives the scenarios of a suite in one or more processes, one node each, and writes a file a run."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path

from fastdrive_node.cluster import Cluster, map_items
from fastdrive_node.errors import InputError
from fastdrive_node.supervision.child import die_with
from fastdrive_sim.drive.families import FAMILIES
from fastdrive_sim.drive.loop import LoopSettings, drive, with_expert
from fastdrive_sim.drive.out_folder import pruner_key
from fastdrive_sim.drive.planners import DrivePlanner, constant_velocity_planner, expert_planner
from fastdrive_sim.drive.storage import check_file, join_hashes, load_run, read_ending, save_run
from fastdrive_sim.drive.suite import ScenarioKey
from fastdrive_sim.drive.summary import ScoredRun, score_file
from fastdrive_sim.drive.types import CONSTANT_VELOCITY, EXPERT, FAILED, DriveRow, RunRecord
from fastdrive_sim.sources import RendererLike
from fastdrive_sim.types import Camera

_MESA = ("LP_NUM_THREADS", "0")  # of a worker, before OpenGL loads: Mesa's own threads take the others' cores
DEATHS = 3  # runs in a row that a node's end made fail, after which a row's other runs are not tried


@dataclass(frozen=True)
class DriveSettings:
    """What all runs share."""

    out: Path
    vla: str  # absolute path of the VLA directory
    cameras: tuple[str, ...]
    size: tuple[int, int]  # of the images, width and height
    realtime: bool = False
    loop: LoopSettings = field(default_factory=LoopSettings)
    node_command: tuple[str, ...] | None = None  # None: the installed node
    parameter_file: Path | None = None  # of the node; VLA, pruner and drop of a row win
    renderer: Callable[[int, int, Sequence[Camera]], RendererLike] | None = None  # None: the simulator's
    pruners_since_ns: Mapping[str, int] = field(default_factory=dict)  # see ``out_folder.claim``
    latencies_s: tuple[float, ...] = ()  # recorded ones, of which each plan draws; none: that of the row

    def latencies_of(self, row: DriveRow) -> tuple[float, ...]:
        return self.latencies_s or (row.latency_s,)


@dataclass(frozen=True)
class Chunk:
    """Runs of one row that one process does, one after another."""

    row: DriveRow
    scenarios: tuple[ScenarioKey, ...]

    def __str__(self) -> str:
        first, last = (f"{each.family} {each.seed}" for each in (self.scenarios[0], self.scenarios[-1]))
        return f"{self.row.name}, {first}" + (f" to {last}" if last != first else "")


def run_path(out: Path, row: DriveRow, scenario: ScenarioKey) -> Path:
    return out / "runs" / row.name / f"{scenario.family}-{scenario.seed}.jsonl"


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes for ``drive_all`` and ``score_all``, which end with this one; none for one worker.

    An error in the block, or Ctrl-C, ends them at once: what waits is not begun, and runs in progress are lost.
    """
    if workers == 1:
        yield None
        return
    context, others = get_context("spawn"), set(active_children())
    with ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(os.getpid(),)) as pool:
        try:
            yield pool
        except BaseException:
            for worker in set(active_children()) - others:
                worker.terminate()  # its node ends with it, and so do the pool and what waits in it
            raise


def _begin_worker(parent: int) -> None:
    # A terminal sends it to all processes; the command ends the workers. A handler, which a node does not inherit.
    signal.signal(signal.SIGINT, lambda *_: None)
    die_with(parent)
    os.environ.setdefault(*_MESA)


def runs_left(
    settings: DriveSettings, rows: Sequence[DriveRow], scenarios: Sequence[ScenarioKey]
) -> dict[DriveRow, list[ScenarioKey]]:
    """What is to be driven, by row: all runs that have no file yet, and once more those that failed.

    Raises:
        InputError: the file of a run that counts as driven is not whole, or of another run.
    """
    left: dict[DriveRow, list[ScenarioKey]] = {}
    for row in rows:
        since_ns = settings.pruners_since_ns.get(pruner_key(row), 0)
        for each in scenarios:
            path = run_path(settings.out, row, each)
            if _is_done(path, since_ns):
                check_file(path, row.name, each.family, each.seed)
            else:
                left.setdefault(row, []).append(each)
    return left


def drive_all(
    settings: DriveSettings,
    left: Mapping[DriveRow, Sequence[ScenarioKey]],
    workers: int,
    pool: ProcessPoolExecutor | None,
    cluster: Cluster | None = None,
) -> None:
    """Drive these runs. The expert goes first: the others' progress is compared with its.

    Args:
        left: see ``runs_left``.
        workers: into how many parts the runs of a row are divided.
        pool: None: this process drives.
        cluster: whose workers drive instead; files are written here.

    Raises:
        FastDriveError: a node could not be started at all, or a worker of the cluster failed; told as soon as one
            worker has it.
    """
    for is_first in (True, False):
        part = {row: each for row, each in left.items() if (row.pruner == EXPERT) == is_first}
        chunks = _chunks(part, cluster.workers if cluster else workers)
        if cluster is not None:
            for run in map_items(partial(_on_cluster, settings), chunks, cluster):
                keep_run(settings, run)
            continue
        if pool is None:
            for chunk in chunks:
                drive_chunk(settings, chunk)
            continue
        for done in as_completed([pool.submit(drive_chunk, settings, chunk) for chunk in chunks]):
            done.result()


def score_all(
    settings: DriveSettings,
    rows: Sequence[DriveRow],
    scenarios: Sequence[ScenarioKey],
    pool: ProcessPoolExecutor | None,
) -> tuple[list[ScoredRun], str]:
    """Scores of all runs from their files, in the order of rows and scenarios, and one hash of all of them."""
    paths = [run_path(settings.out, row, scenario) for row in rows for scenario in scenarios]
    found = list(map(score_file, paths) if pool is None else pool.map(score_file, paths, chunksize=8))
    return [scored for scored, _ in found], join_hashes(digest for _, digest in found)


def _chunks(left: Mapping[DriveRow, Sequence[ScenarioKey]], workers: int) -> list[Chunk]:
    return [
        Chunk(row, tuple(todo[index::workers]))
        for row, todo in left.items()
        for index in range(min(workers, len(todo)))
    ]


def _is_done(run: Path, since_ns: int) -> bool:
    """Whether a run has a file since its pruner's file is as it is, and need not be tried again."""

    def is_current(file: Path) -> bool:
        return file.is_file() and file.stat().st_mtime_ns >= since_ns

    return is_current(run) and (is_current(_first_failure(run)) or read_ending(run) != FAILED)


def _first_failure(run: Path) -> Path:
    """Where the file of a run that failed is kept when the run is tried again, which is done once."""
    return run.with_name(f"{run.name}.failed")


def drive_chunk(settings: DriveSettings, chunk: Chunk) -> None:
    """Drive the runs of a chunk, and keep them."""
    for run in drive_runs(settings, chunk):
        keep_run(settings, run)


def _on_cluster(settings: DriveSettings) -> Callable[[Iterable[Chunk]], Iterator[RunRecord]]:
    """What a worker of a cluster does with chunks."""
    os.environ.setdefault(*_MESA)
    return lambda chunks: (run for chunk in chunks for run in drive_runs(settings, chunk))


def drive_runs(settings: DriveSettings, chunk: Chunk) -> Iterator[RunRecord]:
    """The runs of a chunk. Where the node ends, its run has failed, and the next one gets a new node."""
    row, deaths = chunk.row, 0
    with Driving(settings, row) as driving:
        for scenario in chunk.scenarios:
            if deaths == DEATHS:
                yield _failed(scenario, row, f"not tried: the node ended in {DEATHS} runs before it")
                continue
            run = driving.run(scenario)
            deaths = deaths + 1 if driving.broken else 0
            yield run


def keep_run(settings: DriveSettings, run: RunRecord) -> None:
    """Write a run's file, with how far the expert came; that of a first try that failed stays beside it."""
    row, scenario = run.row, ScenarioKey(run.family, run.seed)
    path = run_path(settings.out, row, scenario)
    if path.is_file() and read_ending(path) == FAILED:
        path.replace(_first_failure(path))
    if row.pruner != EXPERT:
        run = with_expert(run, load_run(run_path(settings.out, replace(row, **_EXPERT_ROW), scenario)))
    make_folder(path.parent)
    save_run(path, run)
    _tell(run)


_EXPERT_ROW = {"pruner": EXPERT, "drop": 0.0, "fault": "", "severity": 0.0}


class Driving:
    """A context manager: what drives the runs of one row, with its node where it needs one."""

    def __init__(self, settings: DriveSettings, row: DriveRow):
        self._settings, self._row = settings, row
        self._stack = ExitStack()
        self._planner: DrivePlanner | None = None
        self.broken = False  # the node ended in the last run

    def __enter__(self) -> Driving:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, scenario: ScenarioKey) -> RunRecord:
        """One run. Raises FastDriveError where no node can be started."""
        if self._planner is None:
            self._planner = self._make()
        run = drive(FAMILIES[scenario.family].scene(scenario.seed), self._planner, self._row, self._settings.loop)
        self.broken = run.ending == FAILED and not self._alive()
        if self.broken:
            self._stack.close()
            self._stack, self._planner = ExitStack(), None
        return run

    def _alive(self) -> bool:
        alive = getattr(self._planner, "alive", None)
        return alive is None or bool(alive())

    def _make(self) -> DrivePlanner:
        row, settings = self._row, self._settings
        if row.pruner in (EXPERT, CONSTANT_VELOCITY):
            make = expert_planner if row.pruner == EXPERT else constant_velocity_planner
            return make(*settings.latencies_of(row))
        from fastdrive_sim.drive.node_session import open_planner  # ROS and OpenGL, where a node drives

        return self._stack.enter_context(open_planner(settings, row))


def _failed(scenario: ScenarioKey, row: DriveRow, reason: str) -> RunRecord:
    scene = FAMILIES[scenario.family].scene(scenario.seed)
    return RunRecord(scene.family, scene.seed, row, scene.map(), (), (), (), FAILED, reason)


def make_folder(path: Path) -> None:
    """Raises InputError where it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made ({error.strerror}); choose another --out") from error


def _tell(run: RunRecord) -> None:
    reason = f": {run.reason}" if run.reason else ""
    print(f"{run.row.name}  {run.family} {run.seed}  {run.ending}{reason}", file=sys.stderr, flush=True)
