"""A live node in traffic, into which faults are injected; see ``catalog.py`` for how to add one.

A ``Scene`` holds one node with its stand-in planner, a vehicle that sends a frame set and odometry every ``PERIOD_S``,
and readers of path and status. ``measure`` injects a fault, waits for the expected mode and code, ends the fault and
waits for ``nominal``. Beside that, every published path is checked, in every scene and all the time.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from fastdrive_node.errors import ModelError
from fastdrive_node.ros.parameters import Settings
from fastdrive_node.ros.planner_factory import LoadedPlanner, load_planner, supervise_planner
from tests.faults.process_rig import ProcessRig
from tests.ros.conftest import Rig, stamp_message
from tests.ros.fake_planner import FakePlanner

PERIOD_S = 0.05
SPEED_MPS = 8.0
_BEGIN_NS = time.time_ns()
SETTLE_S = 0.35  # that a fault which must not change the mode is watched for, and any fault lasts at least
LIMIT_S = 4.0  # for an expected mode to come, beside the age that a plan may have
SILENT_S = 1.0  # without a plan while the mode says that plans come; of slow planners, four of their periods
PARAMETERS = {"max_spread_s": 0.02, "missing_timeout_s": 0.1, "odometry_wait_s": 0.05, "diagnostics_period_s": 0.1}
STAND_IN = "tests.ros.fake_planner:make_loaded"
SCENES: dict[str, dict[str, Any]] = {
    "raw": {},
    "compressed": {"image_transport": "compressed"},
    "degraded": {"max_missing_cameras": 1},
    "brake": {"on_refusal": "brake"},
    "compensate": {"compensate": True},
    # with the shipped model instead of the stand-in; ages are those of a slow or busy machine
    "model": {"vla": "tiny", "device": "cpu", "max_plan_age_s": 10.0, "planning_deadline_s": 10.0},
    "strict": {
        **{"vla": "tiny", "device": "cpu", "max_plan_age_s": 10.0, "planning_deadline_s": 10.0},
        **{name: "refuse" for name in Settings.model_fields if name.endswith("_check")},
    },
    "supervised": {
        "vla": "tiny",
        "planning_deadline_s": 0.5,
        "planner_restarts": 3,
    },  # the stand-in is in a planner's process
    "process": {},  # the node is a process of its own
}


@dataclass
class Traffic:
    """What the vehicle sends; faults change it, and ``Scene.calm`` gives a new one."""

    skip: tuple[str, ...] = ()  # cameras that do not send
    # by camera: fields of its image message; a function gives a field by the number of the set
    bad: dict[str, dict[str, Any]] = field(default_factory=dict)
    # by camera, or "all", or "odometry": added to its stamps; a function gives it by the number of the set
    shift_s: dict[str, float | Callable[[int], float]] = field(default_factory=dict)
    stamp_ns: dict[str, int] = field(default_factory=dict)  # likewise: its stamps, always
    odometry: bool = True
    edit: Callable[[Any], None] | None = None  # changes each odometry message
    every: dict[str, int] = field(default_factory=dict)  # by camera: of how many sets it sends one image
    extra: Callable[[Scene, int], None] | None = None  # called with each set's time, after the set
    sets: int | None = None  # that are sent like this, until the traffic is normal again; None: all


@dataclass(frozen=True)
class Fault:
    """A fault and what the node must make of it."""

    name: str
    group: str
    inject: Callable[[Scene], Any]
    mode: str = "refusing"
    code: str = ""  # of the reason; several may be allowed, as "a|b"
    scene: str = "raw"
    undo: Callable[[Scene], Any] | None = None  # beside ``Scene.calm``, which is always called
    quick: bool = False  # part of the test suite


@dataclass(frozen=True)
class Measured:
    """What a fault did. Times in seconds; None: it did not come, or nothing was to come."""

    fault: Fault
    mode: str
    code: str
    detect_s: float | None
    recover_s: float | None
    problems: tuple[str, ...] = ()


class Scene:
    """One live node, the vehicle that drives it, and what they say."""

    def __init__(self, rclpy, name: str):
        from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
        from nav_msgs.msg import Path
        from rclpy.qos import DurabilityPolicy, QoSProfile

        self.planner, self.traffic, self.model_error = FakePlanner(), Traffic(), ""
        parameters = PARAMETERS | SCENES[name]
        if name == "process":
            self.rig = ProcessRig(rclpy, parameters)
        else:
            factories = {
                "model": load_planner,
                "strict": load_planner,
                "supervised": partial(supervise_planner, factory=STAND_IN),
            }
            factory = factories.get(name, self._load)
            self.rig = Rig(rclpy, planner=self.planner, factory=factory, start=False, **parameters)
        self._max_age_s = parameters.get("max_plan_age_s", Settings().max_plan_age_s)
        self._limit_s = LIMIT_S + self._max_age_s
        self.problems: list[str] = []
        self.second: Any = None  # publisher of an input
        self._modes: list[tuple[float, dict[str, str]]] = []
        self._level = b"\x00"
        latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        peer = self.rig.peer
        peer.create_subscription(DiagnosticStatus, "/fastdrive/output/status", self._on_status, latched)
        peer.create_subscription(Path, "/fastdrive/output/path", self._on_path, 10)
        peer.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.rig.start()
        self.rig.connect_inputs()
        self._normal = (self.planner.plan, self.planner.check_drop)
        self.lock = threading.Lock()  # held while a set is sent
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._drive, daemon=True)
        self._thread.start()
        self.rig.wait(lambda: self._mode()["mode"] == "nominal", "the first plans")

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        self.rig.close()

    def calm(self) -> None:
        """Ends what a fault changed in traffic and planner."""
        self.traffic, self.model_error = Traffic(), ""
        self.planner.plan, self.planner.check_drop = self._normal
        self.planner.refuse = self.planner.crash = False
        self.planner.delay_s = 0.0
        self.planner.hold.set()

    def call(self, function: Callable[[], Any]) -> Any:
        """In the executor's thread, as services are."""
        return self.rig.call(function)

    def set_parameter(self, name: str, value: Any) -> Any:
        from rclpy.parameter import Parameter

        return self.call(lambda: self.rig.node.set_parameters([Parameter(name, value=value)]))[0]

    def transition(self, number: int) -> bool:
        """Ask for a lifecycle transition over the node's service."""
        from lifecycle_msgs.msg import Transition
        from lifecycle_msgs.srv import ChangeState

        client = self.rig.peer.create_client(ChangeState, "/fastdrive/change_state")
        self.rig.wait(client.service_is_ready, "the lifecycle service")
        future = client.call_async(ChangeState.Request(transition=Transition(id=number)))
        self.rig.wait(lambda: future.done() or not self.rig.is_spinning(), "the answer")
        return future.result().success

    def measure(self, fault: Fault) -> Measured:
        self.problems.clear()
        expected_nominal = fault.mode == "nominal"
        begin = time.monotonic()
        fault.inject(self)
        if expected_nominal:
            self._watch(fault)
            detect_s = None
        else:
            detect_s = self._until(begin, fault.mode, fault.code)
            time.sleep(max(0.0, SETTLE_S - (time.monotonic() - begin)))
            self._check_diagnostics(fault)
        seen = self._mode()
        end = time.monotonic()
        if fault.undo is not None:
            fault.undo(self)
        self.calm()
        recover_s = self._until(end, "nominal", "")
        self._check_after(detect_s, recover_s, expected_nominal)
        recover_s = None if expected_nominal else recover_s
        return Measured(fault, seen["mode"], seen["code"], detect_s, recover_s, tuple(dict.fromkeys(self.problems)))

    def _watch(self, fault: Fault) -> None:
        """A fault that the node handles without a change of mode: plans go on."""
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline:
            if (seen := self._mode())["mode"] != "nominal":
                self.problems.append(f"mode {seen['mode']}, code {seen['code']}, not nominal")
                return
            time.sleep(0.02)

    def _check_diagnostics(self, fault: Fault) -> None:
        """The planner's part must not be OK: it is published every 0.1 s here."""
        deadline = time.monotonic() + 1.0
        while self._level == b"\x00":
            if time.monotonic() > deadline:
                self.problems.append(f"the planner's diagnostics are OK in mode {fault.mode}")
                return
            time.sleep(0.02)

    def _check_after(self, detect_s: float | None, recover_s: float | None, expected_nominal: bool) -> None:
        if detect_s is None and not expected_nominal:
            self.problems.append("not detected")
        if recover_s is None:
            self.problems.append("did not recover")
        if not self.rig.is_spinning():
            self.problems.append("the node's executor has ended")

    def _until(self, since: float, mode: str, code: str) -> float | None:
        """Seconds until a status since then has this mode and code, and for nominal holds it; None: it is over."""
        codes = code.split("|")
        while True:
            for at, seen in list(self._modes):
                fits = at >= since and seen["mode"] == mode and (code == "" or seen["code"] in codes)
                if fits and (mode != "nominal" or self._mode()["mode"] == "nominal"):
                    return at - since
            if time.monotonic() > since + self._limit_s:
                return None
            time.sleep(0.01)

    def _mode(self) -> dict[str, str]:
        return self._modes[-1][1] if self._modes else {"mode": "", "code": ""}

    def _on_status(self, message: Any) -> None:
        seen = {pair.key: pair.value for pair in message.values}
        self._modes = [*self._modes[-400:], (time.monotonic(), seen)]
        if seen["mode"] in ("nominal", "degraded"):
            silent_s, allowed_s = float(seen["plan_age_s"]), max(SILENT_S, 4 * float(seen["period_s"]))
            if silent_s > allowed_s:
                self.problems.append(f"no plan for {silent_s:.1f} s in mode {seen['mode']}")

    def _on_path(self, message: Any) -> None:
        """Nothing stale and nothing invalid may be published; in ``brake`` also what no model made."""
        stamp_ns = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        age_s = (self.rig.now_ns() - stamp_ns) * 1e-9
        if age_s > self._max_age_s + 0.5:  # the reader has a delay of its own
            self.problems.append(f"a path of {age_s:.2f} s was published")
        places = [pose.pose.position for pose in message.poses]
        if not all(math.isfinite(place.x) and math.isfinite(place.y) for place in places):
            self.problems.append("a path with a coordinate that is not finite was published")

    def _on_diagnostics(self, message: Any) -> None:
        self._level = next(each.level for each in message.status if each.name == "fastdrive: planner")

    def _load(self, settings: Any) -> Any:
        if self.model_error:
            raise ModelError(self.model_error)
        return LoadedPlanner(self.planner, self.planner.cameras, 6, 0.5, lambda: {"vla": "stand-in"})

    def _drive(self) -> None:
        count = 0
        while not self._stopping.wait(PERIOD_S):
            count += 1
            with self.lock:
                self._send(self.rig.now_ns(), count)
                if self.traffic.sets is not None:
                    self.traffic.sets -= 1
                    self.traffic = self.traffic if self.traffic.sets else Traffic()

    def _send(self, now_ns: int, count: int) -> None:
        traffic = self.traffic

        def stamp(name: str) -> int:
            shift_s = _at(traffic.shift_s.get(name, traffic.shift_s.get("all", 0.0)), count)
            return traffic.stamp_ns.get(name, traffic.stamp_ns.get("all", now_ns + round(shift_s * 1e9)))

        if traffic.odometry:
            self.rig._publishers["/fastdrive/input/odometry"].publish(odometry(stamp("odometry"), traffic.edit))
        for camera in self.planner.cameras:
            if camera not in traffic.skip and count % traffic.every.get(camera, 1) == 0:
                fields = {} if self.rig.compressed else {"data": picture(count), "frame_id": camera}
                bad = {name: _at(value, count) for name, value in traffic.bad.get(camera, {}).items()}
                self.rig.send_image(camera, stamp(camera), **{**fields, **bad})
        if traffic.extra is not None:
            traffic.extra(self, now_ns)


def odometry(stamp_ns: int, edit: Callable[[Any], None] | None = None) -> Any:
    """A valid message at 8 m/s, then changed."""
    from nav_msgs.msg import Odometry

    message = Odometry()
    message.header.stamp = stamp_message(stamp_ns)
    message.pose.pose.position.x = SPEED_MPS * (stamp_ns - _BEGIN_NS) * 1e-9
    message.pose.pose.orientation.w = 1.0
    message.twist.twist.linear.x = SPEED_MPS
    if edit is not None:
        edit(message)
    return message


def _at(value: Any, count: int) -> Any:
    return value(count) if callable(value) else value


def picture(count: int) -> bytes:
    """The pixels of an image that differs from the one before and is neither dark nor noise."""
    rows, columns = np.mgrid[:24, :32]
    green = 20 + (6 * columns + 4 * rows + 16 * count) % 200
    return np.repeat(green.astype(np.uint8)[:, :, None], 3, axis=2).tobytes()


class Scenes:
    """Scenes by name, each made when it is first needed, and made anew after one that did not recover."""

    def __init__(self, rclpy):
        self._rclpy = rclpy
        self._made: dict[str, Scene] = {}

    def measure(self, fault: Fault) -> Measured:
        measured = self._scene(fault.scene).measure(fault)
        if measured.recover_s is None and fault.mode != "nominal":
            self._made.pop(fault.scene).close()
        return measured

    def _scene(self, name: str) -> Scene:
        for other in [each for each in self._made if each != name]:
            self._made.pop(other).close()  # two nodes of one name would read the same topics
        if name not in self._made:
            self._made[name] = Scene(self._rclpy, name)
        return self._made[name]

    def close(self) -> None:
        for scene in self._made.values():
            scene.close()
        self._made.clear()
