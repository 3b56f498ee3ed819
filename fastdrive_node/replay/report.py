"""What became of a bag's sets: figures, table, plans and images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from fastdrive_node.errors import InputError
from fastdrive_node.files import write_atomically
from fastdrive_node.record import PlanRecord
from fastdrive_node.replay.bag import Recording
from fastdrive_node.replay.frame_sets import LoopResult, Received, SetCounter
from fastdrive_node.ros.parameters import Settings
from fastdrive_node.types import SUPERSEDED, FrameSet, Refusal


@dataclass(frozen=True)
class Tally:
    """All passes together. Every complete set is a plan, a refusal, or superseded."""

    sets: int
    plans: list[Received]  # in order
    refused: list[Received]
    incomplete: int  # refusals of sets that lack a camera; not in ``sets``
    superseded: int
    lost: int  # of the superseded: the node never had all of their images
    unplanned: list[dict]  # sets without a plan, in order: ``t0_ns``, ``kind`` and the reason where it is known


def tally(loops: Sequence[LoopResult]) -> Tally:
    sets = incomplete = superseded = lost = 0
    plans: list[Received] = []
    refused: list[Received] = []
    unplanned: list[dict] = []
    for loop in loops:
        complete = set(loop.counter.complete)
        kinds = {each.record.t0_ns: each.record.kind for each in loop.received}
        missing = complete - kinds.keys()
        plans += [each for each in loop.received if each.record.kind == "plan"]
        refused += [each for each in loop.received if each.record.kind == "refused"]
        sets += len(complete)
        incomplete += sum(kind == "refused" and t0_ns not in complete for t0_ns, kind in kinds.items())
        superseded += len(missing) + sum(kinds.get(t0_ns) == SUPERSEDED for t0_ns in complete)
        lost += len(missing)
        lines = [{"t0_ns": t0_ns, "kind": "lost"} for t0_ns in missing]
        lines += [each.record.line() for each in loop.received if each.record.kind != "plan"]
        unplanned += sorted(lines, key=lambda line: line["t0_ns"])
    return Tally(sets, plans, refused, incomplete, superseded, lost, unplanned)


def never_ready(result: Tally) -> bool:
    """Whether there were sets, and the planner was loading at each of them."""
    codes = {each.record.result.code for each in result.refused if isinstance(each.record.result, Refusal)}
    return not result.plans and codes == {"planner_starting"}


def latencies(result: Tally) -> dict[str, dict[str, float]]:
    """p50 and p99 in milliseconds of wall time of every stage, in the order of the work.

    ``waited`` is from a complete set to the start of planning; the pipeline's stages follow, ``total`` is their sum;
    ``planning`` is the whole call, refused sets among them; ``end_to_end`` is from the time that the oldest image was
    due (with --lockstep: that the last image was sent) to the arrival of the plan.
    """
    planned = [each.record for each in result.plans]
    tried = [*planned, *(each.record for each in result.refused if each.record.planning_ms > 0)]
    rows: dict[str, list[float]] = {"waited": [record.waited_ms for record in tried]}
    for record in planned:
        for stage, ms in record.plan.stage_ms.items():
            rows.setdefault(stage, []).append(ms)
    rows["planning"] = [record.planning_ms for record in tried]
    rows["end_to_end"] = [each.end_to_end_ms for each in result.plans]
    return {
        stage: {name: round(float(np.percentile(values, q)), 3) for name, q in (("p50", 50), ("p99", 99))}
        for stage, values in rows.items()
        if values
    }


def summary(result: Tally, plans_file: Path, unplanned_file: Path, more: Mapping[str, object]) -> dict:
    """The figures of ``--json``. ``dropped`` counts superseded sets; the tokens are those of one set."""
    kept = [each.record.plan.kept for each in result.plans if each.record.plan.kept is not None]
    refusals = Counter(each.record.reason for each in result.refused)
    return {
        "sets": result.sets,
        "plans": len(result.plans),
        "refused": len(result.refused),
        "dropped": result.superseded,
        "incomplete": result.incomplete,
        "lost": result.lost,
        "total_tokens": kept[-1].total if kept else 0,
        "kept_tokens": kept[-1].kept if kept else 0,
        "latency_ms": latencies(result),
        "refusals": dict(refusals.most_common(20)),
        "plans_file": str(plans_file),
        "unplanned_file": str(unplanned_file),
        **more,
    }


def write_lines(path: Path, lines: Sequence[Mapping]) -> None:
    """One JSON object a line.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        with write_atomically(path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another --out or --json") from error


def print_table(figures: Mapping, console: Console) -> None:
    """The figures for people."""
    counts = Table(title="Frame sets", title_justify="left")
    for name in ("sets", "plans", "refused", "superseded", "kept tokens"):
        counts.add_column(name, justify="right")
    numbers = [str(figures[name]) for name in ("sets", "plans", "refused", "dropped")]
    counts.add_row(*numbers, f"{figures['kept_tokens']} of {figures['total_tokens']}")
    console.print(counts)
    if figures["latency_ms"]:
        times = Table(title="Latency in ms", title_justify="left")
        times.add_column("stage")
        for name in ("p50", "p99"):
            times.add_column(name, justify="right")
        for stage, values in figures["latency_ms"].items():
            times.add_row(stage, f"{values['p50']:.1f}", f"{values['p99']:.1f}")
        console.print(times)
    for reason, count in list(figures["refusals"].items())[:5]:
        console.print(f"refused {count}x: {reason}", markup=False, soft_wrap=True)
    if figures["lost"]:
        console.print(
            f"{figures['lost']} sets did not reach the node with all of their images: the machine or the transport is "
            "too slow; try --lockstep"
        )


def draw_plans(folder: Path, plans: Sequence[PlanRecord], recording: Recording, settings: Settings) -> int:
    """One image a plan (``plan_0001.jpg`` ...), from the bag's images. Returns how many were drawn.

    Images of an earlier replay in the same folder are removed.
    """
    from fastdrive_node.visualization.layout import save_image
    from fastdrive_node.visualization.plan_image import draw_plan

    for old in folder.glob("plan_[0-9][0-9][0-9][0-9].jpg"):
        old.unlink()
    by_t0 = {plan.t0_ns: (index, plan) for index, plan in reversed(list(enumerate(plans, start=1)))}
    drawn = 0

    def draw(frames: FrameSet) -> None:
        nonlocal drawn
        if frames.t0_ns not in by_t0:
            return
        index, plan = by_t0.pop(frames.t0_ns)
        images = [frame.load() for frame in frames.frames]
        image = draw_plan(
            plan.plan, images, recording.cameras, plan.speed_mps or 0.0, plan.command, vehicle=settings.vehicle()
        )
        save_image(folder / f"plan_{index:04d}.jpg", image)
        drawn += 1

    counter = SetCounter(recording.topics, recording.compressed, settings.frame_limits(), on_set=draw)
    for message in recording.image_messages():
        if not by_t0:
            break
        counter.add(message)
    return drawn
