"""/diagnostics: age and rate of every input, what runs, what was refused. docs/node.md lists the levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from fastdrive_node.planning.early_images import EarlyDecoder
from fastdrive_node.ros.parameters import Settings
from fastdrive_node.ros.performance import GPU_MEMORY, memory_values, snake_case, timing_part
from fastdrive_node.sync.frames import CameraStatus
from fastdrive_node.sync.modes import Mode, ModeStatus
from fastdrive_node.sync.outcomes import WorkerStatus
from fastdrive_node.sync.statistics import Statistics
from fastdrive_node.types import PlannerState

PLANNER_STATUS, MODEL_STATUS = "planner", "model"  # parts that the replay reads, with the key and value that say ready
LIFECYCLE_KEY, ACTIVE = "lifecycle", "active"
OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
MODE_LEVELS = {
    Mode.NOMINAL: OK,
    Mode.DEGRADED: WARN,
    Mode.STARTING: WARN,
    Mode.INACTIVE: WARN,
    Mode.REFUSING: ERROR,
    Mode.FAULT: ERROR,
}
MAX_AHEAD_S = 0.5  # of a stamp ahead of the node's clock
LEAST_RECENT = 5  # the fraction refused is of at least this many sets, so that one refusal at the start is no ERROR


@dataclass(frozen=True)
class NodeStatus:
    """Everything that the diagnostics report."""

    name: str  # of the node
    lifecycle: str  # state label
    settings: Settings = field(default_factory=Settings)
    worker: WorkerStatus | None = None  # None before activation
    publishers: Mapping[str, int] = field(default_factory=dict)  # matched, by input
    lost: Mapping[str, int] = field(default_factory=dict)  # messages, by input
    unusable: Mapping[str, int] = field(default_factory=dict)  # messages that were ignored, by input
    early: EarlyDecoder | None = None  # decodes images as they arrive
    failed: Mapping[str, int] = field(default_factory=dict)  # callbacks that raised, by topic or service
    loss_expected: str = ""  # why large messages will be lost
    records_readers: int = 0  # matched subscriptions of ~/output/plan_json
    identity: Mapping[str, str] = field(default_factory=dict)  # model, pruner, drop ratio, device
    problems: Sequence[str] = ()  # of QoS and types
    mode: ModeStatus | None = None  # None: not judged
    problem: str = ""  # a configuration that failed, or a parameter that was accepted but could not be applied
    planner: PlannerState | None = None  # None: not configured
    exchange: str = "none"  # of the planner: "none", "loading" or "failed: reason"
    statistics: Statistics = field(default_factory=Statistics)


def diagnostic_array(status: NodeStatus, stamp: Time) -> DiagnosticArray:
    """One status each for the planner, the model, the topics and memory; while the node is active also for timing,
    every camera and the odometry."""
    message = DiagnosticArray()
    message.header.stamp = stamp
    pid = None if status.planner is None else status.planner.pid
    memory = _status(status, "memory", OK, "ok", memory_values(status.identity, pid))
    message.status = [_planner(status), _model(status), _topics(status), memory]
    if status.worker is not None:
        message.status.append(_status(status, "timing", *timing_part(status.settings, status.statistics)))
        cameras = status.worker.cameras.items()
        message.status += [_camera(status, camera, values) for camera, values in cameras]
        message.status.append(_odometry(status, status.worker))
    return message


def _status(status: NodeStatus, part: str, level: bytes, text: str, values: Mapping[str, object]) -> DiagnosticStatus:
    pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return DiagnosticStatus(name=f"{status.name}: {part}", level=level, message=text, hardware_id="", values=pairs)


def _planner(status: NodeStatus) -> DiagnosticStatus:
    values: dict[str, object] = {LIFECYCLE_KEY: status.lifecycle, "plan_json_readers": status.records_readers}
    values["exchange"] = status.exchange
    mode = status.mode
    if mode is not None:
        values |= {"mode": mode.mode.value, "code": mode.reason.code or "none"}
        values |= {f"refused_{snake_case(code)}": count for code, count in mode.refusals.items()}
    if (planner := status.planner) is not None:
        values |= {"planner_state": planner.phase, "planner_restarts": planner.restarts}
        values |= {"planner_notice": planner.reason or "none"}
    if status.problem:
        return _status(status, PLANNER_STATUS, ERROR, status.problem, values)
    if status.worker is None:
        if mode is not None and MODE_LEVELS[mode.mode] == ERROR:
            return _status(status, PLANNER_STATUS, ERROR, mode.text, values)
        return _status(status, PLANNER_STATUS, WARN, f"{status.lifecycle}: not activated", values)
    worker, frames = status.worker, status.worker.frames
    values |= {
        "busy": worker.busy,
        "plans": worker.plans,
        "plan_age_s": _seconds(worker.plan_age_s),
        "refused": worker.refused,
        "recent_sets": worker.recent,
        "recent_refusals": ", ".join(f"{stage} {count}" for stage, count in worker.recent_refusals.items()) or "none",
        "last_refusal": worker.last_refusal or "none",
        "sets": frames.sets,
        "degraded_sets": frames.degraded,
        "superseded_sets": frames.superseded,
        "late_frames": frames.late,
        "duplicate_frames": frames.duplicates,
        "time_jumps": frames.resets,
        "command": worker.command.value,
        "command_age_s": _seconds(worker.command_age_s),
        **_deadline_values(worker),
    }
    level, text = _planning_level(status.settings, worker)
    if mode is not None and MODE_LEVELS[mode.mode] > level:
        level, text = MODE_LEVELS[mode.mode], mode.text
    return _status(status, PLANNER_STATUS, level, text, values)


def _deadline_values(worker: WorkerStatus) -> dict[str, object]:
    """How many tokens the last plan kept for its deadline, and whether the prediction held."""
    if (choice := worker.deadline) is None:
        return {}
    return {
        "deadline_ms": f"{choice.deadline_ms:g}",
        "deadline_predicted_ms": f"{choice.elapsed_ms + choice.predicted_ms:.1f}",
        "deadline_plan_ms": f"{worker.plan_ms:.1f}",
        "deadline_keep": choice.keep,
        "deadline_wanted": choice.wanted,
        "deadline_load": f"{choice.load:.2f}",
        "deadline_reason": choice.reason,
        "deadline_late_plans": worker.late_plans,
    }


def _planning_level(settings: Settings, worker: WorkerStatus) -> tuple[bytes, str]:
    """By the age of the last plan and the fraction of recent sets that were refused; the worse of both counts."""
    refused = sum(worker.recent_refusals.values())
    text = f"{refused} of the last {worker.recent} sets were refused; the last: {worker.last_refusal}"
    fraction = refused / max(worker.recent, LEAST_RECENT)
    if worker.recent and refused == worker.recent:
        fraction = 1.0
    age_s = worker.plan_age_s or 0.0
    late = f"no plan for {age_s:.1f} s" + (f"; {text}" if refused else "; no complete frame set since then")
    if fraction > settings.refused_error_fraction:
        return ERROR, text
    if age_s > settings.plan_age_error_s:
        return ERROR, late
    if fraction > settings.refused_warn_fraction:
        return WARN, text
    if age_s > settings.plan_age_warn_s:
        return WARN, late
    if worker.warnings:
        return WARN, "; ".join(worker.warnings)
    return (OK, "active") if worker.plans else (WARN, "active, no frame set yet")


def _camera(status: NodeStatus, camera: str, values: CameraStatus) -> DiagnosticStatus:
    publishers = status.publishers.get(camera, 0)
    level, text = _input_level("image", values.age_s, status.settings.max_set_age_s, "max_set_age_s", publishers)
    pairs = {
        "age_s": _seconds(values.age_s),
        "rate_hz": f"{values.rate_hz:.2f}",
        "received": values.received,
        "late_frames": values.late,
        "publishers": publishers,
        "lost_messages": status.lost.get(camera, 0),
    }
    if (kept := status.statistics.kept_tokens.get(camera)) is not None:
        pairs |= {"kept_tokens": kept, "tokens": status.statistics.tokens[camera]}
    return _status(status, camera, level, text, pairs)


def _odometry(status: NodeStatus, worker: WorkerStatus) -> DiagnosticStatus:
    publishers = status.publishers.get("odometry", 0)
    age_s, limit_s = worker.odometry_age_s, status.settings.max_odometry_age_s
    level, text = _input_level("message", age_s, limit_s, "max_odometry_age_s", publishers)
    values = {"age_s": _seconds(age_s), "publishers": publishers, "lost_messages": status.lost.get("odometry", 0)}
    return _status(status, "odometry", level, text, values)


def _input_level(kind: str, age_s: float | None, limit_s: float, name: str, publishers: int) -> tuple[bytes, str]:
    if age_s is None:
        return ERROR, f"no {kind} yet" if publishers else f"no {kind} yet, and no node publishes its topic"
    if age_s > limit_s:
        return ERROR, f"the newest {kind} is {age_s:.2f} s old, the limit is {limit_s:.2f} s ({name})"
    if age_s < -MAX_AHEAD_S:
        return ERROR, f"the newest {kind} is stamped {-age_s:.2f} s ahead of the node's clock: check use_sim_time"
    if publishers > 1:
        return WARN, f"{publishers} nodes publish its topic"
    return OK, "ok"


def _model(status: NodeStatus) -> DiagnosticStatus:
    level, text = (OK, "loaded") if status.identity else (WARN, "not loaded")
    if status.exchange.startswith("failed"):
        level, text = WARN, f"exchange {status.exchange}; the model before goes on"
    values = {key: value for key, value in status.identity.items() if not key.startswith(GPU_MEMORY)}
    return _status(status, MODEL_STATUS, level, text, values)


def _topics(status: NodeStatus) -> DiagnosticStatus:
    early = status.early
    values = {
        **status.publishers,
        "lost_messages": sum(status.lost.values()),
        **({"decoded_on_arrival": early.begun, "decoded_by_planner": early.left} if early else {}),
        **{f"unusable_{name.lower()}": count for name, count in status.unusable.items()},
        **{f"failed_{name.lower()}": count for name, count in status.failed.items()},
    }
    if status.problems:
        return _status(status, "topics", ERROR, "; ".join(status.problems), values)
    level, text = (WARN, status.loss_expected) if status.loss_expected and status.publishers else (OK, "ok")
    return _status(status, "topics", level, text, values)


def _seconds(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
