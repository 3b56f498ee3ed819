"""The ego vehicle's path through a scene, from its poses: history, command and recorded future."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from fastdrive_node.geometry import wrap_angle
from fastdrive_node.types import Command, EgoHistory, EgoState

HISTORY_INTERVAL_S, HISTORY_STEPS = 0.5, 6  # before t0
TURN_M = 2.0  # a final lateral offset of this much makes the command left or right
_VELOCITY_SPAN_S = 0.1  # shortest span that a speed is taken over: sweeps are 50 ms apart, their poses noisy
_TOLERANCE_S = 1e-3  # nuScenes stamps are whole microseconds


@dataclass(frozen=True)
class EgoTrack:
    """Ego poses of one scene in time order."""

    stamps_ns: np.ndarray  # int64 [T], ascending
    positions_m: np.ndarray  # float64 [T, 3], world
    rotations: np.ndarray  # float64 [T, 3, 3], ego to world

    @classmethod
    def from_poses(cls, poses: list[dict]) -> EgoTrack:
        """From records of nuScenes' ``ego_pose`` table (timestamp in µs, translation, rotation quaternion wxyz)."""
        unique = {pose["timestamp"]: pose for pose in poses}
        ordered = [unique[stamp] for stamp in sorted(unique)]
        return cls(
            np.array([pose["timestamp"] for pose in ordered], np.int64) * 1000,
            np.array([pose["translation"] for pose in ordered], np.float64).reshape(-1, 3),
            np.stack([rotation_matrix(pose["rotation"]) for pose in ordered]),
        )

    @classmethod
    def planar(cls, stamps_ns: Sequence[int], poses: np.ndarray) -> EgoTrack:
        """From ascending stamps and float64 [T, 3] of x, y in m and yaw in rad."""
        positions = np.column_stack([poses[:, :2], np.zeros(len(poses))])
        return cls(np.array(stamps_ns, np.int64), positions, Rotation.from_euler("z", poses[:, 2:]).as_matrix())

    def future(self, t0_ns: int, points: int, interval_s: float) -> np.ndarray | None:
        """Positions interval_s, 2 interval_s ... after t0 in the ego frame of t0, float64 [points, 2].

        None where the track ends sooner.
        """
        wanted_ns = t0_ns + np.round(np.arange(1, points + 1) * interval_s * 1e9).astype(np.int64)
        if self.stamps_ns[-1] + _TOLERANCE_S * 1e9 < wanted_ns[-1]:
            return None
        index = int(np.searchsorted(self.stamps_ns, t0_ns))
        offsets = self._positions(wanted_ns) - self._positions(np.array([t0_ns]))
        return (offsets @ self.rotations[index])[:, :2]

    def history(self, t0_ns: int) -> EgoHistory:
        """States at t0, t0 - 0.5 s, ... t0 - 3 s, as far back as the track goes.

        Speed, acceleration and yaw rate are backward differences, so that nothing of the future leaks in; only the
        first state of a scene, which has nothing before it, takes its speed from the next pose.
        """
        wanted_ns = t0_ns - np.round(np.arange(HISTORY_STEPS + 1) * HISTORY_INTERVAL_S * 1e9).astype(np.int64)
        reached = wanted_ns[wanted_ns + _TOLERANCE_S * 1e9 >= self.stamps_ns[0]]
        return EgoHistory(tuple(self._state(int(stamp)) for stamp in reached), HISTORY_INTERVAL_S)

    def _state(self, stamp_ns: int) -> EgoState:
        x, y, _ = self._positions(np.array([stamp_ns]))[0]
        yaws = np.unwrap(np.arctan2(self.rotations[:, 1, 0], self.rotations[:, 0, 0]))
        speed, earlier = self._speed(stamp_ns), self._earlier(stamp_ns)
        accel = yaw_rate = 0.0
        yaw = float(np.interp(stamp_ns, self.stamps_ns, yaws))
        if earlier is not None:
            span_s = (stamp_ns - earlier) * 1e-9
            yaw_rate = (yaw - float(np.interp(earlier, self.stamps_ns, yaws))) / span_s
            if self._earlier(earlier) is not None:
                accel = (speed - self._speed(earlier)) / span_s
        return EgoState(stamp_ns, float(x), float(y), wrap_angle(yaw), speed, float(accel), float(yaw_rate))

    def _speed(self, stamp_ns: int) -> float:
        """Speed along x in m/s over the last pose that is at least 0.1 s older; at the track's start, over the next."""
        earlier = self._earlier(stamp_ns)
        span = (earlier, stamp_ns) if earlier is not None else (stamp_ns, self._later(stamp_ns))
        if span[1] is None:
            return 0.0
        positions = self._positions(np.array(span))
        forward = self.rotations[int(np.searchsorted(self.stamps_ns, span[0]))][:, 0]
        return float((positions[1] - positions[0]) @ forward / ((span[1] - span[0]) * 1e-9))

    def _earlier(self, stamp_ns: int) -> int | None:
        older = self.stamps_ns[self.stamps_ns <= stamp_ns - _VELOCITY_SPAN_S * 1e9]
        return int(older[-1]) if len(older) else None

    def _later(self, stamp_ns: int) -> int | None:
        newer = self.stamps_ns[self.stamps_ns >= stamp_ns + _VELOCITY_SPAN_S * 1e9]
        return int(newer[0]) if len(newer) else None

    def _positions(self, stamps_ns: np.ndarray) -> np.ndarray:
        """Linear interpolation, float64 [len, 3]; stamps relative to the start, for float64 holds no epoch in ns."""
        base = self.stamps_ns[0]
        at, known = (stamps_ns - base).astype(np.float64), (self.stamps_ns - base).astype(np.float64)
        return np.stack([np.interp(at, known, self.positions_m[:, axis]) for axis in range(3)], axis=1)


def command_of(future_m: np.ndarray | None) -> Command:
    """The rule common in nuScenes planning: a final lateral offset of 2 m or more is a turn; NONE without a future."""
    if future_m is None:
        return Command.NONE
    lateral = float(future_m[-1, 1])
    if abs(lateral) < TURN_M:
        return Command.STRAIGHT
    return Command.LEFT if lateral > 0 else Command.RIGHT


def rotation_matrix(quaternion: Sequence[float]) -> np.ndarray:
    """float64 [3, 3] of a unit quaternion in nuScenes' order w, x, y, z. Raises ValueError: not one."""
    w, x, y, z = quaternion
    return Rotation.from_quat([x, y, z, w]).as_matrix()
