"""Headings, speeds and rates along a plan. No ROS."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastdrive_node.geometry import step_headings, wrap_angle

MIN_CHORD_M = 0.05  # a shorter chord has no direction; the heading before it holds


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
