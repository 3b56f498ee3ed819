"""The parts ``timing`` and ``memory`` of /diagnostics."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticStatus

from fastdrive_node.ros.parameters import Settings
from fastdrive_node.sync.statistics import Statistics

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
GPU_MEMORY = "gpu_memory_"  # keys of the planner's identity that are figures of memory
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def timing_part(settings: Settings, statistics: Statistics) -> tuple[bytes, str, dict[str, object]]:
    """Level by the plan rate, text, and percentiles of every stage."""
    rate_hz = statistics.rate_hz
    values: dict[str, object] = {
        "plan_rate_hz": "none" if rate_hz is None else f"{rate_hz:.2f}",
        "window_s": f"{statistics.window_s:g}",
        "window_plans": statistics.plans,
    }
    for name, times in statistics.times_ms.items():
        key = snake_case(name)
        values |= {f"{key}_p50_ms": f"{times.p50:.1f}", f"{key}_p99_ms": f"{times.p99:.1f}"}
    level, text = _rate_level(settings, rate_hz)
    return level, text, values


def _rate_level(settings: Settings, rate_hz: float | None) -> tuple[bytes, str]:
    if rate_hz is None:
        return OK, "no plan rate yet"
    text = f"{rate_hz:.1f} plans a second"
    for level, name in ((ERROR, "plan_rate_error_hz"), (WARN, "plan_rate_warn_hz")):
        if rate_hz < (limit := getattr(settings, name)):
            return level, f"{text}, fewer than {limit:g} ({name})"
    return OK, text


def memory_values(identity: Mapping[str, str], planner_pid: int | None) -> dict[str, object]:
    """Memory in MB of 10^6 bytes: resident of the node's processes, available on the host, and of the GPU."""
    values: dict[str, object] = {"node_memory_mb": _resident_mb("self")}
    if planner_pid is not None:
        values["planner_memory_mb"] = _resident_mb(planner_pid)
    values["host_memory_available_mb"] = _available_mb()
    return values | {key: value for key, value in identity.items() if key.startswith(GPU_MEMORY)}


def snake_case(text: str) -> str:
    """A key of letters, digits and underscores, like plan_speed of plan.speed."""
    return "".join(letter if letter.isalnum() else "_" for letter in text.lower())


def _resident_mb(pid: int | str) -> str:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):  # it has ended
        return "none"
    return f"{pages * _PAGE_BYTES / 1e6:.0f}"


def _available_mb() -> str:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return f"{next(int(line.split()[1]) for line in lines if line.startswith('MemAvailable')) * 1.024e-3:.0f}"
    except (OSError, StopIteration, ValueError):
        return "none"
