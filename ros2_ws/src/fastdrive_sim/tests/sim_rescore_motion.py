"""What is judged on motion and on plans, and the totals, computed again as in ``sim_rescore``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np
from scipy.signal import savgol_filter
from sim_rescore import BESIDE_THE_ROAD, ReadAgain, bearing_deg, moved, touches

LIMITS_OF_PAIRS = (0.7, 0.5, 0.1, 0.1)  # RMS differences: acceleration, jerk, yaw rate, yaw acceleration


def rescore(texts: Sequence[str]) -> dict[str, float | None]:
    """Every term and total of a run from its lines; EC is None where it has no two plans 0.5 s apart."""
    run = ReadAgain(texts)
    terms = {
        "nc": run.no_collision(),
        "dac": run.drivable_area(),
        "ddc": run.driving_direction(),
        "tlc": run.red_light(),
        "ep": run.progress(),
        "ttc": part_of_windows(too_close(run)),
        "lk": part_of_windows(beside_the_lane(run)),
        "hc": part_of_windows(uncomfortable(run)),
    }
    soft = [(5, terms["ep"]), (5, terms["ttc"]), (2, terms["lk"]), (2, terms["hc"])]
    ec = part_of_pairs(run)
    soft += [] if ec is None else [(2, ec)]
    mean = sum(weight * value for weight, value in soft) / sum(weight for weight, _ in soft)
    failed = run.head["ending"] == "failed"
    return terms | {
        "ec": ec,
        "epdms_style": 0.0 if failed else terms["nc"] * terms["dac"] * terms["ddc"] * terms["tlc"] * mean,
        "neuroncap": 0.0 if failed else run.neuroncap(),
        "hd_score": 0.0 if failed else hd_score(run),
        "route_completion": run.route_completion(),
    }


def differing(reported: dict, texts: Sequence[str]) -> dict[str, tuple[float | None, float | None]]:
    """The scores of a run that are not those of its entry in a summary: as reported, and computed again.

    The way along the route is found on the map's line, which has points 0.5 m apart; far from it, in a bend, the
    nearest point is not well defined.
    """
    way = 5e-3 if reported["ending"] == "off_road" else 5e-4
    tolerances = {"ep": way, "route_completion": way, "epdms_style": way, "hd_score": way}
    found = {}
    for name, value in rescore(texts).items():
        given = reported[name]
        if not is_same(value, given, tolerances.get(name, 1e-5)):
            found[name] = (given, value)
    return found


def is_same(one: float | None, other: float | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= tolerance


def part_of_windows(broken: Sequence[bool]) -> float:
    """The part of the windows of 4 s, one each 0.5 s, in which a rule is never broken; of a short run there is one."""
    windows = [broken[first : first + 41] for first in range(0, len(broken), 5)]
    whole = [window for window in windows if len(window) == 41] or windows[:1]
    return sum(not any(window) for window in whole) / len(whole)


def too_close(run: ReadAgain) -> list[bool]:
    """TTC at each step: whether the vehicle, going on as it does, meets something that counts within 0.9 s."""
    obstacles = [thing for thing in run.map["obstacles"] if thing["kind"] not in BESIDE_THE_ROAD]
    ignored: set[int] = set()
    found = []
    for index, ego in enumerate(run.egos):
        found.append(False)
        if ego["speed"] < 5e-3:
            continue
        everywhere = None
        for tenths in (0, 3, 6, 9):
            box = run.box(moved(ego, 0.1 * tenths))
            for thing in chain(run.others_at(index + tenths), obstacles):
                if thing["instance"] in ignored or not touches(box, thing):
                    continue
                angle = bearing_deg(ego, thing)
                if everywhere is None:
                    everywhere = run.may_be_at_fault_beside(ego)
                if (angle < 30.0 or (everywhere and angle <= 150.0)) and index + tenths != 0:
                    found[-1] = True
                else:
                    ignored.add(thing["instance"])
    return found


def beside_the_lane(run: ReadAgain) -> list[bool]:
    """LK at each step: more than 0.5 m off the middle for 2.0 s by now, outside of junctions."""
    found, since = [], None
    for ego, step in zip(run.egos, run.steps, strict=True):
        if run.off_line_m(ego) > 0.5 and not run.is_in_junction(ego):
            since = step["time_s"] if since is None else since
        else:
            since = None
        found.append(since is not None and step["time_s"] - since >= 2.0 - 1e-6)
    return found


def uncomfortable(run: ReadAgain) -> list[bool]:
    """HC at each step: whether the drive exceeds a limit."""
    speed, accel, yaw_rate, yaw = (
        np.array([ego[name] for ego in run.egos]) for name in ("speed", "accel", "yaw_rate", "yaw")
    )
    along, across = smooth(accel, 9), smooth(speed * yaw_rate, 9)
    whole, turned = smooth(np.hypot(accel, speed * yaw_rate), 9), np.unwrap(yaw)
    values = (
        along, across, smooth(whole, 15, 1), smooth(along, 15, 1), smooth(turned, 15, 1), smooth(turned, 15, 2, 3),
    )  # fmt: skip
    return breaks_a_limit(*values).tolist()


def smooth(values: np.ndarray, window: int, derivative: int = 0, order: int = 2) -> np.ndarray:
    """Savitzky-Golay filter; of a short run the window is the largest odd one."""
    window = min(window, len(values) if len(values) % 2 else len(values) - 1)
    if window <= order:
        return np.zeros(len(values)) if derivative else values
    return np.asarray(savgol_filter(values, window, order, deriv=derivative, delta=0.1, mode="interp"))


def breaks_a_limit(along, across, jerk, along_jerk, yaw_rate, yaw_accel) -> np.ndarray:
    """bool [T]: the limits of comfort, the same for the drive and for a plan."""
    sizes = ((across, 4.89), (jerk, 8.37), (along_jerk, 4.13), (yaw_rate, 0.95), (yaw_accel, 1.93))
    over = [np.abs(values) > limit + 1e-9 for values, limit in sizes]
    return np.any([*over, along > 2.40 + 1e-9, along < -4.05 - 1e-9], axis=0)


class Motion:
    """A plan as cubics of time, x and y in one complex number: speed at t0 and waypoints fitted."""

    def __init__(self, plan: dict):
        ego = plan["ego"]
        self.start_s, self.end_s = plan["time_s"], plan["times_s"][-1]
        times = np.array(plan["times_s"]) - self.start_s
        rows = np.vstack([[times, times**2, times**3]]).T
        wanted = np.array([complex(*point) for point in plan["xy"]]) - complex(ego["x"], ego["y"])
        rows = np.vstack([rows, [1.0, 0.0, 0.0]])
        wanted = np.append(wanted, ego["speed"] * np.exp(1j * ego["yaw"]))
        self._factors = np.linalg.solve(rows.T @ rows, rows.T @ wanted)  # normal equations

    def at(self, from_s: float, to_s: float) -> dict[str, np.ndarray]:
        """Values at 10 Hz; the points of a plan slower than 0.5 m/s have no direction, and no values."""
        t = from_s - self.start_s + 0.1 * np.arange(int((to_s - from_s) * 10 + 1e-4) + 1)
        a, b, c = self._factors
        velocity, change = a + 2 * b * t + 3 * c * t**2, 2 * b + 6 * c * t
        moves = np.abs(velocity) >= 0.5
        ratio = np.where(moves, change / np.where(moves, velocity, 1.0), 0.0)  # real: relative growth, imaginary: turn
        speed = np.abs(velocity)
        return {
            "speed": speed,
            "along": ratio.real * speed,
            "along_jerk": differences(ratio.real * speed),
            "yaw_rate": ratio.imag,
            "yaw_accel": differences(ratio.imag),
        }


def differences(values: np.ndarray) -> np.ndarray:
    """Central differences of values at 10 Hz, one-sided at the ends."""
    if len(values) < 2:
        return np.zeros(len(values))
    padded = np.concatenate([[2 * values[0] - values[1]], values, [2 * values[-1] - values[-2]]])
    return (padded[2:] - padded[:-2]) / 0.2


def part_of_pairs(run: ReadAgain) -> float | None:
    """EC: the part of pairs of plans, 0.5 s apart, that differ little over the time of both."""
    plans = [plan for plan in run.plans if plan["outcome"] == "planned"]
    agree = []
    for first in plans:
        distances = [abs(plan["time_s"] - first["time_s"] - 0.5) for plan in plans]
        second = plans[int(np.argmin(distances))]
        if min(distances) > 0.05 + 1e-9 or not (is_motion(first) and is_motion(second)):
            continue
        motions = Motion(first), Motion(second)
        spans = [each.at(motions[1].start_s, min(each.end_s for each in motions)) for each in motions]
        rms = [
            math.sqrt(np.mean((spans[0][name] - spans[1][name]) ** 2))
            for name in ("along", "along_jerk", "yaw_rate", "yaw_accel")
        ]
        agree.append(all(value <= limit + 1e-9 for value, limit in zip(rms, LIMITS_OF_PAIRS, strict=True)))
    return sum(agree) / len(agree) if agree else None


def is_motion(plan: dict) -> bool:
    return plan["ego"] is not None and len(plan["xy"]) > 1


def hd_score(run: ReadAgain) -> float:
    """Mean over the plans of NC * DAC * (5 TTC + 2 C) / 7, times route completion."""
    plans = [plan for plan in run.plans if plan["outcome"] == "planned" and plan["ego"] and plan["xy"]]
    scores = [score_of_plan(run, plan) for plan in plans]
    return sum(scores) / len(scores) * run.route_completion() if scores else 0.0


def score_of_plan(run: ReadAgain, plan: dict) -> float:
    poses = poses_of(plan)
    if not all(run.is_on_road(pose) for pose in poses) or any(meets(run, pose, 0.0) for pose in poses):
        return 0.0
    close = any(meets(run, pose, ahead_s) for pose in poses for ahead_s in (0.5, 1.0))
    return (5 * (not close) + 2 * is_comfortable(plan)) / 7


def poses_of(plan: dict) -> list[dict]:
    """The begin of a plan and its waypoints: time, place, heading, and velocity of the segment that ends there."""
    ego = plan["ego"]
    heading = ego["yaw"]
    points = [
        (plan["time_s"], ego["x"], ego["y"]),
        *((t, *xy) for t, xy in zip(plan["times_s"], plan["xy"], strict=True)),
    ]
    poses = []
    for (t0, x0, y0), (t1, x1, y1) in pairwise(points):
        way = complex(x1 - x0, y1 - y0)
        heading = math.atan2(way.imag, way.real) if abs(way) >= 0.5 else heading
        poses.append({"time_s": t1, "x": x1, "y": y1, "yaw": heading, "velocity": way / (t1 - t0)})
    first = {"time_s": plan["time_s"], "x": ego["x"], "y": ego["y"], "yaw": ego["yaw"]}
    return [first | {"velocity": poses[0]["velocity"]}, *poses]


def meets(run: ReadAgain, pose: dict, ahead_s: float) -> bool:
    """Whether a pose, moved on at its velocity, touches anything where it is at that time."""
    way = pose["velocity"] * ahead_s
    box = run.box(pose | {"x": pose["x"] + way.real, "y": pose["y"] + way.imag})
    index = round((pose["time_s"] + ahead_s) * 10)
    return any(touches(box, thing) for thing in chain(run.others_at(index), run.map["obstacles"]))


def is_comfortable(plan: dict) -> bool:
    if not is_motion(plan):
        return True
    motion = Motion(plan)
    values = motion.at(motion.start_s, motion.end_s)
    across = values["speed"] * values["yaw_rate"]
    jerk = differences(np.hypot(values["along"], across))
    rest = values["along_jerk"], values["yaw_rate"], values["yaw_accel"]
    return not breaks_a_limit(values["along"], across, jerk, *rest).any()
