"""What a plan asks of a vehicle, each figure with what rounding alone may give. No ROS.

Points that are rounded to 0.1 m lie up to 0.05 m from where the model wants them in each coordinate. Over steps of
0.5 s that alone gives accelerations of 0.8 m/s2 and jerks of 3.2 m/s3, so every figure comes with the largest value
that an error of ``tolerance_m`` in each coordinate can cause. A limit is exceeded where the rest exceeds it.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from fastdrive_node.geometry import wrap_angle

SPAN_S = 0.5  # over which differences are taken where steps are shorter: rounding errors grow with 1 / dt^3
SPEED_TOLERANCE_MPS = 0.1  # of the measured speed at t0
REVERSE_MPS = 0.3  # a vehicle that is faster than this backwards drives in reverse; it may stop and drive forward
_AHEAD = np.array([1.0, 0.0])


@dataclass(frozen=True)
class Quantity:
    """One quantity along a plan, [n] of each."""

    values: np.ndarray  # magnitudes
    tolerances: np.ndarray
    waypoints: np.ndarray  # their numbers, from 1

    @classmethod
    def of(cls, values: np.ndarray, tolerance: np.ndarray | float, waypoints: np.ndarray) -> Quantity:
        return cls(np.abs(values), np.broadcast_to(np.asarray(tolerance, float), values.shape), waypoints)

    def worst(self) -> int:
        """Where most is left after the tolerance."""
        return int(np.argmax(self.values - self.tolerances))


def differences(waypoints_m: np.ndarray, dt_s: float, speed_mps: float, tolerance_m: float) -> dict[str, Quantity]:
    """Speed, acceleration and jerk as vectors, split along and across the direction of motion.

    Args:
        waypoints_m: [points, 2], x forward, y left; the first is at t0 + dt, the vehicle is at the origin at t0.
        speed_mps: at t0, along x; negative in reverse.
        tolerance_m: error of a coordinate.

    Returns:
        "speed"; "start": the mean acceleration with which the vehicle gets from its present velocity to the first
        point, by its size; "acceleration", "lateral_acceleration", "jerk", "lateral_jerk".
    """
    points = np.vstack([np.zeros(2), waypoints_m])
    lag = min(max(round(SPAN_S / dt_s), 1), len(waypoints_m))  # points of one difference
    span = lag * dt_s
    numbers = np.arange(1, len(points))
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    diagonal = math.sqrt(2) * tolerance_m
    found = {"speed": Quantity.of(steps / dt_s, 2 * diagonal / dt_s, numbers)}
    start = 2 * (points[lag] - speed_mps * span * _AHEAD) / span**2
    start_tolerance = 2 * tolerance_m / span**2 + 2 * SPEED_TOLERANCE_MPS / span
    size = np.array([float(np.linalg.norm(start))])
    found["start"] = Quantity.of(size, math.sqrt(2) * start_tolerance, numbers[lag - 1 : lag])
    accels = (points[2 * lag :] - 2 * points[lag:-lag] + points[: -2 * lag]) / span**2
    directions = np.vstack([_AHEAD, _directions(points, lag)])
    vectors = np.vstack([start, accels])
    tolerances = np.array([start_tolerance] + [4 * tolerance_m / span**2] * len(accels))
    # The first one is reported as "start" only, except for the jerk from it to the next.
    along, across = _split(vectors, directions)
    at = numbers[lag - 1 : lag - 1 + len(accels)]
    found["acceleration"] = Quantity.of(along[1:], tolerances[1:], at)
    found["lateral_acceleration"] = Quantity.of(across[1:], tolerances[1:], at)
    # "start" is the acceleration at a third of the first span, the mean of a constant jerk weighted as it is
    jerks = (accels[lag:] - accels[:-lag]) / span
    bounds = np.full(len(jerks), 8 * tolerance_m / span**3)
    at = numbers[lag - 1 : lag - 1 + len(jerks)]
    turned = directions[1 : 1 + len(jerks)]
    if len(accels):
        first = (accels[0] - start) / (2 * span / 3)
        bound = 7.5 * tolerance_m / span**3 + 3 * SPEED_TOLERANCE_MPS / span**2
        jerks, bounds = np.vstack([first, jerks]), np.append(bound, bounds)
        at, turned = np.append(lag, at), np.vstack([_AHEAD, turned])
    along, across = _split(jerks, turned)
    found["jerk"], found["lateral_jerk"] = Quantity.of(along, bounds, at), Quantity.of(across, bounds, at)
    return found


def _directions(points: np.ndarray, lag: int) -> np.ndarray:
    """Unit vectors of motion at the points lag, lag + 1, ...; a vehicle that stands keeps the one before, [n, 2]."""
    chords = points[2 * lag :] - points[: -2 * lag]
    lengths = np.linalg.norm(chords, axis=1)
    found, last = [], _AHEAD
    for chord, length in zip(chords, lengths, strict=True):
        last = chord / length if length >= 0.5 else last
        found.append(last)
    return np.array(found).reshape(-1, 2)


def _split(vectors: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Components along and across."""
    across = directions[:, 0] * vectors[:, 1] - directions[:, 1] * vectors[:, 0]
    return (vectors * directions).sum(axis=1), across


def bends(
    waypoints_m: np.ndarray, dt_s: float, tolerance_m: float, min_step_m: float, wheel_base_m: float
) -> dict[str, Quantity]:
    """Curvature, yaw rate, and steering of a bicycle model, from the shape of the path.

    Points nearer than ``min_step_m`` or ``SPAN_S`` to the one before are left out: their direction is noise. At the
    others, and at the start, where the direction is the vehicle's own, a circle's arc is laid through the turn between
    two chords.
    """
    joined = _joined(waypoints_m, min_step_m, max(round(SPAN_S / dt_s), 1))
    points = np.vstack([np.zeros(2), waypoints_m])[joined]
    if len(points) < 2:
        none = Quantity(*(np.zeros(0),) * 3)
        return dict.fromkeys(("curvature", "yaw_rate", "steering", "steering_rate"), none)
    chords = np.diff(points, axis=0)
    lengths = np.linalg.norm(chords, axis=1)
    headings = np.arctan2(chords[:, 1], chords[:, 0])
    errors = 2 * math.sqrt(2) * tolerance_m / lengths
    errors[0] /= 2  # the vehicle's own place has no error
    # At the start the turn from the own heading to the first chord is half of that over the whole arc.
    turns = np.append(2 * _from_axis(headings[0]), wrap_angle(np.diff(headings)))
    bounds = np.append(2 * errors[0], errors[1:] + errors[:-1])
    spans = np.append(lengths[0], (lengths[1:] + lengths[:-1]) / 2)
    times = np.append(joined[1] * dt_s, (np.asarray(joined[2:]) - np.asarray(joined[:-2])) * dt_s / 2)
    at = np.append(joined[1], joined[1:-1])
    curvatures = _curvature(turns, spans)
    rest = np.sign(turns) * _curvature(np.maximum(np.abs(turns) - bounds, 0), spans)
    found = {
        "curvature": Quantity.of(curvatures, np.abs(curvatures - rest), at),
        "yaw_rate": Quantity.of(turns / times, bounds / times, at),
    }
    steering = np.arctan(wheel_base_m * curvatures)
    steering_bounds = np.abs(steering - np.arctan(wheel_base_m * rest))
    found["steering"] = Quantity.of(steering, steering_bounds, at)
    between = np.diff(np.append(joined[1] / 2, joined[1:-1])) * dt_s  # the first is in the middle of its arc
    both = steering_bounds[1:] + steering_bounds[:-1]
    found["steering_rate"] = Quantity.of(np.diff(steering) / between, both / between, at[1:])
    return found


def _joined(waypoints_m: np.ndarray, min_step_m: float, lag: int) -> list[int]:
    """Numbers of the points, 0 for the origin, each at least ``min_step_m`` and ``lag`` steps from the one before."""
    chosen, last = [0], np.zeros(2)
    for number, point in enumerate(waypoints_m, 1):
        if number - chosen[-1] >= lag and np.linalg.norm(point - last) >= min_step_m:
            chosen.append(number)
            last = point
    return chosen


def _from_axis(heading: float) -> float:
    """Angle of a chord to the vehicle's axis; driving backwards along it is no turn."""
    return wrap_angle(heading - math.pi) if abs(heading) > math.pi / 2 else heading


def _curvature(turns: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Of the circle that has chords of the length ``spans`` and this turn between two of them."""
    return 2 * np.sin(turns / 2) / spans


def backwards(waypoints_m: np.ndarray, speed_mps: float, tolerance_m: float, min_step_m: float) -> Quantity:
    """Distance against the direction of motion, which is the vehicle's own until it has moved by ``min_step_m``.

    A vehicle in reverse may go on so, or stop and drive forward; a plan that turns round later counts in both cases.
    """
    points = np.vstack([np.zeros(2), waypoints_m])
    direction = None if speed_mps < -REVERSE_MPS else _AHEAD
    total, last, found = 0.0, points[0], []
    for before, point in itertools.pairwise(points):
        if direction is not None:
            total = max(0.0, total - float((point - before) @ direction))
        found.append(total)
        if np.linalg.norm(point - last) >= min_step_m:
            direction, last = (point - last) / np.linalg.norm(point - last), point
    return Quantity.of(np.array(found), 2 * math.sqrt(2) * tolerance_m, np.arange(1, len(points)))
