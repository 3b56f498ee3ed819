"""The wheel, installed outside of the checkout, does the main job with what it carries."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from rosbags.rosbag2 import StoragePlugin, Writer

from fastdrive_node.record import PlanRecord
from fastdrive_node.replay.bag import Bag, Recording
from fastdrive_node.replay.samples import planning_samples
from fastdrive_node.ros.parameters import Settings
from fastdrive_node.ros.planner_factory import load_planner
from tests.packaging.source_imports import ROOT
from tests.replay.bags import STORE

BUILT_FROM = (
    *("fastdrive_node", "training/fastdrive_training", "export/fastdrive_export", "launch", "config", "resource"),
    *("models/tiny", "models/tiny_drive", "models/tiny_wide", "samples/city"),
    *("package.xml", "pyproject.toml", "setup.py", "setup.cfg", "README.md", "LICENSE"),
)


def _run(command: list[str | Path], folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(
        [str(part) for part in command], cwd=folder, env=environment, text=True, capture_output=True, timeout=300
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    return process.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what the wheel is built from; a build leaves files behind."""
    folder = tmp_path_factory.mktemp("source")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def environment(source, tmp_path_factory) -> Path:
    """A virtual environment with the wheel. Its dependencies are those of this Python: nothing is downloaded."""
    folder = tmp_path_factory.mktemp("installed")
    _run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], folder)
    wheels = folder / "wheels"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    _run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, source], folder)
    (wheel,) = wheels.glob("*.whl")
    into = [*pip, "--python", folder / "venv/bin/python", "install", "--no-compile"]
    _run([*into, "--no-deps", "--no-index", wheel], folder)
    site_packages = next((folder / "venv/lib").glob("python*/site-packages"))
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv"


def test_packages_come_from_the_wheel(environment, tmp_path):
    packages = ("fastdrive_node", "fastdrive_training", "fastdrive_export")
    code = f"import {', '.join(packages)}; print(*(p.__file__ for p in ({', '.join(packages)})), sep=chr(10))"
    files = _run([environment / "bin/python", "-c", code], tmp_path).splitlines()
    assert len(files) == 3 and all(Path(file).is_relative_to(environment) for file in files)


def test_the_wheel_carries_every_file_that_the_code_opens(environment):
    share = environment / "share/fastdrive_node"
    for folder in ("config", "launch", "models/tiny", "models/tiny_drive", "models/tiny_wide", "samples/city"):
        shipped, carried = (
            {file.name for file in (root / folder).iterdir() if file.is_file()} for root in (ROOT, share)
        )
        assert carried == shipped, folder
    installed = next((environment / "lib").glob("python*/site-packages")) / "fastdrive_training"
    sources = ROOT / "training/fastdrive_training"
    data = {file.relative_to(sources) for file in sources.rglob("*") if file.suffix in (".yaml", ".j2", ".typed")}
    assert data and not {file for file in data if not (installed / file).is_file()}


@pytest.fixture
def first_sets(tmp_path) -> Path:
    """The first four frame sets of the sample bag, as a bag."""
    shipped, path = Bag.open(ROOT / "samples/city"), tmp_path / "city"
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        topics = {topic: writer.add_connection(topic, kind, typestore=STORE) for topic, kind in shipped.types.items()}
        for message in shipped.messages(list(shipped.types)):
            if message.stamp_ns < shipped.start_ns + 1_900_000_000:
                writer.write(topics[message.topic], message.stamp_ns, message.raw)
    return path


def test_the_installed_wheel_replays_the_sample_bag_with_the_plans_of_the_checkout(environment, first_sets, tmp_path):
    """In lockstep, in which the node gives the same plans on any machine. The checkout plans without a node."""
    pytest.importorskip("rclpy", reason="replay starts the ROS 2 node")
    command = [environment / "bin/fastdrive", "replay", first_sets, "--lockstep", "--drop", "0.5"]
    _run([*command, "--json", "summary.json"], tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert tuple(summary[name] for name in ("sets", "plans", "refused", "dropped")) == (4, 4, 0, 0)
    assert (summary["total_tokens"], summary["kept_tokens"]) == (192, 96)
    loaded = load_planner(Settings(vla=str(ROOT / "models/tiny"), drop=0.5, device="cpu", warm_up=False))
    recording = Recording.open(first_sets, None, loaded.cameras)
    samples = planning_samples(recording, loaded.history_steps, loaded.history_interval_s, limit=4)
    made = [loaded.planner.plan(each.frames, each.history, each.command) for each in samples]
    plans = [PlanRecord(plan).line() for plan in made]
    assert [json.loads(line) for line in (tmp_path / summary["plans_file"]).read_text().splitlines()] == plans


def test_colcon_can_read_the_setup(source):
    """colcon evaluates the repr of the distribution's fields as Python literals."""
    code = (
        "import setuptools; from distutils.core import run_setup; "
        "d = run_setup('setup.py', ['--dry-run'], stop_after='config'); "
        "print(repr([d.python_requires, d.metadata.python_requires, d.data_files, d.packages, d.package_dir]))"
    )
    python_requires, _, data_files, packages, _ = ast.literal_eval(_run([sys.executable, "-c", code], source))
    assert set(python_requires.split(",")) == {">=3.10", "<3.13"}
    assert {"fastdrive_node", "fastdrive_training", "fastdrive_export"} <= set(packages)
    linked = {file for _, files in data_files for file in files}
    assert {"pyproject.toml", "README.md", "package.xml"} <= linked, "needed by colcon build --symlink-install"
