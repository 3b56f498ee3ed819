"""Toy VLAs and engines of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_toys import SIZES, Toy, make_toy


@pytest.fixture(scope="session")
def toys(tmp_path_factory) -> dict[str, Toy]:
    return {name: make_toy(tmp_path_factory.mktemp(name), size) for name, size in SIZES.items()}


@pytest.fixture(scope="session")
def toy(toys) -> Toy:
    return toys["ragged"]


@pytest.fixture(scope="session")
def engine_file(toy, tmp_path_factory) -> Path:
    """An fp32 engine of the ragged toy; tests must not change it."""
    from fastdrive_export.build import build_onnx

    return build_onnx(toy.vla.path, toy.pruner_file, tmp_path_factory.mktemp("engine"))[0]
