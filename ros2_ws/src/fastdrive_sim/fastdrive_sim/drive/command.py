"""A drive from its options to ``summary.json``."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fastdrive_node.cluster import open_cluster
from fastdrive_node.errors import InputError, UsageError
from fastdrive_node.families.spec import VlaSpec, load_spec
from fastdrive_node.files import package_share_file
from fastdrive_sim.drive.faults import parse_fault
from fastdrive_sim.drive.kept import with_kept
from fastdrive_sim.drive.latency import describe, mean_s
from fastdrive_sim.drive.loop import LoopSettings
from fastdrive_sim.drive.out_folder import claim, pruner_files, write_json
from fastdrive_sim.drive.preflight import check_pruners, engine_digests, known_pruners, node_settings, read_engines
from fastdrive_sim.drive.report import write_report
from fastdrive_sim.drive.runner import (
    DriveSettings,
    drive_all,
    make_folder,
    run_path,
    runs_left,
    score_all,
    worker_pool,
)
from fastdrive_sim.drive.storage import load_run
from fastdrive_sim.drive.suite import ScenarioKey, rows, scenarios
from fastdrive_sim.drive.summary import ScoredRun, not_comparable, summarize
from fastdrive_sim.drive.types import CONSTANT_VELOCITY, EXPERT, RECORD_S

DRIVING_VLA = "models/tiny_drive"  # the shipped one that was trained to drive here


@dataclass(frozen=True)
class DriveOptions:
    """What the command line gives. Raises UsageError for a value that is out of range, InputError for no such file."""

    out: Path
    suite: str = "standard"
    families: tuple[str, ...] = ()
    runs: int | None = None
    seed: int = 0
    vla: Path | None = None
    pruners: tuple[str, ...] = ("none", "reconpruner")
    drops: tuple[float, ...] = (0.5,)
    faults: tuple[str, ...] = ()
    realtime: bool = False
    latencies_s: tuple[float, ...] = (0.0,)  # simulated; of several each plan draws one
    plan_hz: float = 2.0
    size: tuple[int, int] | None = None
    workers: int = 1
    node_command: tuple[str, ...] | None = None
    params: Path | None = None  # ROS 2 parameter file of the node
    bags: str | None = None  # "state" or "cameras"
    ray: str | None = None  # address of a cluster, whose workers drive

    def __post_init__(self) -> None:
        if self.params is not None and not self.params.is_file():
            raise InputError(f"{self.params}: no such parameter file; correct --params")
        if self.ray is not None and self.workers > 1:
            raise UsageError(f"--workers {self.workers}: with --ray the cluster has the workers; use --ray local:N")
        if self.realtime and any(self.latencies_s):
            raise UsageError("--latency-ms: with --realtime the latency is the machine's; leave one of them out")
        steps = 1 / (self.plan_hz * RECORD_S) if self.plan_hz > 0 else 0.0
        if abs(steps - round(steps)) > 1e-6 or not 1 <= steps <= 20:
            raise UsageError(f"--plan-hz {self.plan_hz:g}: give a divisor of 10 from 0.5 to 10, such as 2 or 5")


def drive_suite(options: DriveOptions) -> dict:
    """Drive, and return the figures; they are in ``summary.json`` and on the page ``report.html`` too.

    Raises:
        UsageError: an unknown suite, family or fault, before anything starts.
        InputError, ModelError: the VLA directory, the parameter file, an engine that it names or a pruner cannot be
            used, ``out`` holds another drive, or a run's file in it is not whole.
        FastDriveError: no node can be started, or the cluster cannot be joined.
    """
    chosen = scenarios(options.suite, options.families, options.runs, options.seed)
    faults = [parse_fault(text) for text in options.faults]
    parameters = node_settings(options.params)
    all_rows = rows(known_pruners(options.pruners), options.drops, faults, mean_s(options.latencies_s))
    settings, engines = _settings(options), read_engines(parameters)
    identity = _identity(options, settings, engine_digests(engines))
    started = time.monotonic()
    with worker_pool(options.workers) as pool, open_cluster(options.ray, "cpu") as cluster:
        since_ns = claim(options.out, identity, pruner_files(Path(settings.vla), all_rows))
        settings = replace(settings, pruners_since_ns=since_ns)
        left = runs_left(settings, all_rows, chosen)
        check_pruners(Path(settings.vla), left, parameters, engines)
        begun_s, begun_ns = time.monotonic(), time.time_ns()
        drive_all(settings, left, options.workers, pool, cluster)
        driving_s = time.monotonic() - begun_s
        if options.bags:
            _write_bags(options, settings, [run_path(options.out, row, each) for row in all_rows for each in chosen])
        scored, digest = score_all(settings, all_rows, chosen, pool)
    figures = {
        **summarize(scored),
        "deterministic_hash": digest,
        "settings": identity,
        "driven": _driven(settings, scored, begun_ns, driving_s),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(options.out / "summary.json", figures)
    write_report(options.out / "report.html", figures, options.out)
    return figures


def _driven(settings: DriveSettings, scored: Sequence[ScoredRun], begun_ns: int, seconds: float) -> dict[str, float]:
    """What a call drove through the node: runs and planning ticks, and in lockstep how many of them a second.

    Args:
        begun_ns: runs whose file is of this time or later are those of the call; such without a tick do not count.
        seconds: of all driving, with the node's start and the rows without a node.
    """
    of_node = [run for run in scored if run.row.pruner not in (EXPERT, CONSTANT_VELOCITY)]
    files = [run_path(settings.out, run.row, ScenarioKey(run.family, run.seed)) for run in of_node]
    own = [run for run, file in zip(of_node, files, strict=True) if file.stat().st_mtime_ns >= begun_ns]
    ticks = [run.scores.ticks for run in own if run.scores.ticks]
    rate = {"seconds": round(seconds, 1), "ticks_per_s": round(sum(ticks) / seconds, 2)}
    rate = rate if ticks and not settings.realtime else {}
    return {"runs": len(ticks), "ticks": sum(ticks), **rate}


def _write_bags(options: DriveOptions, settings: DriveSettings, files: Sequence[Path]) -> None:
    """The bags that are missing, of a run that has been driven again, or without the images that are asked for."""
    from fastdrive_sim.drive.node_session import rig_of
    from fastdrive_sim.drive.run_bag import has_images, write_run_bag

    cameras = rig_of(settings.cameras) if options.bags == "cameras" else ()
    for number, file in enumerate(files, 1):
        path = options.out / "bags" / file.parent.name / file.stem
        is_new = path.exists() and path.stat().st_mtime_ns >= file.stat().st_mtime_ns
        if not is_new or not has_images(path, cameras):
            write_run_bag(load_run(file), path, cameras, settings.size, anew=True)
            print(f"{file.parent.name}  {file.stem}  bag {number} of {len(files)}", file=sys.stderr, flush=True)


TABLE = (
    "runs", "failed", "collision_rate", "neuroncap", "epdms_style", "hd_score", "route_completion", "refused", "late",
)  # fmt: skip


def print_table(figures: dict, console: Console) -> None:
    """The rows for people."""
    table = Table(title="Closed loop", title_justify="left")
    table.add_column("row", no_wrap=True)
    for name in TABLE:
        table.add_column(name.replace("_", " "), justify="right")
    for row in figures["rows"]:
        values = [row[name] for name in TABLE]
        table.add_row(row["row"], *("-" if v is None else str(v) if isinstance(v, int) else f"{v:.3f}" for v in values))
    console.print(table)
    if "ticks_per_s" in (driven := figures["driven"]):
        console.print("{ticks} planning ticks in {seconds:.0f} s, {ticks_per_s:.1f} a second".format(**driven))
    for told in filter(None, map(not_comparable, figures["rows"])):
        console.print(f"not comparable: {told}", markup=False, soft_wrap=True)
    failed: dict[str, int] = {}
    for run in figures["runs"]:
        if run["reason"]:
            failed[run["reason"]] = failed.get(run["reason"], 0) + 1
    for reason, count in sorted(failed.items(), key=lambda each: -each[1])[:5]:
        console.print(f"failed {count}x: {reason}", markup=False, soft_wrap=True)


def show_run(run: Path, out: Path) -> dict:
    """A video and a contact sheet of a run; returns ``video``, ``sheet`` and ``seconds``.

    Kept tokens that are damaged are not drawn, which a line on stderr says.

    Raises:
        InputError: the run cannot be read.
        SimError: the machine cannot render, or ``out`` cannot be written.
    """
    record = load_run(run, earlier=True)
    try:
        record = with_kept(record, run)
    except InputError as error:
        print(error, file=sys.stderr)
    from fastdrive_sim.drive.film import write_sheet, write_video  # loads OpenGL

    make_folder(out)
    name = f"{record.row.name}-{record.family}-{record.seed}"
    video, sheet = out / f"{name}.mp4", out / f"{name}.jpg"
    pictures = write_video(record, video)
    write_sheet(record, sheet)
    return {"video": str(video), "sheet": str(sheet), "seconds": round(pictures * RECORD_S, 1)}


def _settings(options: DriveOptions) -> DriveSettings:
    vla = options.vla or package_share_file(f"{DRIVING_VLA}/vla.json").parent
    spec = load_spec(vla)
    return DriveSettings(
        options.out,
        str(vla.resolve()),
        tuple(spec.cameras),
        options.size or _image_size(spec),
        options.realtime,
        LoopSettings(1 / options.plan_hz),
        options.node_command,
        options.params and options.params.resolve(),
        latencies_s=options.latencies_s if len(options.latencies_s) > 1 else (),
    )


def _image_size(spec: VlaSpec) -> tuple[int, int]:
    """Width and height of the largest image that the VLA reads."""
    height, width = max(spec.sizes, key=lambda size: size[0] * size[1])
    return width, height


def _identity(options: DriveOptions, settings: DriveSettings, engines: Mapping[str, str] | None = None) -> dict:
    """What all runs of a folder must have in common; ``engines``: digests by parameter."""
    from fastdrive_node.families.fingerprint import directory_fingerprint  # imports torch

    return {
        "vla": settings.vla,
        "vla_files": directory_fingerprint(settings.vla)[:16],  # another model has others
        "size": list(settings.size),
        "realtime": options.realtime,
        **({} if options.params is None else {"node_parameters": options.params.read_text(encoding="utf-8")}),
        **({"engines": dict(engines)} if engines else {}),
        **describe(options.latencies_s),
        "plan_hz": options.plan_hz,
        "actuators": asdict(settings.loop.actuators),
    }
