"""Declared dependencies: all that is imported and nothing else, and installable on every Python that is supported."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.packaging.source_imports import PACKAGES, ROOT, imports

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # a dependency of pytest there

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = ROOT / "constraints.txt"
PYTHONS = ("3.10", "3.11", "3.12")

DISTRIBUTIONS = {  # where the name differs from the import's
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "nuscenes": "nuscenes-devkit",
    "rclpy": "ros-rclpy",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
WITH_RCLPY = {"ament_index_python", "builtin_interfaces", "lifecycle_msgs", "rcl_interfaces", "rosgraph_msgs"}
# TensorRT comes with the vehicle's computer, the others with a ROS installation. PyPI's cv-bridge is ROS 1's, ported,
# and for tests alone.
OF_ROS = {"autoware_planning_msgs", "autoware_vehicle_msgs", "bondpy", "cv_bridge", "launch", "launch_ros"}
NOT_ON_PYPI = {"tensorrt", *OF_ROS}
OPTIONAL = {"atheris", "simplejpeg", "turbojpeg"}  # benchmarks use them where somebody has installed them
# Used by another package, or as a program, without an import of ours.
NOT_IMPORTED = {
    "cv-bridge",
    "filelock",
    "hypothesis",
    "jsonschema",
    "pyright",
    "pytest",
    "pytest-xdist",
    "ruff",
    "tensorboard",
    "torchmetrics",
    "uv",
}
EXTRAS = {
    "fastdrive_node": ("ros", "export", "cluster"),  # onnxruntime runs engines, Ray the maps of other packages
    "fastdrive_training": ("train",),
    "fastdrive_export": ("export",),
    "fastdrive_sim": ("sim",),
    "benchmarks": ("ros", "train", "sim", "export"),
}


def _name(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def _declared(*extras: str) -> set[str]:
    optional = PROJECT["optional-dependencies"]
    return {
        _name(requirement)
        for group in (PROJECT["dependencies"], *(optional[x] for x in extras))
        for requirement in group
    }


def _distribution(module: str) -> str:
    if module in WITH_RCLPY:
        return "ros-rclpy"
    if module.endswith("_msgs"):
        return f"ros-jazzy-{module.replace('_', '-')}"
    return DISTRIBUTIONS.get(module, module).lower()


def _third_party(package: str) -> dict[str, str]:
    """Distribution of each import of a package from outside of the project, with one place that imports it."""
    roots = {found.module.split(".")[0]: str(found) for found in imports(package)}
    ours = sys.stdlib_module_names | PACKAGES.keys() | NOT_ON_PYPI | OPTIONAL
    return {_distribution(root): place for root, place in roots.items() if root not in ours}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_import_is_declared(package):
    declared = _declared(*EXTRAS[package])
    missing = {name: place for name, place in _third_party(package).items() if name not in declared}
    assert not missing, "declare in pyproject.toml"


def test_every_declared_dependency_is_imported():
    used = {name for package in PACKAGES for name in _third_party(package)}
    assert _declared(*PROJECT["optional-dependencies"]) - used - NOT_IMPORTED == set()


def test_every_declared_dependency_has_a_tested_version():
    pinned = {_name(line) for line in CONSTRAINTS.read_text().splitlines() if line and not line.startswith("#")}
    declared = _declared(*PROJECT["optional-dependencies"])
    assert pinned == declared


def test_transformers_is_tested_at_both_ends_of_its_range():
    """Its internal modules are imported. CPython 3.10 has the lower end."""
    (declared,) = (each for each in PROJECT["dependencies"] if _name(each) == "transformers")
    least, below = map(int, re.fullmatch(r"transformers>=5\.(\d+),<5\.(\d+)", declared).groups())
    form = re.compile(r'^transformers==5\.(\d+)\.\d+; python_version (<|>=) "3\.11"$', re.MULTILINE)
    pins = form.findall(CONSTRAINTS.read_text())
    assert sorted((sign, int(minor)) for minor, sign in pins) == [("<", least), (">=", below - 1)]


def test_package_xml_names_the_ros_packages_that_the_node_imports():
    named = {element.text for element in ElementTree.parse(ROOT / "package.xml").iter("exec_depend")}
    roots = {found.module.split(".")[0] for found in imports("fastdrive_node")}
    ros = {root for root in roots if root.endswith(("_msgs", "_interfaces")) or root in ("rclpy", "ament_index_python")}
    assert ros - NOT_ON_PYPI <= named
    assert {name for name in named if name.endswith(("_msgs", "_interfaces"))} <= ros, "named, but not imported"


def test_versions_agree_everywhere():
    version = re.search(r'__version__ = "(.+)"', (ROOT / "fastdrive_node" / "__init__.py").read_text())[1]
    simulator = PACKAGES["fastdrive_sim"].parent
    assert "version" in PROJECT["dynamic"]
    for text in (PACKAGES["fastdrive_sim"] / "__init__.py", simulator / "setup.py"):
        assert re.search(r'version(?:__)? ?= ?"(.+)"', text.read_text())[1] == version, text
    for manifest in (ROOT / "package.xml", simulator / "package.xml"):
        assert ElementTree.parse(manifest).findtext("version") == version, manifest
    assert re.search(r"^## \[?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()


def _resolve(python: str, constraints: Path = CONSTRAINTS, source: Path = ROOT / "pyproject.toml", offline=False):
    """Exit code, output and errors of uv, which chooses versions for another Python; nothing is installed or built.

    The index is asked unless ``offline``: then uv reads what it has cached.
    """
    uv = Path(sys.executable).with_name("uv")
    program = str(uv) if uv.is_file() else shutil.which("uv")
    if program is None:
        pytest.skip("uv is not installed: pip install -e .[dev]")
    command = [program, "pip", "compile", "--no-python-downloads", "--all-extras", "--constraints", str(constraints)]
    command += ["--python-version", python, "--python-platform", "x86_64-manylinux_2_28"]
    pinned = {_name(line) for line in CONSTRAINTS.read_text().splitlines() if line and not line.startswith("#")}
    command += [part for name in sorted(pinned) for part in ("--only-binary", name)]
    command += ["--offline"] * offline
    try:
        done = subprocess.run([*command, str(source)], cwd=ROOT, text=True, capture_output=True, timeout=180)
    except subprocess.TimeoutExpired:
        pytest.skip("the package index does not answer")
    if done.returncode and re.search(r"[Ff]ailed to fetch|error sending request|client error", done.stderr):
        pytest.skip(f"the package index cannot be reached: {done.stderr[-200:]}")
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def resolved() -> dict[str, tuple[int, str, str]]:
    """The newest is resolved with the index; the others then find nearly all that they need in uv's cache."""
    newest, *others = reversed(PYTHONS)
    found = {newest: _resolve(newest)}
    for python in others:
        cached = _resolve(python, offline=True)
        found[python] = cached if cached[0] == 0 else _resolve(python)
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_the_tested_versions_install_on_every_supported_python(resolved, python):
    assert PROJECT["requires-python"] == f">={PYTHONS[0]},<3.13"
    code, out, err = resolved[python]
    assert code == 0, err
    assert "torch==" in out and "ros-rclpy==" in out


def test_a_version_that_has_left_python_3_10_is_found(tmp_path):
    left, source = tmp_path / "constraints.txt", tmp_path / "pyproject.toml"
    left.write_text(re.sub(r"^pillow.*$", "pillow==13.0.0", CONSTRAINTS.read_text(), flags=re.MULTILINE))
    source.write_text('[project]\nname = "left"\nversion = "1"\ndependencies = ["pillow"]\n')
    code, _, err = _resolve("3.10", left, source)
    assert code != 0 and "pillow" in err and "Python" in err
    assert _resolve("3.11", left, source, offline=True)[0] == 0
