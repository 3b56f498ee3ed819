r"""Does a planner look? Its plans in states in which the expert brakes, with the road users in the images and without.

    python -m benchmarks.studies.looking models/tiny runs/tiny_drive/vla --json looking.json

The states are those of the closed loop's training scenes (`fastdrive sim dataset --scenario drive`), of the families in
which something in the lane makes the expert brake. A planner that copies its past plans the same way twice.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastdrive_node.errors import AnswerError
from fastdrive_node.planning.loading import open_pipeline
from fastdrive_node.planning.pipeline import Pipeline
from fastdrive_node.types import CameraFrame, Command, EgoHistory, EgoState, FrameSet
from fastdrive_sim.drive.families import FAMILIES
from fastdrive_sim.drive.simulation import DriveSimulation
from fastdrive_sim.geometry import to_ego
from fastdrive_sim.types import EgoPose, Keyframe, SceneRecording, Snapshot

if TYPE_CHECKING:
    from fastdrive_sim.render import Renderer

BRAKING = ("stopped-lead", "hard-braking-lead", "cyclist", "cut-in", "dense-traffic", "merge", "crossing-pedestrian")
FIRST_SEED = 90_000  # of the scenes; those of a dataset are drawn from its own seed
KEYFRAMES, HZ, SIM_HZ = 20, 2, 20
OF_A_SCENE = 2  # states at most
LEAST_SPEED_MPS, MOST_GAP_M, BRAKES = 3.0, 20.0, 0.6  # a plan that is shorter than so much of constant velocity brakes
HISTORY_S, HISTORY = 0.5, 7  # states of 3 s
TRAFFIC_LIGHT = "traffic_light"


@dataclass(frozen=True)
class State:
    """One state; lengths of plans of 3 s by VLA, None where a plan was refused."""

    family: str
    speed_mps: float
    gap_m: float  # to what is ahead in the lane
    expert_m: float
    with_m: dict[str, float | None]
    without_m: dict[str, float | None]


def length_m(waypoints_m: np.ndarray) -> float:
    """Of the way from the vehicle through waypoints [points, 2]."""
    return float(np.linalg.norm(np.diff(np.vstack([np.zeros(2), waypoints_m]), axis=0), axis=1).sum())


def gap_m(snapshot: Snapshot) -> float:
    """To the nearest road user in the lane; infinite without one."""
    return min((snapshot.ahead.get(name, np.inf) for name in ("vehicle_gap_m", "pedestrian_gap_m")), default=np.inf)


def braking(recording: SceneRecording) -> list[Keyframe]:
    """The first keyframes in which the expert brakes for something near."""
    found = []
    for keyframe in recording.keyframes:
        snapshot = recording.snapshots[keyframe.step]
        assert keyframe.future is not None  # of --scenario drive
        expert_m, speed = length_m(to_ego(snapshot.ego, keyframe.future)), snapshot.ego.speed
        if speed > LEAST_SPEED_MPS and gap_m(snapshot) < MOST_GAP_M and expert_m < BRAKES * 3.0 * speed:
            found.append(keyframe)
    return found[:OF_A_SCENE]


def emptied(snapshot: Snapshot) -> Snapshot:
    """Without road users; traffic lights stay."""
    return replace(snapshot, things=tuple(thing for thing in snapshot.things if thing.kind == TRAFFIC_LIGHT))


def history_of(recording: SceneRecording, step: int) -> EgoHistory:
    """What happened up to a step, newest first."""
    steps = [step - round(HISTORY_S * SIM_HZ) * back for back in range(HISTORY)]
    return EgoHistory(tuple(_ego(recording.snapshots[each].ego, each) for each in steps), HISTORY_S)


def _ego(pose: EgoPose, step: int) -> EgoState:
    return EgoState(step * 1_000_000_000 // SIM_HZ, pose.x, pose.y, pose.yaw, pose.speed, pose.accel, pose.yaw_rate)


def states_of(planners: dict[str, Pipeline], families: Sequence[str], scenes: int) -> list[State]:
    """Plans of each VLA in the states of so many scenes of each family."""
    from fastdrive_sim.render import Renderer  # OpenGL

    vla = next(iter(planners.values())).vla
    height, width = vla.spec.image_size
    renderer, found = Renderer(width, height), []
    try:
        for family in families:
            for number in range(scenes):
                seed = (FIRST_SEED + number) * len(FAMILIES) + list(FAMILIES).index(family)
                recording = DriveSimulation(seed).choose(KEYFRAMES, HZ)
                renderer.load(recording.world)
                found += [_state(planners, family, recording, each, renderer) for each in braking(recording)]
    finally:
        renderer.close()
    return found


def _state(
    planners: dict[str, Pipeline], family: str, recording: SceneRecording, keyframe: Keyframe, renderer: Renderer
) -> State:
    snapshot, history = recording.snapshots[keyframe.step], history_of(recording, keyframe.step)
    plans: list[dict[str, float | None]] = []
    for seen in (snapshot, emptied(snapshot)):
        images = np.array(renderer.render(seen).rgb)
        plans.append({name: _planned_m(planner, images, history, seen.command) for name, planner in planners.items()})
    assert keyframe.future is not None
    expert_m = length_m(to_ego(snapshot.ego, keyframe.future))
    speed, gap, expert = (round(float(figure), 2) for figure in (snapshot.ego.speed, gap_m(snapshot), expert_m))
    return State(family, speed, gap, expert, *plans)


def _planned_m(planner: Pipeline, images: np.ndarray, history: EgoHistory, command: str) -> float | None:
    stamp = history.now.stamp_ns
    frames = tuple(
        CameraFrame(camera, stamp, stamp, lambda image=image: image)
        for camera, image in zip(planner.vla.spec.cameras, images, strict=True)
    )
    try:
        plan = planner.plan(FrameSet(frames, stamp), history, Command(command))
    except AnswerError:
        return None
    return round(length_m(plan.waypoints_m), 2)


def summary_of(states: Sequence[State]) -> list[dict[str, Any]]:
    """Of each VLA the mean lengths over the states in which both of its plans were accepted."""
    rows = []
    for name in states[0].with_m if states else ():
        pairs = [(each.with_m[name], each.without_m[name], each.expert_m) for each in states]
        good = np.array([pair for pair in pairs if None not in pair], float).reshape(-1, 3)
        means = good.mean(0).round(2).tolist() if len(good) else [None] * 3
        means = dict(zip(("with_m", "without_m", "expert_m"), means, strict=True))
        rows.append({"vla": name, "states": len(good), "refused": len(states) - len(good), **means})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vlas", nargs="+", metavar="VLA", help="directories")
    parser.add_argument("--families", default=",".join(BRAKING))
    parser.add_argument("--scenes", type=int, default=3, help="of each family (3)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    planners = {name: open_pipeline(name, "none", 0.0) for name in options.vlas}
    states = states_of(planners, options.families.split(","), options.scenes)
    figures = {"summary": summary_of(states), "states": [asdict(state) for state in states]}
    for row in figures["summary"]:
        print(" ".join(f"{name} {value}" for name, value in row.items()))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
