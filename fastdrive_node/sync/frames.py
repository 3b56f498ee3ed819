"""Camera streams to the newest complete frame set, with ages, refusals and a degraded mode. No ROS.

A set is one frame of each camera whose exposures lie within ``max_spread_s``. Every frame is used once, except where
reusing one makes a clearly tighter set: otherwise a lost frame would leave its camera one round behind for good.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from fastdrive_node.errors import FrameSetError
from fastdrive_node.sync.health import Action, RepeatedJumps
from fastdrive_node.types import JUMP_BACK_S, SUPERSEDED, CameraFrame, FrameSet, Refusal

DEPTH = 8  # frames held for each camera; a camera may lag the others by this many
TIGHTER = 0.75  # a set that reuses frames has at most this fraction of the spread of the set that used them
RATE_WINDOW = 10  # stamps that a camera's rate is computed from
BLACK_SIZE = (90, 160)  # height, width of the image that replaces that of a missing camera; it is resized as any other


@dataclass(frozen=True)
class FrameLimits:
    """Limits of a frame set; times in seconds."""

    max_spread_s: float = 0.15  # between the exposures of one set
    max_age_s: float = 1.0  # of the oldest exposure when planning begins
    max_ahead_s: float = 0.5  # of the newest exposure ahead of the clock; more means a wrong clock
    missing_timeout_s: float = 0.3  # after the set's last frame arrived, until an incomplete set is given up
    max_missing_cameras: int = 0  # more than 0: plan without them, Plan.mode says so
    stamps_jump: Action = "refuse"  # where a camera's stamps jump back again and again


@dataclass(frozen=True)
class CameraStatus:
    """Age and rate of one camera's stream."""

    age_s: float | None  # of the newest exposure; None: no frame yet
    rate_hz: float  # over the last frames; 0 with fewer than two
    received: int
    late: int  # older than a frame already used


@dataclass
class FrameCounters:
    """Counted since the start; a jump in time does not reset them."""

    sets: int = 0  # complete ones
    degraded: int = 0
    superseded: int = 0  # complete, and replaced by a newer one before planning
    refused: int = 0  # stale or incomplete
    late: int = 0
    duplicates: int = 0
    resets: int = 0


def _stamp(frame: CameraFrame) -> int:
    return frame.stamp_ns


@dataclass
class _Stream:
    """Frames of one camera by stamp. ``used_ns`` is the stamp of the frame in the last set; that frame is kept."""

    frames: list[CameraFrame] = field(default_factory=list)
    used_ns: int | None = None
    newest_ns: int | None = None
    stamps: deque[int] = field(default_factory=lambda: deque(maxlen=RATE_WINDOW))
    received: int = 0
    late: int = 0

    def unused(self) -> list[CameraFrame]:
        return [frame for frame in self.frames if self.used_ns is None or frame.stamp_ns > self.used_ns]

    def use(self, stamp_ns: int) -> None:
        self.used_ns = stamp_ns
        self.frames = [frame for frame in self.frames if frame.stamp_ns >= stamp_ns]

    def rate_hz(self) -> float:
        if len(self.stamps) < 2 or self.stamps[-1] <= self.stamps[0]:
            return 0.0
        return (len(self.stamps) - 1) / ((self.stamps[-1] - self.stamps[0]) * 1e-9)


class FrameBuffer:
    """Collects frames, gives the newest complete set. Not thread-safe: the caller holds a lock.

    ``reports`` receives a ``Refusal`` for every set that is superseded, or given up (stage "frames").
    """

    def __init__(self, cameras: Sequence[str], limits: FrameLimits | None = None):
        self.cameras = tuple(cameras)
        self.limits = limits or FrameLimits()
        self.counters = FrameCounters()
        self.reports: deque[Refusal] = deque()
        self._streams = {camera: _Stream() for camera in self.cameras}
        self._pending: FrameSet | None = None
        self._last: FrameSet | None = None
        self._jumps = RepeatedJumps()

    @property
    def pending(self) -> FrameSet | None:
        """The set that ``take`` would give."""
        return self._pending

    def add(self, frame: CameraFrame) -> FrameSet | None:
        """Store a frame. Returns the set that it completes, if any.

        Raises FrameSetError for a camera that the model does not have.
        """
        stream = self._streams.get(frame.camera)
        if stream is None:
            raise FrameSetError(f"{frame.camera}: not a camera of the model, which has {', '.join(self.cameras)}")
        if stream.newest_ns is not None and frame.stamp_ns < stream.newest_ns - JUMP_BACK_S * 1e9:
            reason = self._jumps.add(frame.camera, frame.received_ns)
            if reason and self.limits.stamps_jump == "refuse":
                self.counters.refused += 1
                self.reports.append(Refusal(stream.newest_ns, reason, "frames", "frames.stamps_jump"))
            self.reset(keep_until_ns=frame.stamp_ns)
            stream = self._streams[frame.camera]
        if not self._store(stream, frame):
            return None
        found = self._match(frame)
        if found is not None:
            self._emit(found)
        elif len(stream.frames) > DEPTH:
            self._give_up(self._oldest_group())
        return found

    def warnings(self, now_ns: int) -> tuple[str, ...]:
        """What happened a short time ago, as "code: text"."""
        jump = self._jumps.notice.at(now_ns) if self.limits.stamps_jump == "warn" else ""
        return (f"frames.stamps_jump: {jump}",) if jump else ()

    def take(self, now_ns: int) -> FrameSet | Refusal | None:
        """The newest complete set, once; a ``Refusal`` where it is too old to plan on, or from the future."""
        frames, self._pending = self._pending, None
        if frames is None:
            return None
        reason = self._unfit(frames, now_ns)
        if reason is None:
            return frames
        self.counters.refused += 1
        return Refusal(frames.t0_ns, reason, "frames")

    def expire(self, now_ns: int) -> FrameSet | None:
        """Give up the sets that waited too long for a camera. Returns a degraded set where the limits allow one."""
        degraded = None
        while (expiry_ns := self.next_expiry_ns()) is not None and expiry_ns <= now_ns:
            degraded = self._give_up(self._oldest_group()) or degraded
        return degraded

    def next_expiry_ns(self) -> int | None:
        """When the oldest incomplete set will be given up; None where none waits."""
        group = self._oldest_group()
        if not group:
            return None
        return max(frame.received_ns for frame in group) + round(self.limits.missing_timeout_s * 1e9)

    def drain_reports(self) -> list[Refusal]:
        """What was superseded or given up since the last call, in order."""
        reports = list(self.reports)
        self.reports.clear()
        return reports

    def reset(self, keep_until_ns: int | None = None) -> None:
        """Forget the past after a jump back in time to ``keep_until_ns``; frames that are of the new time stay."""
        self.counters.resets += 1
        if self._last is not None and self._is_of(self._last.t0_ns, keep_until_ns):
            for stream in self._streams.values():  # the frames were faster than the clock: the reset was done before
                stream.frames = [frame for frame in stream.frames if self._is_of(frame.stamp_ns, keep_until_ns)]
                stream.newest_ns = stream.frames[-1].stamp_ns if stream.frames else stream.used_ns
            return
        if self._pending is not None:
            self._supersede(self._pending, "time jumped back before it was planned")
        self._last = self._pending = None
        old, self._streams = self._streams, {}
        for camera, stream in old.items():
            self._streams[camera] = _Stream(received=stream.received, late=stream.late)
        for frame in sorted((frame for stream in old.values() for frame in stream.frames), key=_stamp):
            if self._is_of(frame.stamp_ns, keep_until_ns):
                self._streams[frame.camera].received -= 1
                self.add(frame)

    def _is_of(self, stamp_ns: int, now_ns: int | None) -> bool:
        """Whether a stamp is of the time that began just before ``now_ns``."""
        if now_ns is None:
            return False
        margin_ns = self.limits.max_spread_s * 1e9
        return now_ns - JUMP_BACK_S * 1e9 - margin_ns <= stamp_ns <= now_ns + margin_ns

    def status(self, now_ns: int) -> dict[str, CameraStatus]:
        """Age and rate of every camera at ``now_ns``."""
        return {
            camera: CameraStatus(
                None if stream.newest_ns is None else (now_ns - stream.newest_ns) * 1e-9,
                stream.rate_hz(),
                stream.received,
                stream.late,
            )
            for camera, stream in self._streams.items()
        }

    def _store(self, stream: _Stream, frame: CameraFrame) -> bool:
        stream.received += 1
        if any(other.stamp_ns == frame.stamp_ns for other in stream.frames) or frame.stamp_ns == stream.used_ns:
            self.counters.duplicates += 1
            return False
        if stream.used_ns is not None and frame.stamp_ns < stream.used_ns:
            stream.late += 1
            self.counters.late += 1
            return False
        insort(stream.frames, frame, key=_stamp)
        if stream.newest_ns is None or frame.stamp_ns > stream.newest_ns:
            stream.newest_ns = frame.stamp_ns
            stream.stamps.append(frame.stamp_ns)
        return True

    def _match(self, frame: CameraFrame) -> FrameSet | None:
        """The set around a new frame: of every other camera the frame nearest in time."""
        fresh = self._around(frame, [stream.unused() for stream in self._streams.values()])
        if fresh is not None:
            return fresh
        reusing = self._around(frame, [stream.frames for stream in self._streams.values()])
        if reusing is not None and self._last is not None and reusing.spread_s <= TIGHTER * self._last.spread_s:
            return reusing
        return None

    def _around(self, frame: CameraFrame, pools: Iterable[list[CameraFrame]]) -> FrameSet | None:
        chosen = []
        for camera, pool in zip(self.cameras, pools, strict=True):
            if camera == frame.camera:
                chosen.append(frame)
            elif pool:
                chosen.append(min(pool, key=lambda other: abs(other.stamp_ns - frame.stamp_ns)))
            else:
                return None
        found = FrameSet(tuple(chosen), min(map(_stamp, chosen)))
        too_old = self._last is not None and found.t0_ns <= self._last.t0_ns
        return None if too_old or found.spread_s > self.limits.max_spread_s else found

    def _emit(self, found: FrameSet) -> None:
        if self._pending is not None:
            self._supersede(self._pending, "a newer set was complete before it could be planned")
        self.counters.sets += 1
        for frame in found.frames:
            if frame.camera not in found.missing:
                self._streams[frame.camera].use(frame.stamp_ns)
        self._pending = self._last = found

    def _supersede(self, frames: FrameSet, reason: str) -> None:
        self.counters.superseded += 1
        self.reports.append(Refusal(frames.t0_ns, reason, SUPERSEDED))

    def _oldest_group(self) -> list[CameraFrame]:
        """The oldest frame that no set used, with what the other cameras have within the spread; empty: none."""
        heads = [unused[0] for stream in self._streams.values() if (unused := stream.unused())]
        if not heads:
            return []
        end_ns = min(map(_stamp, heads)) + self.limits.max_spread_s * 1e9
        return [frame for frame in heads if frame.stamp_ns <= end_ns]

    def _give_up(self, group: list[CameraFrame]) -> FrameSet | None:
        by_camera = {frame.camera: frame for frame in group}
        missing = tuple(camera for camera in self.cameras if camera not in by_camera)
        t0_ns = min(map(_stamp, group))
        reason = self._missing_reason(missing, t0_ns)
        for frame in group:
            self._streams[frame.camera].use(frame.stamp_ns)
            self._streams[frame.camera].frames.pop(0)
        if len(missing) <= self.limits.max_missing_cameras and (self._last is None or t0_ns > self._last.t0_ns):
            black = {camera: _black_frame(camera, t0_ns) for camera in missing}
            frames = tuple(by_camera.get(camera) or black[camera] for camera in self.cameras)
            found = FrameSet(frames, t0_ns, missing)
            self.counters.degraded += 1
            self._emit(found)
            return found
        if 2 * len(group) >= len(self.cameras):  # fewer are leftovers of a start or an end, or cameras of another rate
            self.counters.refused += 1
            self.reports.append(Refusal(t0_ns, reason, "frames"))
        return None

    def _missing_reason(self, missing: tuple[str, ...], t0_ns: int) -> str:
        words = []
        for camera in missing:
            newest_ns = self._streams[camera].newest_ns
            seen = "none yet" if newest_ns is None else f"its last is {(t0_ns - newest_ns) * 1e-9:.2f} s before t0"
            words.append(f"{camera} missing ({seen})")
        return f"incomplete set: {', '.join(words)}"

    def _unfit(self, frames: FrameSet, now_ns: int) -> str | None:
        ages = {camera: age for camera, age in frames.age_s(now_ns).items() if camera not in frames.missing}
        oldest = max(ages, key=ages.__getitem__)
        newest = min(ages, key=ages.__getitem__)
        if ages[oldest] > self.limits.max_age_s:
            return (
                f"stale: {oldest} is {ages[oldest]:.2f} s old, the limit is {self.limits.max_age_s:.2f} s "
                "(max_set_age_s; use_sim_time for a bag)"
            )
        if ages[newest] < -self.limits.max_ahead_s:
            return f"{newest} is stamped {-ages[newest]:.2f} s ahead of the node's clock: check use_sim_time"
        return None


def _black_frame(camera: str, t0_ns: int) -> CameraFrame:
    return CameraFrame(camera, t0_ns, t0_ns, lambda: np.zeros((*BLACK_SIZE, 3), np.uint8))
