"""A small dataset, a recipe for it, and four of its keyframes as objective plan reads them."""

from __future__ import annotations

import pytest
import torch

from fastdrive_training.distil import train as distil
from fastdrive_training.distil.config import DistilRecipe
from fastdrive_training.distil.trainer import PlanKeyframes
from tests.training.distil.plan_runs import SMALL
from tests.training.tiny_nuscenes import write_dataset


@pytest.fixture(scope="package")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "d", scenes=2, keyframes=12)


@pytest.fixture(scope="package")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def recipe(tmp_path, root, cache, tiny_dir) -> dict:
    paths = {"vla": tiny_dir, "dataset": root, "out": tmp_path / "run", "cache": cache}
    return {**SMALL, **{key: str(path) for key, path in paths.items()}, "draws": 1, "evaluate_every": 2}


@pytest.fixture(scope="package")
def held(root, cache, tiny_dir) -> PlanKeyframes:
    """Four keyframes, with what the tiny VLA is asked about them; no test changes them."""
    recipe = DistilRecipe(
        str(tiny_dir), str(root), "", objective="plan", keyframes=4, val_keyframes=1, cache=str(cache)
    )
    keyframes = distil.prepare(recipe, torch.device("cpu"))[0]
    assert isinstance(keyframes, PlanKeyframes)
    return keyframes
