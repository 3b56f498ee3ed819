"""What a drive passes through, labelled by the expert: the keyframes that a dataset takes from a run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fastdrive_node.errors import AnswerError
from fastdrive_node.planning.checks import check_plan
from fastdrive_sim.drive.expert import WAYPOINT_S, Expert
from fastdrive_sim.drive.planners import DrivePlanner, TickAnswer
from fastdrive_sim.drive.scene import DriveScene, pose_of
from fastdrive_sim.drive.types import EgoStep
from fastdrive_sim.geometry import to_ego
from fastdrive_sim.types import EgoPose, Keyframe, SceneRecording, Snapshot

SIM_HZ = 20  # of the snapshots: ``DrivePlanner.watch`` is called so often
LEAD_IN = 3 * SIM_HZ  # snapshots before the start, at its speed: the history of the first keyframe
STANDING_MPS = 0.1
STANDING_S = 2.0  # after so much of standing few keyframes are taken
STANDING_STRIDE_S, STUCK_STRIDE_S = 3.0, 2.0  # between these, where the expert stands too, and where it would drive
TOP_SPEED = 1.1  # of the other speeds, times the limit
DRIVES_M = 3.0  # a label that goes so far drives


class StateRecorder:
    """Hands on a planner's plans, and takes down every state with what the expert would do there.

    Args:
        planner: that drives.
        hz: keyframes a second, a divisor of 20.
        other_speeds: so many speeds for each keyframe, for which the expert says what it would do there.
    """

    def __init__(self, planner: DrivePlanner, hz: int, other_speeds: int = 0):
        self._planner, self._stride, self._other_speeds = planner, SIM_HZ // hz, other_speeds
        self.keyframes: list[Keyframe] = []
        self.driven: list[Snapshot] = []  # from the start on

    def begin(self, scene: DriveScene) -> None:
        self._scene, self._expert = scene, Expert(scene)
        self._stands_since: float | None = None
        self._last_s = -math.inf  # of a keyframe
        self._planner.begin(scene)

    def watch(self, ego: EgoStep, time_s: float) -> None:
        step = round(time_s * SIM_HZ)
        self.driven.append(replace(self._scene.snapshot(ego, time_s), ahead=self._scene.ahead(ego)))
        if ego.speed > STANDING_MPS:
            self._stands_since = None
        elif self._stands_since is None:
            self._stands_since = time_s
        if step % self._stride == 0:
            label = self._expert.label(ego)
            if self._is_of_use(label, ego, time_s) and is_drivable(label, ego):
                self._last_s = time_s
                self.keyframes.append(Keyframe(LEAD_IN + step, label, self._errors(ego) | self._at_other_speeds(ego)))
        self._planner.watch(ego, time_s)

    def offer(self, ego: EgoStep, time_s: float) -> None:
        self._planner.offer(ego, time_s)

    def collect(self, time_s: float) -> list[TickAnswer]:
        return self._planner.collect(time_s)

    def _is_of_use(self, label: np.ndarray, ego: EgoStep, time_s: float) -> bool:
        """Whether it is not one of many that show a standing vehicle."""
        stood_s = 0.0 if self._stands_since is None else time_s - self._stands_since
        drives = math.hypot(label[-1, 0] - ego.x, label[-1, 1] - ego.y) > DRIVES_M
        stride_s = STUCK_STRIDE_S if drives else STANDING_STRIDE_S
        return stood_s <= STANDING_S or time_s - self._last_s >= stride_s - 1e-6

    def _errors(self, ego: EgoStep) -> dict[str, float]:
        offset, heading = self._scene.lane_error(ego)
        return {"lane_offset_m": round(offset, 3), "heading_error_rad": round(heading, 4)}

    def _at_other_speeds(self, ego: EgoStep) -> dict[str, list[dict]]:
        """What the expert would do there at other speeds, one of each part of the range; the images are the same.

        A camera does not see how fast it moves, so these are further samples that cost no image.
        """
        if not self._other_speeds:
            return {}
        rng = np.random.default_rng((self._scene.seed, len(self.keyframes), 2))
        parts = (np.arange(self._other_speeds) + rng.random(self._other_speeds)) / self._other_speeds
        found = []
        for speed in parts * TOP_SPEED * self._scene.limit:
            curvature = math.tan(ego.steer) / self._scene.vehicle.wheel_base_m
            other = replace(ego, speed=float(speed), accel=0.0, yaw_rate=float(speed) * curvature)
            label = self._expert.label(other)
            if is_drivable(label, other):
                found.append(
                    {
                        "speed_mps": round(other.speed, 4),
                        "yaw_rate_radps": round(other.yaw_rate, 4),
                        "future_xy": to_ego(pose_of(other), label).round(4).tolist(),
                    }
                )
        return {"other_speeds": found} if found else {}

    def leave_out_after(self, time_s: float) -> None:
        """Keep no keyframe of a later time."""
        self.keyframes = [each for each in self.keyframes if each.step - LEAD_IN <= time_s * SIM_HZ]

    def leave_out(self, is_useless: Callable[[EgoPose], bool]) -> None:
        """Keep no keyframe at which the vehicle is at such a pose."""
        self.keyframes = [each for each in self.keyframes if not is_useless(self.driven[each.step - LEAD_IN].ego)]

    def recording(self, part: slice) -> SceneRecording:
        """The world with a part of the keyframes."""
        scene, keyframes = self._scene, self.keyframes[part]
        snapshots = [*self._lead_in(), *self.driven]
        stand = sum(snapshots[each.step].ego.speed <= STANDING_MPS for each in keyframes)
        about = {"family": scene.family, "scenario_seed": scene.seed}
        counts = Counter({f"{scene.family}_scenes": 1, "standing_keyframes": stand})
        return SceneRecording(scene.world, snapshots, keyframes, about, dict(counts))

    def _lead_in(self) -> list[Snapshot]:
        """Straight on at the start's speed, up to the start."""
        first = self.driven[0]
        return [_before(first, (LEAD_IN - step) / SIM_HZ) for step in range(LEAD_IN)]


def is_drivable(label: np.ndarray, ego: EgoStep) -> bool:
    """Whether the node would publish the label, world [6, 2], as a plan; a planner must not learn others."""
    try:
        check_plan(to_ego(pose_of(ego), label), WAYPOINT_S, ego.speed)
    except AnswerError:
        return False
    return True


def _before(first: Snapshot, before_s: float) -> Snapshot:
    ego, way = first.ego, first.ego.speed * before_s
    x, y = ego.x - way * math.cos(ego.yaw), ego.y - way * math.sin(ego.yaw)
    return replace(first, time_s=-before_s, ego=EgoPose(x, y, ego.yaw, ego.speed))
