"""The node as the planner in real time: the wall clock drives the simulation, and late plans are late."""

from __future__ import annotations

import time

from fastdrive_node.errors import FastDriveError
from fastdrive_node.replay.connection import CLOCK_STEP_S
from fastdrive_sim.drive.loop import REFUSALS_S
from fastdrive_sim.drive.node_planner import NO_IMAGE, NodePlanner, answer_of
from fastdrive_sim.drive.planners import Tick, TickAnswer
from fastdrive_sim.drive.scene import DriveScene
from fastdrive_sim.drive.types import REFUSED, EgoStep

MAX_LAG_S = 1.0  # that the simulation may be behind the wall clock; the node would seem faster than it is


class RealTimeNodePlanner(NodePlanner):
    """Time on /clock is that of the simulation, which waits for the wall clock. Images are sent when they are rendered,
    stamped with the time at which rendering began: that is the latency of the cameras.

    A node that plans slowly still gives a record for each frame set. One that gives none for ``silence_s`` is given up.
    """

    silence_s = REFUSALS_S  # so that a run without any plan tells which of the two it was

    def begin(self, scene: DriveScene) -> None:
        super().begin(scene)
        self._ticks: dict[int, Tick] = {}  # by t0 in ns
        self._unseen: list[TickAnswer] = []  # of frame sets without any image, of which the node knows nothing
        self._asked_s: float | None = None  # t0 of the first frame set since the last record
        self._start_s = time.monotonic()

    def watch(self, ego: EgoStep, time_s: float) -> None:
        self._pace(time_s)
        self._node.publish(self._odometry_at(ego, time_s))

    def offer(self, ego: EgoStep, time_s: float) -> None:
        self._pace(time_s)
        command, *images = self._sense(ego, time_s)
        tick = Tick(time_s, ego)
        self._node.publish(command)
        if not images:
            self._unseen.append(TickAnswer(tick, REFUSED, NO_IMAGE))
            return
        self._ticks[self.out.stamp_ns(time_s)] = tick
        for image in images:
            self._node.publish(image)
        if self._asked_s is None:
            self._asked_s = time_s

    def collect(self, time_s: float) -> list[TickAnswer]:
        self._pace(time_s)
        answers = self._hold(self._arrived(), time_s)
        if self._asked_s is not None and time_s - self._asked_s >= self.silence_s:
            self._gone = True
            raise FastDriveError(
                f"--realtime: the node has given no plan record for {self.silence_s:g} s, it hangs; see its log"
            )
        return answers

    def _arrived(self) -> list[TickAnswer]:
        arrivals, found, self._unseen = self._node.arrivals, self._unseen, []
        while self._seen < len(arrivals):
            record = arrivals[self._seen].record
            self._seen += 1
            self._asked_s = None
            tick = self._ticks.pop(record.t0_ns, None)
            if tick is not None:
                found.append(answer_of(tick, record, self.cameras))
        return found

    def _pace(self, time_s: float) -> None:
        """Wait until the wall clock says so. Raises FastDriveError where the node has ended or the machine is slow."""
        try:
            while (early_s := self._start_s + time_s - time.monotonic()) > 0:
                self._node.wait(min(early_s, CLOCK_STEP_S))
            self._node.wait(0.0)
        except FastDriveError:
            self._gone = True
            raise
        self._node.tell_time(self.out.stamp_ns(time_s))
        if -early_s > MAX_LAG_S:
            raise FastDriveError(
                f"--realtime: the simulation is {-early_s:.1f} s behind the clock; give fewer --workers or a smaller "
                "--size, or drive in lockstep"
            )
