"""The record of one closed-loop run: what the scores need, and nothing that depends on the machine's speed.

SI units; world frame x east, y north, yaw counter-clockwise. Times are seconds from the start of the run. The ego pose
is that of the rear axle on the ground; other road users are given by the middle of their footprint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from fastdrive_node.types import Vehicle

RECORD_S = 0.1  # between two steps of a record
SUBSTEPS = 10  # of physics, between two steps of a record
PLANNED, REFUSED, LATE, SUPERSEDED = "planned", "refused", "late", "superseded"
COMPLETED, COLLIDED, OFF_ROAD, TIMEOUT, FAILED = "completed", "collision", "off_road", "timeout", "failed"
ENDINGS = (COMPLETED, COLLIDED, OFF_ROAD, TIMEOUT, FAILED)
EXPERT, CONSTANT_VELOCITY = "expert", "constant-velocity"  # rows that drive without the node
Where = Literal["front", "side", "rear"]
KeptMasks = Mapping[str, np.ndarray]  # by camera, in the VLA's order: bool [rows, columns], True for a kept token


@dataclass(frozen=True)
class DriveRow:
    """What drove, and under which fault. A row of the table; runs of two rows are paired by family and seed."""

    pruner: str  # a pruner's name or file, ``expert`` or ``constant-velocity``
    drop: float = 0.0  # the pruning ratio p
    fault: str = ""  # name of the fault, "" for none
    severity: float = 0.0  # of the fault, in its unit (``faults``)
    latency_s: float = 0.0  # simulated, from the exposure to the use of a plan; of recorded ones the mean

    @property
    def name(self) -> str:
        """As in file names and tables: ``reconpruner@0.5+frozen:0.3``; of a pruner's file its name."""
        pruner = Path(self.pruner).stem
        drop = f"@{self.drop:g}" if self.drop else ""
        fault = f"+{self.fault}:{self.severity:g}" if self.fault else ""
        return f"{pruner}{drop}{fault}"


@dataclass(frozen=True)
class EgoStep:
    """The ego vehicle at one instant."""

    x: float
    y: float
    yaw: float
    speed: float
    accel: float  # along the heading
    yaw_rate: float
    steer: float  # of the front wheels, rad


@dataclass(frozen=True)
class Other:
    """A road user at one instant, or something that stands (``StaticMap.obstacles``, speed 0)."""

    instance: int  # as in the images
    kind: str  # "car", "pedestrian", "cyclist", "barrier" ...
    x: float
    y: float
    yaw: float
    length: float
    width: float
    speed: float = 0.0  # along yaw


@dataclass(frozen=True)
class Light:
    """A traffic light for the ego's leg of a junction."""

    instance: int
    state: str  # "red" | "red_yellow" | "yellow" | "green"
    stop_line: tuple[tuple[float, float], tuple[float, float]]  # from the right end to the left one
    area: tuple[tuple[float, float], ...]  # polygon that the ego must not enter at red: stop line to the junction's box


@dataclass(frozen=True)
class RunStep:
    """The world at one instant, every ``RECORD_S``."""

    time_s: float
    ego: EgoStep
    others: tuple[Other, ...]  # within 100 m, those that move or can move
    lights: tuple[Light, ...]
    command: str  # "left" | "straight" | "right"
    progress_m: float  # arc length on ``StaticMap.route``, from the start of the run, of the ego 0.09 s before
    plan: int  # index in ``RunRecord.plans`` of the plan that is tracked; -1 before the first one
    plan_age_s: float  # from the exposure of that plan's images to now; 0 where ``plan`` is -1


@dataclass(frozen=True)
class PlanStep:
    """One planning tick: what became of one frame set."""

    time_s: float  # exposure of the images, t0
    outcome: str  # PLANNED | REFUSED | LATE (planned, but a newer plan was in use before it came) | SUPERSEDED
    reason: str = ""  # of a refusal
    used_from_s: float | None = None  # when it came into use; None: never
    xy: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))  # waypoints in the world, [P, 2]
    times_s: np.ndarray = field(default_factory=lambda: np.zeros(0))  # of each waypoint, [P]; the first is t0 + dt
    ego: EgoStep | None = None  # at t0, from the true state; the plan begins there
    mode: str = ""  # of the node
    kept_tokens: int = 0
    total_tokens: int = 0
    # Which ones, of the images at t0; empty where that is not known. Scores and hash leave it out (``kept``).
    kept: KeptMasks = field(default_factory=dict)


@dataclass(frozen=True)
class Collision:
    """The first contact of the ego with something."""

    time_s: float
    other: Other
    is_static: bool  # an obstacle of the map
    ego_speed: float
    impact_speed: float  # length of the relative velocity, m/s
    where: Where  # of the ego vehicle was hit
    ego: EgoStep


@dataclass(frozen=True)
class Lane:
    """A lane between two junctions."""

    polygon: np.ndarray  # [V, 2]
    center: np.ndarray  # [R, 2] in its driving direction
    is_oncoming: bool  # against the ego's route


@dataclass(frozen=True)
class StaticMap:
    """What does not move. The route is the middle of the ego's lane, from its start to the goal and 60 m on."""

    route: np.ndarray  # float64 [R, 2], about ``spacing_m`` apart
    spacing_m: float
    goal_m: float  # arc length from the start at which the run is completed
    drivable: tuple[np.ndarray, ...]  # polygons [V, 2]; their union may be driven on
    lanes: tuple[Lane, ...]
    junctions: tuple[np.ndarray, ...]  # polygons [V, 2] of the boxes, outside of the lanes
    obstacles: tuple[Other, ...]  # within 15 m of the route: parked vehicles, barriers, cones, poles, trees, buildings
    speed_limit: float


@dataclass(frozen=True)
class RunRecord:
    """One run."""

    family: str
    seed: int
    row: DriveRow
    map: StaticMap
    steps: tuple[RunStep, ...]
    plans: tuple[PlanStep, ...]
    collisions: tuple[Collision, ...]  # the run ends with the first one with anything but a traffic cone
    ending: str  # one of ENDINGS
    reason: str = ""  # of FAILED
    # Arc length from the start, of the expert in the same scenario, every RECORD_S from 0; EP divides by it.
    expert_progress_m: np.ndarray = field(default_factory=lambda: np.zeros(0))
    vehicle: Vehicle = field(default_factory=Vehicle)
    parameters: dict = field(default_factory=dict)  # of the scenario, drawn from the seed

    @property
    def key(self) -> tuple[str, int]:
        """What pairs the runs of two rows."""
        return self.family, self.seed


def corners(x: float, y: float, yaw: float, length: float, width: float) -> np.ndarray:
    """Corners [4, 2] of a rectangle around its middle: front left, rear left, rear right, front right."""
    local = np.array([[length, width], [-length, width], [-length, -width], [length, -width]]) / 2
    cos, sin = math.cos(yaw), math.sin(yaw)
    return local @ np.array([[cos, sin], [-sin, cos]]) + (x, y)


def ego_corners(ego: EgoStep, vehicle: Vehicle) -> np.ndarray:
    """Corners [4, 2] of the ego vehicle, in the order of ``corners``."""
    ahead = vehicle.center_m
    x, y = ego.x + ahead * math.cos(ego.yaw), ego.y + ahead * math.sin(ego.yaw)
    return corners(x, y, ego.yaw, vehicle.length_m, vehicle.width_m)


def other_corners(other: Other) -> np.ndarray:
    """Corners [4, 2] of a road user or an obstacle, in the order of ``corners``."""
    return corners(other.x, other.y, other.yaw, other.length, other.width)
