"""Other first drafts than the product's, counted: forwards of the language model for each keyframe of some drives.

    python -m benchmarks.studies.first_drafts --dataset data/sim_test --split test --fit data/sim_fit --json F

A VLA and its pruner decode every keyframe from each of these first drafts; what follows the first one is the same:

- ``constant turn``: the product's.
- ``previous plan``: the answer of the keyframe before in the frame of this one, shifted so that it begins at the
  vehicle, with its last step once more. The constant turn where there is none.
- ``mean of both``.
- ``chosen``: that of the two which was nearer to the answer on the keyframe before.
- ``linear head``: ridge regression from the ego state and the four states before it to what the answers of ``--fit``
  differ from the constant turn.
- ``linear head, both drafts``: it reads the constant turn and the previous plan too.
- ``better of both``: the fewer forwards of the first two, known only afterwards; no choice between them takes fewer.

Each answer is compared with that from the constant turn.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.studies.drafts import drafted_answer, summary
from benchmarks.studies.summary import to_text
from fastdrive_node.errors import AnswerError, FastDriveError, InputError
from fastdrive_node.families import Prompt, VisualTokens
from fastdrive_node.geometry import to_parent_frame
from fastdrive_node.planning.drafts import constant_turn
from fastdrive_node.planning.generator import Answer
from fastdrive_node.planning.loading import open_pipeline
from fastdrive_node.planning.pipeline import Pipeline
from fastdrive_node.types import EgoHistory, EgoState
from fastdrive_training.data.adapters import open_source
from fastdrive_training.data.sampling import with_future
from fastdrive_training.data.token_cache import encode_items

HISTORY_STEPS = 4
RIDGE = 1.0  # of features of unit variance
_TOLERANCE_S = 0.01


@dataclass(frozen=True)
class DraftedKeyframe:
    """One keyframe, its answer from the constant turn, and what is known before it is decoded."""

    history: EgoHistory
    visual: VisualTokens
    prompt: Prompt
    answer: Answer
    waypoints_m: np.ndarray | None  # of the answer, [points, 2]; None where it states no trajectory
    turn_m: np.ndarray  # the constant turn
    previous_m: np.ndarray | None  # the previous plan moved; None where there is none


def moved(plan_m: np.ndarray, then: EgoState, now: EgoState) -> np.ndarray:
    """A plan [points, 2] whose first point is for ``now``, in the frame of ``now``; its last step stands twice."""
    world = to_parent_frame(plan_m, then.x_m, then.y_m, then.yaw_rad)
    points = to_parent_frame(world - world[0], 0.0, 0.0, -now.yaw_rad)
    return np.vstack([points[1:], 2 * points[-1] - points[-2]])


def read(pipeline: Pipeline, dataset: Path, split: str | None, drop: float) -> list[DraftedKeyframe]:
    """The keyframes with a future, in order, each decoded from the constant turn. Raises InputError: unusable data."""
    vla = pipeline.vla
    source, spec = open_source(dataset, split), vla.spec.answer
    items = [source[index] for index in with_future(source)[0]]
    keyframes: list[DraftedKeyframe] = []
    last: tuple[str, EgoState, np.ndarray | None] | None = None
    for item, tokens in encode_items(items, vla, "first drafts"):
        history, here = item.known_history, item.find_world_state()
        visual = VisualTokens(tokens.flatten(0, 1), torch.arange(vla.tokens), (len(tokens), *vla.grid))
        prompt = pipeline.generator.prompt(history, item.command)
        turn = constant_turn(history.now, spec.points, spec.interval_s)
        answer = decoded(pipeline, visual, prompt, drop, turn)
        try:
            waypoints = pipeline.generator.answer.parse(answer.ids).waypoints_m
        except AnswerError:
            waypoints = None
        previous = None
        if last is not None and here is not None and last[0] == item.scene and last[2] is not None:
            gap_s = (here.stamp_ns - last[1].stamp_ns) * 1e-9
            previous = moved(last[2], last[1], here) if abs(gap_s - spec.interval_s) < _TOLERANCE_S else None
        keyframes.append(DraftedKeyframe(history, visual, prompt, answer, waypoints, turn, previous))
        last = None if here is None else (item.scene, here, waypoints)
    if not any(keyframe.previous_m is not None for keyframe in keyframes):
        raise InputError(f"{dataset}: no keyframe follows another after {spec.interval_s:g} s")
    return keyframes


def decoded(pipeline: Pipeline, visual: VisualTokens, prompt: Prompt, drop: float, first_m: np.ndarray) -> Answer:
    """The answer by drafts, of which the first one states ``first_m``."""
    return drafted_answer(pipeline, visual, prompt, drop, pipeline.generator.answer.numbers(first_m))


def features(keyframe: DraftedKeyframe, both: bool) -> np.ndarray:
    """What a linear head reads: float64 [n]; states that are missing stand as if the speed had been the present one."""
    now, states = keyframe.history.now, keyframe.history.states
    speed, accel, yaw_rate = now.speed_mps, now.accel_mps2, now.yaw_rate_radps
    values = [speed, accel, yaw_rate, speed * yaw_rate, speed * speed, speed * accel]
    for step in range(1, HISTORY_STEPS + 1):
        if step < len(states):
            there = np.array([[states[step].x_m - now.x_m, states[step].y_m - now.y_m]])
            values += [*to_parent_frame(there, 0.0, 0.0, -now.yaw_rad)[0], states[step].speed_mps]
        else:
            values += [-speed * step * keyframe.history.interval_s, 0.0, speed]
    if not both:
        return np.array(values)
    previous = keyframe.turn_m if keyframe.previous_m is None else keyframe.previous_m
    return np.array([*values, *keyframe.turn_m.flat, *previous.flat, float(keyframe.previous_m is not None)])


class LinearHead:
    """Ridge regression from ``features`` to what an answer differs from the constant turn."""

    def __init__(self, keyframes: list[DraftedKeyframe], both: bool):
        self._both = both
        known = [(each, each.waypoints_m) for each in keyframes if each.waypoints_m is not None]
        inputs = np.array([features(each, both) for each, _ in known])
        wanted = np.array([(waypoints - each.turn_m).flatten() for each, waypoints in known])
        self._mean, self._scale = inputs.mean(0), inputs.std(0) + 1e-6
        rows = self._rows(inputs)
        self._weights = np.linalg.solve(rows.T @ rows + RIDGE * np.eye(rows.shape[1]), rows.T @ wanted)

    def _rows(self, inputs: np.ndarray) -> np.ndarray:
        return np.column_stack([(inputs - self._mean) / self._scale, np.ones(len(inputs))])

    def draft(self, keyframe: DraftedKeyframe) -> np.ndarray:
        """Waypoints [points, 2]."""
        change = self._rows(features(keyframe, self._both)[None]) @ self._weights
        return keyframe.turn_m + change.reshape(keyframe.turn_m.shape)


def drafts_of(keyframes: list[DraftedKeyframe], fitted: list[DraftedKeyframe]) -> dict[str, list[np.ndarray]]:
    """The first draft of each keyframe, by the name of its row; without the constant turn."""
    heads = {"linear head": LinearHead(fitted, False), "linear head, both drafts": LinearHead(fitted, True)}
    names = ("previous plan", "mean of both", "chosen", *heads)
    drafts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    before: DraftedKeyframe | None = None
    for keyframe in keyframes:
        turn = keyframe.turn_m
        previous = turn if keyframe.previous_m is None else keyframe.previous_m
        drafts["previous plan"].append(previous)
        drafts["mean of both"].append((turn + previous) / 2)
        drafts["chosen"].append(previous if before is not None and _previous_was_nearer(before) else turn)
        for name, head in heads.items():
            drafts[name].append(head.draft(keyframe))
        before = keyframe
    return drafts


def _previous_was_nearer(keyframe: DraftedKeyframe) -> bool:
    if keyframe.waypoints_m is None or keyframe.previous_m is None:
        return False
    errors = [np.abs(draft - keyframe.waypoints_m).mean() for draft in (keyframe.previous_m, keyframe.turn_m)]
    return bool(errors[0] < errors[1])


def run(vla: Path | None, dataset: Path, split: str | None, fit: Path, drop: float) -> dict:
    """The study."""
    pipeline = open_pipeline(vla, drop=drop)
    fitted, keyframes = read(pipeline, fit, None, drop), read(pipeline, dataset, split, drop)
    forwards = {"constant turn": [keyframe.answer.forwards for keyframe in keyframes]}
    different = 0
    for name, drafts in drafts_of(keyframes, fitted).items():
        pairs = zip(keyframes, drafts, strict=True)
        answers = [decoded(pipeline, each.visual, each.prompt, drop, draft) for each, draft in pairs]
        forwards[name] = [answer.forwards for answer in answers]
        different += sum(a.ids != b.answer.ids for a, b in zip(answers, keyframes, strict=True))
    two = (forwards["constant turn"], forwards["previous plan"])
    forwards["better of both"] = [min(pair) for pair in zip(*two, strict=True)]
    lengths = [len(keyframe.answer.ids) for keyframe in keyframes]
    return {
        "vla": pipeline.vla.path.name,
        "dataset": dataset.name,
        "fitted_on": {"dataset": fit.name, "answers": sum(each.waypoints_m is not None for each in fitted)},
        "drop": drop,
        "with_a_previous_plan": sum(keyframe.previous_m is not None for keyframe in keyframes),
        "different_answers": different,
        "rows": {name: summary(counts, lengths) for name, counts in forwards.items()},
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vla", type=Path, help="VLA directory (default: the shipped one)")
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--split")
    parser.add_argument("--fit", type=Path, required=True, help="another dataset, for the linear heads")
    parser.add_argument("--drop", type=float, default=0.5)
    parser.add_argument("--json", type=Path, help="(default: standard output)")
    args = parser.parse_args(argv)
    try:
        text = to_text(run(args.vla, args.dataset, args.split, args.fit, args.drop)) + "\n"
    except FastDriveError as error:
        sys.exit(f"first_drafts: {error}")
    if args.json is None:
        sys.stdout.write(text)
    else:
        args.json.write_text(text)


if __name__ == "__main__":
    main()
