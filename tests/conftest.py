"""Fixtures of several packages: a ROS context, untrained tiny VLAs, toy engines.

torch is imported in fixtures: the process that hands out the tests needs none of it.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from fastdrive_node.families import Vla
    from fastdrive_node.types import EgoHistory
    from tests.engines.engine_toys import Toy

# Several test processes run at once, and start others: threads of each would only wait for one another.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
settings.register_profile("suite", deadline=None)  # times vary with the machine's load
settings.load_profile("suite")
gc.disable()  # while modules are imported


# Files that take longest, the longest first: begun last, one of them would run alone at the end.
LONG = (
    "tests/packaging/test_wheel.py",
    "tests/training/test_two_processes.py",
    "ros2_ws/src/fastdrive_sim/tests/test_sim_drive_node.py",
    "tests/replay/test_replay.py",
    "tests/ros/test_real_planner.py",
    "tests/benchmarks/test_gpu_engines.py",
    "tests/training/vla/test_train.py",
    "tests/benchmarks/test_bench_command.py",
    "tests/benchmarks/test_three_b.py",
    "tests/benchmarks/test_gpu_suite.py",
    "tests/training/pruner/test_trainer.py",
    "tests/training/evaluation/test_evaluate.py",
    "tests/engines/test_engine_fuzz.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; the order within a file stays."""
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(LONG)))


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector looks at it no more, which makes each full collection short.

    It looks less often, too: models, trees of sources and pages are many objects that stay for a test.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory):
    """An untrained tiny VLA directory; tests must not change it."""
    from fastdrive_training.vla.tiny_model import build_tiny_vla
    from tests.generation import SHALLOW, write_geometry, write_packer

    folder = build_tiny_vla(tmp_path_factory.mktemp("vla") / "tiny", seed=0, size=SHALLOW)
    return write_packer(write_geometry(folder))


@pytest.fixture(scope="session")
def tiny_vla(tiny_dir) -> Vla:
    from fastdrive_node.families import load_vla

    return load_vla(tiny_dir)


@pytest.fixture(scope="session")
def ego_history() -> EgoHistory:
    """Five states, 0.5 s apart, of a vehicle that drives a bend at 5.2 m/s."""
    from fastdrive_node.types import EgoHistory, EgoState

    states = tuple(
        EgoState(-int(5e8 * k), 10 - 2.6 * k, 5 - 0.1 * k * k, 0.3 - 0.05 * k, 5.2, 0.1, 0.1) for k in range(5)
    )
    return EgoHistory(states, interval_s=0.5)


@pytest.fixture(scope="session")
def ros():
    """rclpy on a domain of its own, on this host only."""
    rclpy = pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")
    from fastdrive_node.ros.domain import own_domain

    with own_domain() as domain:
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        os.environ["ROS_DOMAIN_ID"] = str(domain)
        rclpy.init(args=[], domain_id=domain)
        yield rclpy
        rclpy.try_shutdown()


@pytest.fixture(scope="session")
def toys(tmp_path_factory) -> dict[str, Toy]:
    from tests.engines.engine_toys import SIZES, make_toy

    return {name: make_toy(tmp_path_factory.mktemp(name), size) for name, size in SIZES.items()}


@pytest.fixture(scope="session")
def toy(toys) -> Toy:
    return toys["ragged"]


@pytest.fixture(scope="session")
def engine_file(toy, tmp_path_factory) -> Path:
    """An fp32 engine of the ragged toy; tests must not change it."""
    from fastdrive_export.build import build_onnx

    return build_onnx(toy.vla.path, toy.pruner_file, tmp_path_factory.mktemp("engine"))[0]
