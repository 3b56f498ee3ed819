"""Energy counters, on powercap folders that are made up and on a stand-in of NVML."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from fastdrive_node.benchmark import energy
from fastdrive_node.benchmark.energy import Counter, find_counters, spent

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def domain(folder, directory, name, energy_uj, limit_uj=10_000_000):
    """A RAPL domain of a powercap folder."""
    path = folder / directory
    path.mkdir()
    values = {"name": name, "energy_uj": energy_uj, "max_energy_range_uj": limit_uj}
    for file, value in values.items():
        (path / file).write_text(f"{value}\n")
    return path


def test_each_processor_package_is_read_once_and_no_part_of_one(tmp_path):
    (tmp_path / "intel-rapl").mkdir()  # the framework's own folder, which has no domain
    domain(tmp_path, "intel-rapl-mmio:0", "package-0", 1)  # the first package again
    domain(tmp_path, "intel-rapl:0", "package-0", 2_500_000)
    domain(tmp_path, "intel-rapl:0:0", "core", 3)
    domain(tmp_path, "intel-rapl:0:1", "dram", 4)
    domain(tmp_path, "intel-rapl:1", "package-1", 7_000_000)
    domain(tmp_path, "intel-rapl:2", "psys", 5)
    counters, reasons = find_counters(CPU, tmp_path)
    assert {counter.name: counter.read() for counter in counters} == {"package-0": 2.5, "package-1": 7.0}
    assert reasons == []


def test_joules_of_a_run_are_the_mean_and_a_counter_may_wrap_in_each_of_them(tmp_path):
    path = domain(tmp_path, "intel-rapl:0", "package-0", 9_000_000, limit_uj=10_000_000)
    readings = iter([1_000_000, 4_000_000, 2_000_000])  # 2 J over the end, then 3 J, then 8 J over the end again
    counters, _ = find_counters(CPU, tmp_path)
    assert spent(counters, lambda: (path / "energy_uj").write_text(str(next(readings))), 3, CPU) == {
        "package-0": pytest.approx((2 + 3 + 8) / 3)
    }


def test_a_machine_without_counters_says_nothing(tmp_path):
    assert find_counters(CPU, tmp_path / "none") == ([], [])


def test_a_counter_without_rights_is_told_with_what_helps(tmp_path, monkeypatch):
    path = domain(tmp_path, "intel-rapl:0", "package-0", 1)

    def refuse(file):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(energy, "_joules", refuse)
    counters, (reason,) = find_counters(CPU, tmp_path)
    assert counters == [] and f"no right to read {path / 'energy_uj'}, which is for root alone" in reason


@pytest.mark.parametrize("content", ["", "many", None])
def test_a_counter_that_is_no_number_is_told_and_not_read(tmp_path, content):
    file = domain(tmp_path, "intel-rapl:0", "package-0", 1) / "energy_uj"
    file.unlink() if content is None else file.write_text(content)
    counters, (reason,) = find_counters(CPU, tmp_path)
    assert counters == [] and "RAPL package-0" in reason and "cannot be read" in reason


class Nvml:
    """A GPU that spends 2 J from reading to reading."""

    def __init__(self):
        self.millijoules, self.asked = 0, None

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid):
        self.asked = uuid
        return "handle"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        assert handle == "handle"
        self.millijoules += 2000
        return self.millijoules


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that torch sees, by its UUID."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)


def test_a_gpu_is_asked_by_its_uuid(gpu, monkeypatch, tmp_path):
    nvml = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    counters, reasons = find_counters(GPU, tmp_path)
    assert nvml.asked == "GPU-abc" and reasons == []
    assert spent(counters, lambda: None, 4, GPU) == {"GPU": pytest.approx(2.0)}


def test_a_gpu_that_cannot_be_asked_is_told(gpu, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert "nvidia-ml-py" in find_counters(GPU, tmp_path)[1][0]
    nvml = Nvml()
    monkeypatch.setattr(Nvml, "nvmlDeviceGetTotalEnergyConsumption", lambda *_: 1 / 0)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert find_counters(GPU, tmp_path) == ([], ["NVML: division by zero"])
    assert find_counters(CPU, tmp_path) == ([], []), "there is no GPU to ask"


def test_a_counter_that_does_not_wrap_is_subtracted():
    assert Counter("GPU", lambda: 0.0).between(3.0, 5.0) == 2.0
