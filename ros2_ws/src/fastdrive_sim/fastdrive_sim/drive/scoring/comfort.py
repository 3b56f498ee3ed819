"""HC, the comfort of the drive, and EC, that of going from one plan to the next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastdrive_sim.drive.scoring.track import Track
from fastdrive_sim.drive.types import PLANNED, RECORD_S, PlanStep

ACCEL_MPS2 = (-4.05, 2.40)  # along the vehicle
LATERAL_MPS2 = 4.89
JERK_MPS3 = 8.37  # of the whole acceleration
ALONG_JERK_MPS3 = 4.13
YAW_ACCEL_RADPS2 = 1.93
YAW_RATE_RADPS = 0.95
SHORT, LONG = 9, 15  # steps of the filters of accelerations, and of derivatives

PAIR_S, PAIR_TOLERANCE_S = 0.5, 0.05  # EC compares plans so far apart
PAIR_LIMITS = {"accel": 0.7, "jerk": 0.5, "yaw_rate": 0.1, "yaw_accel": 0.1}  # RMS differences
CRAWL_MPS = 0.5  # the points of a slower plan have no direction


def filtered(values: np.ndarray, window: int, order: int = 2, derivative: int = 0) -> np.ndarray:
    """Savitzky-Golay filter over steps ``RECORD_S`` apart, with the largest odd window that the values allow.

    Written out, for to import scipy.signal takes longer than to score a run.
    """
    window = min(window, len(values) - (len(values) + 1) % 2)
    if window <= order:
        return np.zeros(len(values)) if derivative else np.asarray(values, np.float64)
    half = window // 2
    offsets = RECORD_S * np.arange(-half, half + 1)
    powers = np.arange(order + 1 - derivative)
    factors = np.array([math.perm(int(power) + derivative, derivative) for power in powers])
    fits = (
        np.lib.stride_tricks.sliding_window_view(values, window)
        @ np.linalg.pinv(np.vander(offsets, order + 1, increasing=True)).T
    )
    fits = fits[:, derivative:] * factors  # [T - window + 1, powers], polynomials around the middles of the windows
    ends = (offsets[:half, None] ** powers @ fits[0], offsets[half + 1 :, None] ** powers @ fits[-1])
    return np.concatenate([ends[0], fits[:, 0], ends[1]])


def breaches(
    accel: np.ndarray,
    lateral: np.ndarray,
    jerk: np.ndarray,
    along_jerk: np.ndarray,
    yaw_rate: np.ndarray,
    yaw_accel: np.ndarray,
) -> dict[str, np.ndarray]:
    """bool [T] for each limit: where it is exceeded. A value that equals its limit is within it."""
    slack = 1e-9
    return {
        "acceleration": (accel < ACCEL_MPS2[0] - slack) | (accel > ACCEL_MPS2[1] + slack),
        "lateral acceleration": np.abs(lateral) > LATERAL_MPS2 + slack,
        "jerk": np.abs(jerk) > JERK_MPS3 + slack,
        "longitudinal jerk": np.abs(along_jerk) > ALONG_JERK_MPS3 + slack,
        "yaw rate": np.abs(yaw_rate) > YAW_RATE_RADPS + slack,
        "yaw acceleration": np.abs(yaw_accel) > YAW_ACCEL_RADPS2 + slack,
    }  # fmt: skip


def uncomfortable_steps(track: Track) -> dict[str, np.ndarray]:
    """bool [T] for each limit of HC: where the drive exceeds it."""
    accel = filtered(track.accel, SHORT)
    lateral = filtered(track.speed * track.yaw_rate, SHORT)
    whole = filtered(np.hypot(track.accel, track.speed * track.yaw_rate), SHORT)
    yaw = np.unwrap(track.yaw)
    return breaches(
        accel,
        lateral,
        filtered(whole, LONG, derivative=1),
        filtered(accel, LONG, derivative=1),
        filtered(yaw, LONG, derivative=1),
        filtered(yaw, LONG, order=3, derivative=2),
    )


@dataclass(frozen=True)
class PlanMotion:
    """A plan as a motion: cubics in time for x and y, fitted to the vehicle's pose and speed at t0 and the waypoints.

    Waypoints are often rounded, so that differences of neighbours would have a jerk that nobody would drive.
    """

    start_s: float
    end_s: float
    origin: np.ndarray  # [2], where the vehicle was at t0
    cubic: np.ndarray  # [3, 2], of t, t^2, t^3

    @classmethod
    def of(cls, plan: PlanStep) -> PlanMotion | None:
        """None where the plan has no waypoints, or it is not known where it begins."""
        if plan.ego is None or len(plan.xy) < 2:
            return None
        ego, times = plan.ego, plan.times_s - plan.time_s
        origin = np.array([ego.x, ego.y])
        velocity = ego.speed * np.array([np.cos(ego.yaw), np.sin(ego.yaw)])
        rows = np.concatenate([np.stack([times, times**2, times**3], axis=1), [[1.0, 0.0, 0.0]]])
        wanted = np.concatenate([plan.xy - origin, [velocity]])
        cubic = np.linalg.lstsq(rows, wanted, rcond=None)[0]
        return cls(plan.time_s, float(plan.times_s[-1]), origin, cubic)

    def at(self, times_s: np.ndarray) -> dict[str, np.ndarray]:
        """``speed``, ``accel``, ``jerk``, ``yaw_rate`` and ``yaw_accel`` at times of the plan, 10 Hz."""
        t = (times_s - self.start_s)[:, None]
        a, b, c = self.cubic
        velocity, second = a + t * (2 * b + 3 * c * t), 2 * b + 6 * c * t
        speed = np.linalg.norm(velocity, axis=1)
        moving = speed >= CRAWL_MPS
        safe = np.where(moving, speed, 1.0)
        accel = np.where(moving, (velocity * second).sum(axis=1) / safe, 0.0)
        turn = velocity[:, 0] * second[:, 1] - velocity[:, 1] * second[:, 0]
        yaw_rate = np.where(moving, turn / safe**2, 0.0)
        slope = lambda values: np.gradient(values, RECORD_S) if len(values) > 1 else np.zeros(len(values))  # noqa: E731
        return {
            "speed": speed,
            "accel": accel,
            "jerk": slope(accel),
            "yaw_rate": yaw_rate,
            "yaw_accel": slope(yaw_rate),
        }

    def stamps(self, from_s: float, to_s: float) -> np.ndarray:
        """Times of the plan, every ``RECORD_S``."""
        count = int(np.floor((to_s - from_s) / RECORD_S + 1e-6))
        return from_s + RECORD_S * np.arange(max(count, 0) + 1)


def plan_is_comfortable(plan: PlanStep) -> bool:
    """Whether a plan keeps the limits of HC."""
    motion = PlanMotion.of(plan)
    if motion is None:
        return True
    values = motion.at(motion.stamps(motion.start_s, motion.end_s))
    lateral = values["speed"] * values["yaw_rate"]
    whole = np.gradient(np.hypot(values["accel"], lateral), RECORD_S)
    found = breaches(values["accel"], lateral, whole, values["jerk"], values["yaw_rate"], values["yaw_accel"])
    return not any(each.any() for each in found.values())


def plan_pairs(plans: Sequence[PlanStep]) -> list[tuple[PlanStep, PlanStep]]:
    """Each plan with the one ``PAIR_S`` later, where there is one."""
    planned = sorted((plan for plan in plans if plan.outcome == PLANNED), key=lambda plan: plan.time_s)
    pairs = []
    for plan in planned:
        later = min(planned, key=lambda other: abs(other.time_s - plan.time_s - PAIR_S))
        if abs(later.time_s - plan.time_s - PAIR_S) <= PAIR_TOLERANCE_S + 1e-9:
            pairs.append((plan, later))
    return pairs


def plans_agree(first: PlanStep, second: PlanStep) -> bool | None:
    """EC of two plans: whether the RMS differences over the time of both are within the limits; None: not known."""
    motions = PlanMotion.of(first), PlanMotion.of(second)
    if motions[0] is None or motions[1] is None:
        return None
    stamps = motions[1].stamps(motions[1].start_s, min(motions[0].end_s, motions[1].end_s))
    one, two = (motion.at(stamps) for motion in motions if motion is not None)
    return all(
        float(np.sqrt(np.mean((one[name] - two[name]) ** 2))) <= limit + 1e-9 for name, limit in PAIR_LIMITS.items()
    )


def plan_comfort(plans: Sequence[PlanStep]) -> float | None:
    """EC: the fraction of pairs of plans that agree; None without a pair."""
    agree = [found for pair in plan_pairs(plans) if (found := plans_agree(*pair)) is not None]
    return float(np.mean(agree)) if agree else None
