"""Joules of a plan, where the machine tells: RAPL's counters of processor packages, NVML's of a GPU.

A counter is of the whole package or board: what idles and what else runs is in it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
SILENT = "the machine does not tell"


@dataclass(frozen=True)
class Counter:
    """Energy since some moment, in joules."""

    name: str
    read: Callable[[], float]
    wraps_at: float = float("inf")  # where it begins again at 0

    def between(self, before: float, after: float) -> float:
        """What was spent between two readings that are less than one wrap apart."""
        return after - before if after >= before else after - before + self.wraps_at


def find_counters(device: torch.device, powercap: Path = POWERCAP) -> tuple[list[Counter], list[str]]:
    """The counters that can be read, and why others cannot.

    Args:
        device: its GPU is asked, where it is one.
        powercap: the folder of the kernel's power capping framework.
    """
    counters, reasons = _packages(powercap)
    if device.type == "cuda":
        try:
            counters.append(_board(device))
        except ModuleNotFoundError:
            reasons.append("NVML: not asked, for the package nvidia-ml-py (pynvml) is not installed")
        except Exception as error:  # a class of pynvml's own, for a GPU without a counter or a driver that is not there
            reasons.append(f"NVML: {error}")
    return counters, reasons


def _packages(powercap: Path) -> tuple[list[Counter], list[str]]:
    """One counter a processor package. The same one may be there twice, by MSR and by MMIO."""
    counters: dict[str, Counter] = {}
    reasons: dict[str, str] = {}
    for folder in sorted(powercap.glob("intel-rapl*"), key=lambda path: ("mmio" in path.name, path.name)):
        try:
            name = (folder / "name").read_text().strip()
        except OSError:
            continue  # the folder of the framework itself, which has no domain
        if not name.startswith("package") or name in counters:
            continue
        file = folder / "energy_uj"
        try:
            limit = _joules(folder / "max_energy_range_uj")
            _joules(file)
        except PermissionError:
            reasons[name] = f"RAPL {name}: no right to read {file}, which is for root alone"
        except (OSError, ValueError) as error:
            reasons[name] = f"RAPL {name}: {file.parent} cannot be read ({error})"
        else:
            counters[name] = Counter(name, lambda file=file: _joules(file), limit)
    return list(counters.values()), [reason for name, reason in reasons.items() if name not in counters]


def _joules(file: Path) -> float:
    return int(file.read_text()) / 1e6


def _board(device: torch.device) -> Counter:
    """NVML's counter of a GPU. Raises ModuleNotFoundError, or what NVML raises."""
    nvml = importlib.import_module("pynvml")
    nvml.nvmlInit()
    handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")

    def read() -> float:
        return nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3

    read()
    return Counter("GPU", read)


def spent(counters: Sequence[Counter], run: Callable[[], object], runs: int, device: torch.device) -> dict[str, float]:
    """Joules of one of several runs one after the other, by counter.

    The counters are read after each run, for they may wrap within minutes.

    Raises:
        OSError, ValueError: a counter cannot be read any more.
    """
    total = dict.fromkeys((counter.name for counter in counters), 0.0)
    before = [counter.read() for counter in counters]
    for _ in range(runs):
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        after = [counter.read() for counter in counters]
        for counter, start, stop in zip(counters, before, after, strict=True):
            total[counter.name] += counter.between(start, stop)
        before = after
    return {name: joules / runs for name, joules in total.items()}
