"""Answers that another program wrote, judged by every open-loop convention: for ``fastdrive evaluate-answers``.

Layouts: one JSON object a line, or one JSON array. An answer is a text (``text``, ``predict``, ``answer``, or the
last turn of ShareGPT's ``messages`` or ``conversations``) or a path (``waypoints``, six or more [x, y]). Its keyframe
is named by ``sample_token``, ``token`` or ``id``, or by the file of an image (``images``, ``image``).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastdrive_node.errors import AnswerError, InputError
from fastdrive_node.families.spec import VlaSpec
from fastdrive_node.planning.answer_format import parse_trajectory
from fastdrive_training.data.adapters.base import FUTURE_INTERVAL_S, FUTURE_POINTS, ImageSource
from fastdrive_training.evaluation.intervals import interval
from fastdrive_training.evaluation.metrics.horizons import (
    any_to_t,
    at_horizons,
    at_metric_steps,
    at_t,
    mean_to_t,
    running_any,
    running_mean,
)
from fastdrive_training.evaluation.metrics.judge import Surroundings, judge_plan
from fastdrive_training.evaluation.metrics.rasters import RASTERS, raster_collision_steps
from fastdrive_training.evaluation.metrics.vectors import LARGEST_M
from fastdrive_training.evaluation.samples import constant_velocity, surroundings

TEXTS = ("text", "predict", "answer", "response")
NAMES = ("sample_token", "token", "id")
TURNS = ("messages", "conversations")
REASONS = 10  # that are listed


@dataclass(frozen=True)
class RecordedAnswer:
    """One answer as it is in the file."""

    place: str  # where, for messages
    name: str | None  # of its keyframe
    images: tuple[str, ...]  # file names
    text: str | None
    waypoints: Any = None  # a path that was written as numbers


@dataclass(frozen=True)
class ReadAnswer:
    """What became of one answer."""

    plan_m: np.ndarray | None  # float64 [6, 2] of the rear axle in the ego frame; None: unreadable
    reason: str | None


def read_recorded(path: Path) -> list[RecordedAnswer]:
    """Read a file of answers, or of questions in the same layout.

    Raises:
        InputError: the file is missing or empty, or a line is no JSON object; the text names the line.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as UTF-8 text ({error})") from None
    found = [_recorded(f"{path}: {place}", value) for place, value in _values(path, content)]
    if not found:
        raise InputError(f"{path}: holds no answer; give one JSON object a line, or one array")
    return found


def _values(path: Path, content: str) -> Iterator[tuple[str, Any]]:
    if content.lstrip().startswith("["):
        try:
            values = json.loads(content)
        except (ValueError, RecursionError):
            values = None  # may still be lines that each hold an array
        if isinstance(values, list):
            yield from ((f"entry {number}", value) for number, value in enumerate(values, start=1))
            return
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}: line {number}: not JSON ({error})") from None


def _recorded(place: str, value: Any) -> RecordedAnswer:
    if isinstance(value, str):
        return RecordedAnswer(place, None, (), value)
    if not isinstance(value, Mapping):
        raise InputError(f"{place}: give an object with {', '.join(TEXTS[:2])}, {' or '.join(TURNS)}, or waypoints")
    name = next((str(value[key]) for key in NAMES if value.get(key) is not None), None)
    images = value.get("images", value.get("image", ()))
    images = (images,) if isinstance(images, str) else images
    names = tuple(Path(str(each)).name for each in images) if isinstance(images, list | tuple) else ()
    text = next((value[key] for key in TEXTS if isinstance(value.get(key), str)), None) or _last_turn(value)
    return RecordedAnswer(place, name, names, text, value.get("waypoints"))


def _last_turn(value: Mapping[str, Any]) -> str | None:
    """The text of the last turn that the model wrote."""
    for key in TURNS:
        turns = value.get(key)
        if isinstance(turns, list):
            for turn in reversed(turns):
                if isinstance(turn, Mapping) and turn.get("role", turn.get("from")) in ("assistant", "gpt"):
                    text = turn.get("content", turn.get("value"))
                    return text if isinstance(text, str) else None
    return None


def match(
    answers: Sequence[RecordedAnswer], source: ImageSource, questions: Sequence[RecordedAnswer] | None = None
) -> list[int]:
    """The position in the dataset of each answer's keyframe.

    Args:
        questions: that were answered, in the same order; None where the answers name their keyframes themselves.

    Raises:
        InputError: an answer names no keyframe, one that is not in the dataset, or one that another answer has.
    """
    if questions is not None and len(questions) != len(answers):
        raise InputError(f"{len(questions)} questions for {len(answers)} answers; give the file that was answered")
    named = {name: index for index, name in enumerate(source.names)}
    by_image: Mapping[str, str] = {}
    places: dict[int, str] = {}
    for answer, asked in zip(answers, questions or answers, strict=True):
        name = asked.name
        if name not in named and asked.images:
            by_image = by_image or getattr(source, "keyframe_of_image", {})
            name = next((by_image[image] for image in asked.images if image in by_image), name)
        if name is None:
            raise InputError(
                f"{asked.place}: names no keyframe; give {', '.join(NAMES)} or images, or the questions by --questions"
            )
        if name not in named:
            raise InputError(f"{asked.place}: {name}: no keyframe of {source.root}, split {source.split or 'all'}")
        index = named[name]
        if index in places:
            raise InputError(f"{answer.place}: keyframe {name} has an answer already ({places[index]})")
        places[index] = answer.place
    return list(places)


def outcome(answer: RecordedAnswer, spec: VlaSpec) -> ReadAnswer:
    """Read one answer by the grammar of a VLA; a path of numbers is taken as the rear axle's, 0.5 s apart."""
    try:
        if answer.waypoints is not None:
            return ReadAnswer(_path(answer.waypoints), None)
        if answer.text is None:
            return ReadAnswer(None, "no text and no waypoints")
        trajectory = parse_trajectory(answer.text, spec)
        return ReadAnswer(_plausible(at_metric_steps(trajectory.waypoints_m, trajectory.dt_s)), None)
    except (AnswerError, ValueError) as error:
        return ReadAnswer(None, str(error))


def _path(value: Any) -> np.ndarray:
    try:
        path = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise ValueError("waypoints: not a list of [x, y]") from None
    if path.ndim != 2 or path.shape[1] != 2 or len(path) < FUTURE_POINTS:
        raise ValueError(f"waypoints: {FUTURE_POINTS} or more [x, y] are needed, 0.5 s apart")
    return _plausible(at_metric_steps(path, FUTURE_INTERVAL_S))


def _plausible(path: np.ndarray) -> np.ndarray:
    """A path whose coordinates are numbers that can be judged."""
    if not (np.abs(path) <= LARGEST_M).all():
        raise ValueError(f"waypoints: not finite, or beyond {LARGEST_M:g} m")
    return path


def judge_answers(
    answers: Sequence[RecordedAnswer], places: Sequence[int], source: ImageSource, spec: VlaSpec, zeros: bool
) -> dict[str, Any]:
    """The figures of ``fastdrive evaluate-answers``.

    Args:
        places: from ``match``.
        zeros: judge unreadable answers as a vehicle that stands, as Impromptu-VLA's script does.
    """
    plans, baseline, around, scenes, reasons = [], [], [], [], []
    without_future = 0
    for answer, index in zip(answers, places, strict=True):
        item = source[index]
        if item.future() is None:
            without_future += 1
            continue
        found = outcome(answer, spec)
        if found.reason is not None:
            reasons.append(found.reason)
        plans.append(np.zeros((FUTURE_POINTS, 2)) if found.plan_m is None and zeros else found.plan_m)
        baseline.append(None if item.history is None else constant_velocity(item.history))
        around.append(surroundings(item))
        scenes.append(item.scene)
    rows = [row(name, these, around, scenes) for name, these in (("answers", plans), ("constant-velocity", baseline))]
    return {
        "answers": len(answers),
        "unreadable": len(reasons),
        "unreadable_are": "a path of zeros" if zeros else "not scored",
        "reasons": dict(Counter(reason.rpartition(": ")[0] or reason for reason in reasons).most_common(REASONS)),
        "without_future": without_future,
        "keyframes": len(source),
        "rows": rows,
    }


def row(
    name: str, plans: Sequence[np.ndarray | None], around: Sequence[Surroundings], scenes: Sequence[str]
) -> dict[str, Any]:
    """One row: each figure at 1, 2, 3 s and their mean, over the samples with a plan; None where it is not known."""
    judged = [
        (plan, known, scene) for plan, known, scene in zip(plans, around, scenes, strict=True) if plan is not None
    ]
    figures: dict[str, Any] = {"name": name, "scored": len(judged)}
    if not judged:
        return figures
    known_scenes = [scene for _, _, scene in judged]
    results = [judge_plan(plan, known) for plan, known, _ in judged]
    errors = np.stack([each.errors_m for each in results])
    figures |= {"l2_avg_to_t": mean_to_t(errors), "l2_at_t": at_t(errors)}
    figures["l2_avg_to_t"]["ci95"] = _interval(running_mean(errors), known_scenes)
    columns = {
        "collision_polygon": (_steps([each.collision for each in results]), mean_to_t, running_mean),
        "off_drivable": (_steps([each.off_drivable for each in results]), any_to_t, running_any),
        "intersection": (_steps([each.intersection for each in results]), any_to_t, running_any),
        "collision_any": (_steps([each.raster_collision for each in results]), any_to_t, running_any),
    }
    counting = {"ST-P3": ("st_p3", mean_to_t, running_mean), "VAD": ("vad", mean_to_t, running_mean)}
    counting |= {"UniAD": ("uniad", at_t, np.asarray)}
    for raster, (label, count, running) in counting.items():
        columns[f"collision_{label}"] = (_steps([_raster(raster, *each[:2]) for each in judged]), count, running)
    for label, (steps, count, running) in columns.items():
        figures[label] = None if steps is None else count(steps) | {"ci95": _interval(running(steps), known_scenes)}
    return figures


def _raster(raster: str, plan: np.ndarray, known: Surroundings) -> np.ndarray | None:
    boxes = known.vehicle_boxes if raster == "UniAD" else known.boxes
    return None if boxes is None else raster_collision_steps(RASTERS[raster], plan, known.future_m, boxes)


def _steps(flags: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """[samples, points]; None where one is not known, for a mean over some of the samples compares with nothing."""
    known = [each for each in flags if each is not None]
    return np.stack(known) if len(known) == len(flags) else None


def _interval(by_step: np.ndarray, scenes: Sequence[str]) -> list[float] | None:
    found = interval(at_horizons(by_step).mean(axis=1), scenes)
    return None if found is None else list(found)
