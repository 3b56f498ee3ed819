"""The objects around a keyframe at each future step, from nuScenes annotations, simulated or real.

The simulator writes what its annotations do not reach, the last 3 s of a scene, into ``extras.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from fastdrive_node.errors import InputError
from fastdrive_training.data.adapters.base import FUTURE_INTERVAL_S, FUTURE_POINTS, FutureObjects
from fastdrive_training.data.ego_track import rotation_matrix
from fastdrive_training.data.nuscenes.tables import NuscenesTables

HORIZON_S = FUTURE_POINTS * FUTURE_INTERVAL_S
EXACT_S = 1e-3  # a keyframe this near to a step is the step's own
VEHICLES = "vehicle."  # how the names of vehicles' categories start: cars to trailers, motorcycles and bicycles
REACH_S = 0.1  # a step this far behind the last keyframe takes its boxes: real ones are not exactly 0.5 s apart


@dataclass(frozen=True)
class _Object:
    """One annotation in the world frame."""

    centre_m: np.ndarray  # float64 [3]
    heading: np.ndarray  # float64 [3], unit vector along its length
    size_m: tuple[float, float]  # length, width
    vehicle: bool


class SceneObjects:
    """What is around a dataset's samples.

    Where the dataset has a lidar, annotations without any lidar or radar point are left out, as public evaluators do.
    """

    def __init__(self, tables: NuscenesTables):
        self._tables, self._devkit = tables, tables.devkit
        self._has_lidar = any(sensor["channel"] == "LIDAR_TOP" for sensor in self._devkit.sensor)
        self._objects = lru_cache(maxsize=256)(self._read)

    def around(self, token: str) -> FutureObjects | None:
        """The objects 0.5 s ... 3 s after the sample, in its ego frame.

        Between keyframes they are interpolated; an object that only one of the two has is there in the half of the
        interval that is nearer to it. None where the dataset has no annotations at all, or none up to 3 s after this
        sample and no ``future_boxes`` in its extras. Raises InputError for an unusable annotation or entry.
        """
        if not self._devkit.sample_annotation:
            return None
        tokens, stamps_s = self._ahead(token)
        wanted_s = FUTURE_INTERVAL_S * np.arange(1, FUTURE_POINTS + 1)
        if stamps_s[-1] + REACH_S < HORIZON_S:
            return self._written(token)
        pose = self._tables.ego_pose(token)
        position = np.array(pose["translation"], np.float64)
        rotation = rotation_matrix(pose["rotation"])
        steps = [self._at(tokens, stamps_s, at_s) for at_s in wanted_s]
        return FutureObjects(
            tuple(_boxes(objects, position, rotation) for objects in steps),
            tuple(np.array([one.vehicle for one in objects], bool) for objects in steps),
        )

    def _written(self, token: str) -> FutureObjects | None:
        """What the dataset's extras hold of a sample; None where they have no boxes of it."""
        extras = self._tables.extras(token)
        if extras.get("future_boxes") is None:
            return None
        boxes = self._written_boxes(token, extras["future_boxes"])
        vehicles = extras.get("future_vehicles")
        return FutureObjects(boxes, None if vehicles is None else self._written_vehicles(token, vehicles, boxes))

    def _written_boxes(self, token: str, entry: Any) -> tuple[np.ndarray, ...]:
        try:
            steps = tuple(np.array(boxes, np.float64).reshape(-1, 5) for boxes in entry)
        except (TypeError, ValueError):
            steps = ()
        if len(steps) != FUTURE_POINTS or not all(np.isfinite(boxes).all() for boxes in steps):
            problem = f"needs {FUTURE_POINTS} lists of finite boxes [x, y, yaw, length, width]"
        elif not all((boxes[:, 3:] > 0).all() for boxes in steps):
            problem = "a box has a size that is not above 0"
        else:
            return steps
        raise self._tables.extras_error(token, "future_boxes", problem)

    def _written_vehicles(self, token: str, entry: Any, boxes: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        steps = entry if isinstance(entry, list) else []
        fits = len(steps) == len(boxes) and all(
            isinstance(step, list) and len(step) == len(at) and all(isinstance(flag, bool) for flag in step)
            for step, at in zip(steps, boxes, strict=True)
        )
        if not fits:
            raise self._tables.extras_error(token, "future_vehicles", "needs true or false for each of future_boxes")
        return tuple(np.array(step, bool) for step in steps)

    def _ahead(self, token: str) -> tuple[list[str], np.ndarray]:
        """The sample and those behind it up to the horizon, and their times from it in s."""
        sample = self._devkit.get("sample", token)
        start_us, tokens, stamps_s = sample["timestamp"], [], []
        while True:
            tokens.append(sample["token"])
            stamps_s.append((sample["timestamp"] - start_us) * 1e-6)
            if not sample["next"] or stamps_s[-1] > HORIZON_S:
                return tokens, np.array(stamps_s)
            sample = self._devkit.get("sample", sample["next"])

    def _at(self, tokens: list[str], stamps_s: np.ndarray, at_s: float) -> list[_Object]:
        """The objects at a time, in the world frame."""
        after = int(np.searchsorted(stamps_s, at_s - EXACT_S))
        if after == len(tokens):
            return list(self._objects(tokens[-1]).values())
        later = self._objects(tokens[after])
        if stamps_s[after] <= at_s + EXACT_S:
            return list(later.values())
        earlier = self._objects(tokens[after - 1])
        weight = float((at_s - stamps_s[after - 1]) / (stamps_s[after] - stamps_s[after - 1]))
        nearer = later if weight >= 0.5 else earlier
        both = [_between(earlier[key], later[key], weight) for key in earlier if key in later]
        return both + [nearer[key] for key in nearer if not (key in earlier and key in later)]

    def _read(self, token: str) -> dict[str, _Object]:
        """The sample's objects by instance."""
        found = {}
        for annotation_token in self._devkit.get("sample", token)["anns"]:
            annotation = self._devkit.get("sample_annotation", annotation_token)
            if self._has_lidar and not annotation["num_lidar_pts"] + annotation["num_radar_pts"]:
                continue
            found[annotation["instance_token"]] = self._object(annotation)
        return found

    def _object(self, annotation: dict) -> _Object:
        try:
            centre = np.array(annotation["translation"], np.float64).reshape(3)
            heading = rotation_matrix(annotation["rotation"])[:, 0]
            width, length, _ = map(float, annotation["size"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._error(annotation, repr(error)) from None
        if not (np.isfinite(centre).all() and np.isfinite(heading).all() and width > 0 and length > 0):
            raise self._error(annotation, "a number is not finite, or a size not above 0")
        return _Object(centre, heading, (length, width), self._is_vehicle(annotation))

    def _is_vehicle(self, annotation: dict) -> bool:
        instance = self._devkit.get("instance", annotation["instance_token"])
        return self._devkit.get("category", instance["category_token"])["name"].startswith(VEHICLES)

    def _error(self, annotation: dict, problem: str) -> InputError:
        path = self._tables.root / self._tables.version / "sample_annotation.json"
        return InputError(f"{path}: annotation {annotation.get('token')}: {problem}; fetch or write the dataset again")


def _between(earlier: _Object, later: _Object, weight: float) -> _Object:
    centre = (1 - weight) * earlier.centre_m + weight * later.centre_m
    heading = (1 - weight) * earlier.heading + weight * later.heading
    if np.linalg.norm(heading) < 1e-6:  # turned by 180 degrees: the mean has no direction
        heading = later.heading
    return _Object(centre, heading, earlier.size_m, earlier.vehicle)


def _boxes(objects: list[_Object], position: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    if not objects:
        return np.zeros((0, 5))
    centres = (np.stack([one.centre_m for one in objects]) - position) @ rotation
    headings = np.stack([one.heading for one in objects]) @ rotation
    yaws = np.arctan2(headings[:, 1], headings[:, 0])
    return np.column_stack([centres[:, :2], yaws, np.array([one.size_m for one in objects])])
