"""Headings, speeds and rates along a plan. No ROS."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastdrive_node.geometry import step_headings, wrap_angle

MIN_CHORD_M = 0.05  # a shorter chord has no direction; the heading before it holds
MIN_SPEED_MPS = 0.1  # likewise a slower point of a resampled plan


@dataclass(frozen=True)
class Motion:
    """At each waypoint, in the ego frame of t0."""

    times_s: np.ndarray  # float64 [points] after t0
    headings_rad: np.ndarray  # float64 [points]
    velocities_mps: np.ndarray  # float64 [points, 2]
    accels_mps2: np.ndarray  # float64 [points], along the path
    yaw_rates_radps: np.ndarray  # float64 [points]

    @property
    def speeds_mps(self) -> np.ndarray:
        return np.linalg.norm(self.velocities_mps, axis=1)


def motion_of(waypoints_m: np.ndarray, dt_s: float) -> Motion:
    """Central differences over the waypoints and the origin; the last waypoint takes the backward one.

    Args:
        waypoints_m: [points, 2], x forward, y left; the first is at t0 + dt, the vehicle is at the origin at t0.
    """
    points = np.concatenate([np.zeros((1, 2)), np.asarray(waypoints_m, np.float64)])
    after = np.minimum(np.arange(1, len(points)) + 1, len(points) - 1)
    before = np.arange(len(points) - 1)
    chords = points[after] - points[before]
    spans_s = ((after - before) * dt_s)[:, None]
    velocities = chords / spans_s
    headings = step_headings(chords, MIN_CHORD_M)
    speeds = np.linalg.norm(velocities, axis=1)
    start_speed = np.linalg.norm(points[1] - points[0]) / dt_s if len(points) > 1 else 0.0
    return Motion(
        times_s=np.arange(1, len(points)) * dt_s,
        headings_rad=headings,
        velocities_mps=velocities,
        accels_mps2=np.diff(speeds, prepend=start_speed) / dt_s,
        yaw_rates_radps=wrap_angle(np.diff(headings, prepend=0.0)) / dt_s,
    )


def resampled(waypoints_m: np.ndarray, dt_s: float, speed_mps: float, step_s: float) -> tuple[np.ndarray, Motion]:
    """A plan at smaller steps: a cubic spline through the vehicle and the waypoints, which begins with its speed.

    The spline's tangents are limited so that it does not swing: where the plan stands, the spline stands.

    Args:
        waypoints_m: [points, 2], x forward, y left; the first is at t0 + dt, the vehicle is at the origin at t0.
        speed_mps: of the vehicle at t0, along x.
        step_s: the first resampled point is at t0 + step.

    Returns:
        float64 [n, 2], up to the time of the last waypoint, and their motion.
    """
    points = np.concatenate([np.zeros((1, 2)), np.asarray(waypoints_m, np.float64)])
    times = step_s * np.arange(0, int(np.floor((len(points) - 1) * dt_s / step_s + 1e-6)) + 1)
    places, velocities = _spline(points, _tangents(points, speed_mps * dt_s), times / dt_s)
    velocities /= dt_s
    speeds = np.linalg.norm(velocities, axis=1)
    headings = step_headings(velocities[1:], MIN_SPEED_MPS)
    return places[1:], Motion(
        times_s=times[1:],
        headings_rad=headings,
        velocities_mps=velocities[1:],
        accels_mps2=np.diff(speeds) / step_s,
        yaw_rates_radps=wrap_angle(np.diff(headings, prepend=0.0)) / step_s,
    )


def _tangents(points: np.ndarray, first: float) -> np.ndarray:
    """Central differences, at the end the one-sided one of second order, and none back there; at most three times as
    long as the steps beside them (Fritsch and Carlson's limit)."""
    steps = np.diff(points, axis=0)
    last = steps[-1] if len(steps) == 1 else (3 * steps[-1] - steps[-2]) / 2
    if last @ steps[-1] < 0:
        last = np.zeros(2)
    tangents = np.concatenate([[[first, 0.0]], (steps[:-1] + steps[1:]) / 2, last[None]])
    lengths = np.linalg.norm(steps, axis=1)
    limits = 3 * np.minimum(np.append(lengths, np.inf), np.insert(lengths, 0, np.inf))
    norms = np.linalg.norm(tangents, axis=1)
    return tangents * np.minimum(1.0, limits / np.maximum(norms, 1e-9))[:, None]


def _spline(points: np.ndarray, tangents: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cubic Hermite spline through points at 0, 1, 2, ...: values and derivatives."""
    index = np.clip(np.floor(at).astype(int), 0, len(points) - 2)
    t = (at - index)[:, None]
    before, after, leave, arrive = points[index], points[index + 1], tangents[index], tangents[index + 1]
    step = after - before
    values = before + step * (3 - 2 * t) * t**2 + leave * t * (1 - t) ** 2 + arrive * t**2 * (t - 1)
    slopes = step * 6 * t * (1 - t) + leave * (1 - t) * (1 - 3 * t) + arrive * t * (3 * t - 2)
    return values, slopes
