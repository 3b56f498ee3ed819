"""Whether a vehicle could drive a plan that the model wrote correctly; if not, the plan is refused with the reason."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastdrive_node.errors import AnswerError
from fastdrive_node.geometry import step_headings, wrap_angle


@dataclass(frozen=True)
class PlanLimits:
    """Limits of a plan. The defaults only refuse what no road vehicle does.

    A speed is the mean over one step, an acceleration the difference of two such speeds over one step. Both are noisy
    for answers with two decimals, so the defaults are far above comfortable values.
    """

    speed_mps: float = 40.0
    accel_mps2: float = 15.0  # speeding up or slowing down, between steps and from the current speed
    curvature_per_m: float = 0.35  # 1 / turning radius; a car's tightest is about 0.2
    curvature_min_step_m: float = 2.0  # below this step length a heading is noise, and curvature is not checked


def check_plan(waypoints_m: np.ndarray, dt_s: float, speed_mps: float, limits: PlanLimits | None = None) -> None:
    """Check a plan against the limits.

    Args:
        waypoints_m: [points, 2], x forward, y left; the first is at t0 + dt, the vehicle is at the origin at t0.
        speed_mps: the vehicle's speed at t0; negative in reverse.

    Raises:
        AnswerError: a coordinate is not finite, or a limit is exceeded; the reason names the waypoint and both figures.
    """
    limits = limits or PlanLimits()
    if not np.isfinite(waypoints_m).all():
        raise AnswerError("plan: a coordinate is not finite")
    steps = np.diff(waypoints_m, axis=0, prepend=np.zeros((1, 2)))
    lengths = np.linalg.norm(steps, axis=1)
    speeds = lengths / dt_s
    _check(speeds, limits.speed_mps, "speed", "m/s")
    # the first step's mean speed is the speed at its middle, half a step after t0
    accels = np.diff(speeds, prepend=abs(speed_mps)) / np.array([dt_s / 2] + [dt_s] * (len(speeds) - 1))
    _check(np.abs(accels), limits.accel_mps2, "acceleration", "m/s2")
    _check(_curvature(steps, lengths, limits.curvature_min_step_m), limits.curvature_per_m, "curvature", "1/m")


def _curvature(steps: np.ndarray, lengths: np.ndarray, min_step_m: float) -> np.ndarray:
    """Change of heading over the path length between the middles of two steps, [points]; 0 where a step is short.

    The path starts with the vehicle's own heading, which counts as a step of the first one's length.
    """
    turns = np.abs(wrap_angle(np.diff(step_headings(steps), prepend=0.0)))
    before = np.concatenate([lengths[:1] * 0, lengths[:-1]])
    spans = (before + lengths) / 2
    long_enough = (lengths >= min_step_m) & (np.concatenate([lengths[:1], lengths[:-1]]) >= min_step_m)
    return np.where(long_enough, turns / np.maximum(spans, 1e-9), 0.0)


def _check(values: np.ndarray, limit: float, name: str, unit: str) -> None:
    worst = int(np.argmax(values))
    if values[worst] > limit:
        raise AnswerError(
            f"plan: {name} of {values[worst]:.2f} {unit} at waypoint {worst + 1} exceeds {limit:g} {unit}"
        )
