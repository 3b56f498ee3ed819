"""Devices: which one runs a model, and the machine that figures were taken on."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from fastdrive_node.errors import InputError, UsageError


def choose_device(name: str = "auto", field: str = "device") -> torch.device:
    """The device that an option names: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; auto is cuda where there is one.

    Raises:
        UsageError: not a device's name; the text names ``field``.
        InputError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"{field}: {name!r} is no device; use auto, cpu, cuda or cuda:<index>")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"{field}: {name!r}, but torch finds {torch.cuda.device_count()} GPUs; use auto or cpu")
    return device


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _processor()


def describe(device: torch.device) -> dict:
    """Device, driver and versions, for JSON."""
    details = {
        "device": device_name(device),
        "kind": device.type,
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
    if device.type == "cuda":
        details["driver"] = _driver()
        details["cuda"] = torch.version.cuda
        details["memory_gib"] = round(torch.cuda.get_device_properties(device).total_memory / (1 << 30), 1)
    return details


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _driver() -> str | None:
    """Version of the GPU's driver; None where nvidia-smi does not say."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.strip().splitlines()[0] if answer.strip() else None
