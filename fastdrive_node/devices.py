"""Devices: which one runs a model, and the machine that figures were taken on."""

from __future__ import annotations

import platform
import resource
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


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype that an option names; ``auto`` is bfloat16 on a GPU and float32 on a CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def free_memory(device: torch.device) -> int:
    """Bytes that may be taken: of the GPU, or of the host as the kernel estimates it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return 1 << 62  # not known: nothing is refused for it


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has held at most: of the GPU, or of the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
