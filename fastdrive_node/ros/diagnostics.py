"""/diagnostics: who is late, what runs, what was refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from fastdrive_node.sync.frames import CameraStatus
from fastdrive_node.sync.worker import WorkerStatus

PLANNER_STATUS, MODEL_STATUS = "planner", "model"  # parts that the replay reads, with the key and value that say ready
LIFECYCLE_KEY, ACTIVE = "lifecycle", "active"
OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


@dataclass(frozen=True)
class NodeStatus:
    """Everything that the diagnostics say."""

    name: str  # of the node
    lifecycle: str  # state label
    worker: WorkerStatus | None = None  # None before activation
    max_age_s: float = 1.0
    publishers: Mapping[str, int] = field(default_factory=dict)  # matched, by input
    records_readers: int = 0  # matched subscriptions of ~/output/plan_json
    identity: Mapping[str, str] = field(default_factory=dict)  # model, pruner, drop ratio, device
    problems: Sequence[str] = ()  # of QoS and types


def diagnostic_array(status: NodeStatus, stamp: Time) -> DiagnosticArray:
    """One status each for the cameras, the odometry, the planner, the model and the topics."""
    message = DiagnosticArray()
    message.header.stamp = stamp
    message.status = [_planner(status), _model(status), _topics(status)]
    if status.worker is not None:
        cameras = status.worker.cameras.items()
        message.status += [_camera(status, camera, values) for camera, values in cameras]
        message.status.append(_odometry(status, status.worker))
    return message


def _status(status: NodeStatus, part: str, level: bytes, text: str, values: Mapping[str, object]) -> DiagnosticStatus:
    pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return DiagnosticStatus(name=f"{status.name}: {part}", level=level, message=text, hardware_id="", values=pairs)


def _planner(status: NodeStatus) -> DiagnosticStatus:
    values: dict[str, object] = {LIFECYCLE_KEY: status.lifecycle, "plan_json_readers": status.records_readers}
    if status.worker is None:
        return _status(status, PLANNER_STATUS, WARN, f"{status.lifecycle}: not activated", values)
    worker, frames = status.worker, status.worker.frames
    values |= {
        "busy": worker.busy,
        "plans": worker.plans,
        "refused": worker.refused,
        "sets": frames.sets,
        "degraded sets": frames.degraded,
        "dropped sets": frames.dropped,
        "late frames": frames.late,
        "duplicate frames": frames.duplicates,
        "jumps back in time": frames.resets,
        "command": worker.command.value,
        "command age s": _seconds(worker.command_age_s),
        "last refusal": worker.last_refusal or "none",
    }
    if worker.plans == 0 and worker.refused > 0:
        return _status(status, PLANNER_STATUS, ERROR, f"every set was refused; the last: {worker.last_refusal}", values)
    return _status(status, PLANNER_STATUS, OK, "active", values)


def _camera(status: NodeStatus, camera: str, values: CameraStatus) -> DiagnosticStatus:
    publishers = status.publishers.get(camera, 0)
    level, text = OK, "ok"
    if values.age_s is None:
        level, text = ERROR, "no image yet" if publishers else "no image yet, and nobody publishes its topic"
    elif values.age_s > status.max_age_s:
        level, text = ERROR, f"the newest image is {values.age_s:.2f} s old"
    pairs = {
        "age s": _seconds(values.age_s),
        "rate Hz": f"{values.rate_hz:.2f}",
        "received": values.received,
        "late": values.late,
        "publishers": publishers,
    }
    return _status(status, camera, level, text, pairs)


def _odometry(status: NodeStatus, worker: WorkerStatus) -> DiagnosticStatus:
    publishers = status.publishers.get("odometry", 0)
    level, text = OK, "ok"
    if worker.odometry_age_s is None:
        level, text = ERROR, "no message yet" if publishers else "no message yet, and nobody publishes its topic"
    elif worker.odometry_age_s > status.max_age_s:
        level, text = ERROR, f"the newest message is {worker.odometry_age_s:.2f} s old"
    return _status(
        status, "odometry", level, text, {"age s": _seconds(worker.odometry_age_s), "publishers": publishers}
    )


def _model(status: NodeStatus) -> DiagnosticStatus:
    level, text = (OK, "loaded") if status.identity else (WARN, "not loaded")
    return _status(status, MODEL_STATUS, level, text, status.identity)


def _topics(status: NodeStatus) -> DiagnosticStatus:
    text = "; ".join(status.problems) or "ok"
    return _status(status, "topics", ERROR if status.problems else OK, text, dict(status.publishers))


def _seconds(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
