"""The frame sets of a bag, counted by the node's own rules, and what came back for them. No ROS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastdrive_node.errors import InputError
from fastdrive_node.record import PlanRecord
from fastdrive_node.replay.bag import BagMessage
from fastdrive_node.ros.images import camera_frame
from fastdrive_node.ros.topics import TopicMap
from fastdrive_node.sync.frames import FrameBuffer, FrameLimits
from fastdrive_node.types import SUPERSEDED, CameraFrame, FrameSet, Refusal


class SetCounter:
    """The frame sets that a bag's messages make. Time is that of the recording.

    Args:
        on_set: called with every complete set; its frames can be loaded.
    """

    def __init__(
        self,
        topics: TopicMap,
        compressed: bool,
        limits: FrameLimits | None = None,
        on_set: Callable[[FrameSet], None] | None = None,
    ):
        self.complete: list[int] = []  # t0 of each, in ns
        self.incomplete: list[Refusal] = []
        self.limits = limits or FrameLimits()
        self._buffer = FrameBuffer(tuple(topics.cameras), self.limits)
        self._compressed = compressed
        self._camera_of = {topic: camera for camera, topic in topics.cameras.items()}
        self._on_set = on_set

    def add(self, message: BagMessage) -> list[int]:
        """Take the next message. Returns t0 of the sets that end with it, complete or given up."""
        ended = self.advance(message.stamp_ns)
        camera = self._camera_of.get(message.topic)
        if camera is not None and (frame := self._frame(camera, message)) is not None:
            self._buffer.add(frame)
            ended += self._collect()
        return ended

    def next_expiry_ns(self) -> int | None:
        """When the oldest incomplete set will be given up; None where none waits."""
        return self._buffer.next_expiry_ns()

    def advance(self, now_ns: int) -> list[int]:
        """Let time pass. Returns t0 of the sets that end by it."""
        self._buffer.expire(now_ns)
        return self._collect()

    def finish(self, end_ns: int) -> list[int]:
        """The last message was added: what still waits for a camera is incomplete. Returns as ``advance``."""
        return self.advance(end_ns + round(self.limits.missing_timeout_s * 1e9) + 1)

    def _frame(self, camera: str, message: BagMessage) -> CameraFrame | None:
        try:
            return camera_frame(camera, message.raw, message.stamp_ns, self._compressed)
        except InputError:
            return None  # as in the node: a message without a readable header belongs to no set

    def _collect(self) -> list[int]:
        incomplete = [report for report in self._buffer.drain_reports() if report.stage != SUPERSEDED]
        self.incomplete += incomplete
        ended = [report.t0_ns for report in incomplete]
        found = self._buffer.pending
        if found is not None and (not self.complete or self.complete[-1] != found.t0_ns):
            self.complete.append(found.t0_ns)
            ended.append(found.t0_ns)
            if self._on_set is not None:
                self._on_set(found)
        return ended


@dataclass(frozen=True)
class Received:
    """A record of the node as it arrived."""

    record: PlanRecord
    end_to_end_ms: float  # wall time from the set's images to the record


@dataclass(frozen=True)
class LoopResult:
    """One pass over the bag."""

    counter: SetCounter
    received: list[Received]  # in the order of their arrival
