"""Every module of the benchmarks can be imported."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPTIONAL = {  # package: how it is installed
    "cv2": ".[train]",
    "pyquaternion": ".[train]",
    "onnx": ".[export]",
    "onnxruntime": ".[export]",
}
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "benchmarks").rglob("[!_]*.py")
)


@pytest.mark.parametrize("name", MODULES)
def test_it_is_imported(name):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in OPTIONAL:
            raise
        pytest.skip(f"{package} is not installed: pip install -e {OPTIONAL[package]}")
