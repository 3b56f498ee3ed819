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

from fastdrive_node.commands.replay import ReplayOptions, replay
from tests.packaging.source_imports import ROOT

BUILT_FROM = (
    *("fastdrive_node", "training/fastdrive_training", "export/fastdrive_export", "launch", "config", "resource"),
    *("models/tiny", "samples/city", "package.xml", "pyproject.toml", "setup.py", "setup.cfg", "README.md", "LICENSE"),
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
    _run([*pip, "--python", folder / "venv/bin/python", "install", "--no-deps", "--no-index", wheel], folder)
    site_packages = next((folder / "venv/lib").glob("python*/site-packages"))
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv"


def test_packages_come_from_the_wheel(environment, tmp_path):
    for package in ("fastdrive_node", "fastdrive_training", "fastdrive_export"):
        file = _run([environment / "bin/python", "-c", f"import {package} as p; print(p.__file__)"], tmp_path).strip()
        assert Path(file).is_relative_to(environment)


def test_the_wheel_carries_every_file_that_the_code_opens(environment):
    share = environment / "share/fastdrive_node"
    for folder in ("config", "launch", "models/tiny", "samples/city"):
        shipped, carried = (
            {file.name for file in (root / folder).iterdir() if file.is_file()} for root in (ROOT, share)
        )
        assert carried == shipped, folder
    installed = next((environment / "lib").glob("python*/site-packages")) / "fastdrive_training"
    sources = ROOT / "training/fastdrive_training"
    data = {file.relative_to(sources) for file in sources.rglob("*") if file.suffix in (".yaml", ".j2", ".typed")}
    assert data and not {file for file in data if not (installed / file).is_file()}


def test_the_installed_wheel_replays_the_sample_bag_with_the_plans_of_the_checkout(environment, tmp_path):
    """In lockstep, in which two nodes give the same plans on any machine."""
    pytest.importorskip("rclpy", reason="replay starts the ROS 2 node")
    share, plans = environment / "share/fastdrive_node", []
    (tmp_path / "wheel").mkdir()
    command = [environment / "bin/fastdrive", "replay", share / "samples/city", "--lockstep", "--drop", "0.5"]
    _run([*command, "--json", "summary.json"], tmp_path / "wheel")
    replay(ReplayOptions(ROOT / "samples/city", json=str(tmp_path / "summary.json"), lockstep=True))
    for folder in (tmp_path / "wheel", tmp_path):
        summary = json.loads((folder / "summary.json").read_text())
        assert tuple(summary[name] for name in ("sets", "plans", "refused", "dropped")) == (20, 20, 0, 0)
        assert (summary["total_tokens"], summary["kept_tokens"]) == (192, 96)
        plans.append((folder / summary["plans_file"]).read_bytes())
    assert plans[0] == plans[1]


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
