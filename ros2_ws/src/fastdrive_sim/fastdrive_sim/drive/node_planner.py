"""The real node as the planner of a run: sensors to its topics, its plan records back. In lockstep or in real time.

Runs follow one another on the same node. Stamps rise from run to run, with a pause that is longer than everything that
the node remembers (odometry, temporal scores, plan checks), so a run does not depend on the one before.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastdrive_node.errors import FastDriveError
from fastdrive_node.geometry import to_parent_frame
from fastdrive_node.record import PlanRecord
from fastdrive_node.replay.bag import BagMessage
from fastdrive_node.replay.connection import SILENCE_S, NodeConnection
from fastdrive_node.ros.topics import TopicMap
from fastdrive_node.types import SUPERSEDED as NODE_SUPERSEDED
from fastdrive_sim.bag import EPOCH_NS
from fastdrive_sim.drive.faults import Fault
from fastdrive_sim.drive.kept import masks_by_camera
from fastdrive_sim.drive.latency import Latency
from fastdrive_sim.drive.planners import SimulatedLatency, Tick, TickAnswer
from fastdrive_sim.drive.scene import DriveScene
from fastdrive_sim.drive.sensors import Publications
from fastdrive_sim.drive.types import PLANNED, REFUSED, SUPERSEDED, EgoStep
from fastdrive_sim.sources import RendererLike

LEAD_IN_S = 2.5  # of odometry before the start, at the start's speed: as long as the history that VLAs read
ODOMETRY_S = 0.05
PAUSE_S = 30  # of the stamps between two runs, whole seconds
REPEAT_S = 0.1  # of wall time between two messages on /clock while the node plans; each costs it time
NO_IMAGE = "no camera has sent an image"
BATCH = 20  # odometry messages between two round trips, each of which costs time; the queues hold 50


@dataclass(frozen=True)
class CameraRig:
    """What sees the scene, and where that goes."""

    renderer: RendererLike
    topics: TopicMap  # cameras in the order of the renderer's views

    @property
    def compressed(self) -> bool:
        return False


class NodePlanner:
    """In lockstep: simulated time stands still while the node plans; its latency is simulated.

    Args:
        latency_s: of the plans, in simulated time.
        missing_timeout_s: the node's parameter; a set without all of its cameras ends then.
        plan_s: the planning period, for a fault that holds plans back.
        max_plan_age_s: the node's parameter; it refuses a plan that is older when it is made.
    """

    silence_s = SILENCE_S  # without an answer of the node, after which it is given up

    def __init__(
        self,
        rig: CameraRig,
        connection: NodeConnection,
        fault: Fault,
        latency_s: Latency,
        missing_timeout_s: float,
        plan_s: float,
        max_plan_age_s: float = math.inf,
    ):
        self._rig, self._node, self._fault = rig, connection, fault
        self._latency_s, self._missing_s, self._plan_s = latency_s, missing_timeout_s, plan_s
        self.max_plan_age_s = max_plan_age_s
        self.cameras = tuple(rig.topics.cameras)  # in the VLA's order
        self._held: deque[TickAnswer] = deque()
        self._seen = 0  # arrivals of earlier ticks
        self._gone = False

    def begin(self, scene: DriveScene) -> None:
        self._scene, self._gone = scene, True  # until the lead-in has been heard
        self._fault.begin(scene.seed)
        self._latency_s.begin(scene.family, scene.seed)
        self._rig.renderer.load(scene.world)
        newest_s = max(self._node.time_ns, EPOCH_NS) // 10**9
        self.out = Publications(self._rig.topics, scene.start(), (newest_s + PAUSE_S) * 10**9)
        self._odometry: list[BagMessage] = []
        self._queue = SimulatedLatency(self._sense, self._solve, self._latency_s)
        self._held.clear()
        steps = range(round(LEAD_IN_S / ODOMETRY_S), 0, -1)
        lead_in = [self._odometry_at(scene.start(step * ODOMETRY_S), -step * ODOMETRY_S) for step in steps]
        if not self._node.time_ns:  # the node's clock starts now, and it forgets what it heard before
            self._node.tell_time(lead_in[0].stamp_ns)
            self._node.round_trip(self.silence_s)
        self._send(lead_in, -ODOMETRY_S)
        self._gone = False

    def alive(self) -> bool:
        """Whether the node can drive on; not after it has ended or gone silent."""
        return not self._gone

    def watch(self, ego: EgoStep, time_s: float) -> None:
        self._odometry.append(self._odometry_at(ego, time_s))

    def offer(self, ego: EgoStep, time_s: float) -> None:
        self._queue.offer(ego, time_s)

    def collect(self, time_s: float) -> list[TickAnswer]:
        return self._hold([self._aged(answer, time_s) for answer in self._queue.collect(time_s)], time_s)

    def _aged(self, answer: TickAnswer, time_s: float) -> TickAnswer:
        """Refused where the simulated latency makes a plan older than the node would publish."""
        age_s = time_s - answer.tick.time_s
        if answer.outcome != PLANNED or age_s <= self.max_plan_age_s:
            return answer
        return TickAnswer(
            answer.tick, REFUSED, f"age: the plan is {age_s:.2f} s old, the limit is {self.max_plan_age_s:g} s"
        )

    def _hold(self, answers: list[TickAnswer], time_s: float) -> list[TickAnswer]:
        """Answers that a fault does not hold back any more."""
        hold_s = self._fault.held_ticks * self._plan_s
        if not hold_s:
            return answers
        self._held.extend(answers)
        due = []
        while self._held and self._held[0].tick.time_s + hold_s <= time_s + 1e-9:
            due.append(self._held.popleft())
        return due

    def _odometry_at(self, ego: EgoStep, time_s: float) -> BagMessage:
        return self.out.odometry(self._fault.odometry(ego), time_s)

    def _sense(self, ego: EgoStep, time_s: float) -> list[BagMessage]:
        scene = self._scene
        views = self._rig.renderer.render_color(scene.snapshot(ego, time_s))
        images = self._fault.images([np.asarray(rgb) for rgb in views])
        return [self.out.command(scene.command, time_s), *self.out.images(images, time_s)]

    def _send(self, messages: list[BagMessage], time_s: float) -> None:
        """Odometry and commands, and then the time, which the node has when this returns."""
        for first in range(0, len(messages), BATCH):
            self._node.tell_time(messages[first].stamp_ns)
            for message in messages[first : first + BATCH]:
                self._node.publish(message)
            self._node.round_trip(self.silence_s)
        self._node.tell_time(self.out.stamp_ns(time_s))
        self._node.round_trip(self.silence_s)

    def _solve(self, tick: Tick, time_s: float) -> TickAnswer:
        """Publish a tick and wait for its outcome. Raises FastDriveError where the node has ended or is silent."""
        try:
            return self._exchange(tick, time_s)
        except FastDriveError:
            self._gone = True
            raise

    def _exchange(self, tick: Tick, time_s: float) -> TickAnswer:
        assert isinstance(tick.sensors, list)
        command, *images = tick.sensors
        waiting, self._odometry = self._odometry, []
        self._send([*waiting, command], time_s)
        for image in images:
            self._node.publish(image)
        now_ns = self.out.stamp_ns(time_s)
        if len(images) < len(self._rig.topics.cameras):
            if not images:
                return TickAnswer(tick, REFUSED, NO_IMAGE)
            self._node.round_trip(self.silence_s)
            now_ns += round(self._missing_s * 1e9) + 1_000_000
        return answer_of(tick, self._outcome(self.out.stamp_ns(tick.time_s), now_ns), self.cameras)

    def _outcome(self, t0_ns: int, now_ns: int) -> PlanRecord:
        """The record of a frame set. Raises FastDriveError where the node has ended or gives none."""
        silent_s, before = 0.0, time.monotonic()
        self._node.tell_time(now_ns)
        while True:
            arrivals = self._node.arrivals
            while self._seen < len(arrivals):
                record = arrivals[self._seen].record
                self._seen += 1
                if record.t0_ns == t0_ns:
                    return record
            now = time.monotonic()
            silent_s, before = silent_s + min(now - before, 1.0), now  # a process that was stopped hears nothing
            if silent_s > self.silence_s:
                raise FastDriveError(f"the node has given no plan record for {self.silence_s:.0f} s; see its log")
            self._node.wait(REPEAT_S)
            self._node.tell_time(now_ns)


def answer_of(tick: Tick, record: PlanRecord, cameras: Sequence[str]) -> TickAnswer:
    """A record in the terms of a run. A plan is in the frame of the vehicle at t0, whatever its odometry says.

    Args:
        cameras: of the VLA, in its order.
    """
    if record.kind != "plan":
        outcome = SUPERSEDED if record.kind == NODE_SUPERSEDED else REFUSED
        return TickAnswer(tick, outcome, record.reason)
    plan, ego = record.plan, tick.ego
    begin_s = 0.0 if plan.shifted_ns is None else (plan.shifted_ns - plan.t0_ns) * 1e-9
    xy = to_parent_frame(plan.waypoints_m, ego.x, ego.y, ego.yaw)
    times = tick.time_s + begin_s + plan.dt_s * np.arange(1, len(xy) + 1)
    kept, total = (plan.kept.kept, plan.kept.total) if plan.kept is not None else (0, 0)
    return TickAnswer(tick, PLANNED, "", xy, times, plan.mode, kept, total, masks_by_camera(plan.kept, cameras))
