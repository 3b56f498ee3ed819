"""What became of a bag's sets: figures, table, plans and pictures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from fastdrive_node.errors import InputError
from fastdrive_node.replay.bag import Recording, SetCounter
from fastdrive_node.sync.frames import FrameLimits
from fastdrive_node.types import Command, FrameSet, KeptTokens, Plan

UNPLANNED_KEYS = ("t0_ns", "kind", "stage", "reason")
PLAN_KEYS = ("t0_ns", "waypoints", "dt_s", "mode", "text")


@dataclass(frozen=True)
class Tally:
    """All passes together. Every complete set is a plan, a refusal, or dropped."""

    sets: int
    plans: list[dict]  # records, in order
    refused: list[dict]
    incomplete: int  # refusals of sets that lack a camera; not in ``sets``
    dropped: int
    lost: int  # of the dropped: the node never had them whole
    unplanned: list[dict]  # sets without a plan, in order: ``t0_ns``, ``kind`` and what is known of the reason


def tally(loops: Sequence[tuple[SetCounter, Sequence[dict]]]) -> Tally:
    """Count passes, each a counter with the node's records."""
    sets = incomplete = dropped = lost = 0
    plans: list[dict] = []
    refused: list[dict] = []
    unplanned: list[dict] = []
    for counter, records in loops:
        complete = set(counter.complete)
        kinds = {record["t0_ns"]: record["kind"] for record in records}
        plans += [record for record in records if record["kind"] == "plan"]
        refused += [record for record in records if record["kind"] == "refused"]
        sets += len(complete)
        incomplete += sum(kind == "refused" and t0_ns not in complete for t0_ns, kind in kinds.items())
        dropped += sum(kinds.get(t0_ns, "lost") in ("dropped", "lost") for t0_ns in complete)
        lost += sum(t0_ns not in kinds for t0_ns in complete)
        unplanned += _unplanned(complete, records)
    return Tally(sets, plans, refused, incomplete, dropped, lost, unplanned)


def _unplanned(complete: Set[int], records: Sequence[Mapping]) -> list[dict]:
    """The sets of one pass that ended without a plan; "lost" never reached the node whole."""
    known = {record["t0_ns"] for record in records}
    lines = [{"t0_ns": t0_ns, "kind": "lost"} for t0_ns in complete - known]
    ended = [record for record in records if record["kind"] != "plan"]
    lines += [{name: record[name] for name in UNPLANNED_KEYS if name in record} for record in ended]
    return sorted(lines, key=lambda line: line["t0_ns"])


def latencies(result: Tally) -> dict[str, dict[str, float]]:
    """p50 and p99 in milliseconds of every stage, in the order of the work.

    ``waited`` is from a complete set to the start of planning; the pipeline's stages follow, ``total`` is their sum;
    ``planning`` is the whole call, refused sets among them; ``end_to_end`` is from the moment that the oldest exposure
    was due to the plan's arrival, all in wall time.
    """
    tried = [*result.plans, *(record for record in result.refused if record["planning_ms"] > 0)]
    rows: dict[str, list[float]] = {"waited": [record["waited_ms"] for record in tried]}
    for plan in result.plans:
        for stage, ms in plan["stage_ms"].items():
            rows.setdefault(stage, []).append(ms)
    rows["planning"] = [record["planning_ms"] for record in tried]
    rows["end_to_end"] = [plan["end_to_end_ms"] for plan in result.plans]
    return {
        stage: {name: round(float(np.percentile(values, q)), 3) for name, q in (("p50", 50), ("p99", 99))}
        for stage, values in rows.items()
        if values
    }


def summary(result: Tally, plans_file: Path, unplanned_file: Path, facts: Mapping[str, object]) -> dict:
    """The figures of ``--json``. ``total_tokens`` and ``kept_tokens`` are those of one set."""
    tokens = [plan["tokens"] for plan in result.plans if plan["tokens"]]
    refusals = Counter(reason_of(record) for record in result.refused)
    return {
        "sets": result.sets,
        "plans": len(result.plans),
        "refused": len(result.refused),
        "dropped": result.dropped,
        "incomplete": result.incomplete,
        "lost": result.lost,
        "total_tokens": int(np.prod(tokens[-1]["grid"])) if tokens else 0,
        "kept_tokens": len(tokens[-1]["kept"]) if tokens else 0,
        "latency_ms": latencies(result),
        "refusals": dict(refusals.most_common(20)),
        "plans_file": str(plans_file),
        "unplanned_file": str(unplanned_file),
        **facts,
    }


def reason_of(record: Mapping) -> str:
    """Stage and reason of a refusal, the stage once."""
    stage, reason = record["stage"], record["reason"]
    return reason if reason.startswith(f"{stage}: ") else f"{stage}: {reason}"


def write_plans(path: Path, plans: Sequence[Mapping]) -> None:
    """One plan a line, in order. Raises InputError as ``write_lines``."""
    write_lines(path, [{key: plan[key] for key in PLAN_KEYS} for plan in plans])


def write_lines(path: Path, lines: Sequence[Mapping]) -> None:
    """One JSON object a line.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another --out or --json") from error


def print_table(figures: Mapping, console: Console) -> None:
    """The figures for people."""
    counts = Table(title="frame sets", title_justify="left")
    names = ("sets", "plans", "refused", "dropped")
    for name in (*names, "tokens"):
        counts.add_column(name, justify="right")
    tokens = f"{figures['kept_tokens']} of {figures['total_tokens']}"
    counts.add_row(*(str(figures[name]) for name in names), tokens)
    console.print(counts)
    if figures["latency_ms"]:
        times = Table(title="latency [ms]", title_justify="left")
        times.add_column("stage")
        for name in ("p50", "p99"):
            times.add_column(name, justify="right")
        for stage, values in figures["latency_ms"].items():
            times.add_row(stage, f"{values['p50']:.1f}", f"{values['p99']:.1f}")
        console.print(times)
    for reason, count in list(figures["refusals"].items())[:5]:
        console.print(f"refused {count}x: {reason}", markup=False, soft_wrap=True)
    if figures["lost"]:
        console.print(f"{figures['lost']} sets never reached the node whole: the machine or the transport is too slow")


def draw_pictures(folder: Path, plans: Sequence[Mapping], recording: Recording, limits: FrameLimits) -> int:
    """One picture a plan (``plan_0001.jpg`` ...), from the bag's images. Returns how many were drawn.

    Pictures of an earlier replay in the same folder are removed.
    """
    from fastdrive_node.visualization.pictures import draw_plan, save_picture

    for old in folder.glob("plan_[0-9][0-9][0-9][0-9].jpg"):
        old.unlink()
    by_t0 = {plan["t0_ns"]: (index, plan) for index, plan in reversed(list(enumerate(plans, start=1)))}
    drawn = 0

    def draw(frames: FrameSet) -> None:
        nonlocal drawn
        if frames.t0_ns not in by_t0:
            return
        index, record = by_t0.pop(frames.t0_ns)
        images = [frame.load() for frame in frames.frames]
        picture = draw_plan(plan_of(record), images, recording.cameras, record["speed_mps"], Command(record["command"]))
        save_picture(folder / f"plan_{index:04d}.jpg", picture)
        drawn += 1

    counter = SetCounter(recording.topics, recording.cameras, recording.compressed, limits, on_set=draw)
    for message in recording.bag.messages([recording.topics.cameras[camera] for camera in recording.cameras]):
        if not by_t0:
            break
        counter.add(message)
    return drawn


def plan_of(record: Mapping) -> Plan:
    """The plan that a record describes; without its scores, which are not recorded."""
    tokens = record["tokens"]
    kept = None if tokens is None else KeptTokens(np.array(tokens["kept"], np.int64), None, tuple(tokens["grid"]))
    return Plan(
        t0_ns=record["t0_ns"],
        waypoints_m=np.array(record["waypoints"], np.float64),
        dt_s=record["dt_s"],
        text=record["text"],
        mode=record["mode"],
        kept=kept,
        stage_ms=record["stage_ms"],
    )
