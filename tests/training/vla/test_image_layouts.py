"""A VLA is trained on cameras of different image sizes and on past images, and reads them as it will in a vehicle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from fastdrive_node.errors import InputError, ModelError
from fastdrive_node.families import load_vla
from fastdrive_node.families.spec import FramesSpec
from fastdrive_training.data.adapters import open_source
from fastdrive_training.data.token_cache import FeatureStore
from fastdrive_training.engine.config import RecipeError, parse_recipe
from fastdrive_training.engine.distributed import Processes
from fastdrive_training.evaluation.seen_images import SeenStore
from fastdrive_training.vla import train_planner, train_tower
from fastdrive_training.vla.arrangement import SetForms
from fastdrive_training.vla.data import image_groups, prepare, samples_with_images
from fastdrive_training.vla.targets import AnswerText
from fastdrive_training.vla.train_planner import (
    LanguageBatches,
    LanguagePlanner,
    LanguageRecipe,
    cached_tokens,
    foreground_share,
)
from fastdrive_training.vla.train_tower import TowerBatches, TowerPlanner, TowerRecipe
from tests.training.tiny_nuscenes import write_dataset

SMALL = {"batch": 2, "split": "train", "workers": 0, "tensorboard": False, "device": "cpu", "steps": 1}
CAMERAS = ("CAM_FRONT", "CAM_BACK")
KEYS = {
    "cameras": list(CAMERAS),
    "gradient_cameras": ["CAM_BACK"],
    "image_sizes": {"CAM_BACK": [56, 168]},
    "frames": {"count": 3, "interval_s": 0.5},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "d", scenes=3, keyframes=10)


@pytest.fixture(scope="module")
def source(dataset):
    return open_source(dataset, "train", cameras=CAMERAS)


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory):
    """The folder of both stages, ``tower`` and ``language``."""
    folder = tmp_path_factory.mktemp("runs")
    paths = {"dataset": str(dataset), "cache": str(folder / "cache")}
    tower = train_tower.train({**SMALL, **paths, **KEYS, "out": str(folder / "tower")}, False)
    paths["tower_run"] = str(folder / "tower")
    language = train_planner.train({**SMALL, **paths, "out": str(folder / "language")}, False)
    assert np.isfinite(tower["total"]) and np.isfinite(language["total"])
    return folder


@pytest.fixture(scope="module")
def vla(runs):
    return load_vla(runs / "language" / "vla")


@pytest.fixture(scope="module")
def data(runs, vla, source):
    return prepare(vla, source, runs / "cache")


@pytest.fixture(scope="module")
def seen(vla, source):
    """Tokens [K, N, D] that evaluation and vehicle give the VLA at the training's keyframes."""
    store = SeenStore(source, vla, FeatureStore(source, vla, None, attention=False))
    return torch.stack([each.visual.rows for each in store.load(samples_with_images(vla, source)[:, 0].tolist())])


def test_both_stages_write_a_vla_of_these_images(vla):
    assert vla.spec.sizes == ((112, 224), (56, 168)) and vla.spec.frames == FramesSpec(3, 0.5)
    assert vla.tokens == 3 * (4 * 8 + 2 * 6)


def test_the_written_recipe_is_the_recipe(runs):
    stored = yaml.safe_load((runs / "tower" / "recipe.yaml").read_text())
    recipe = parse_recipe(TowerRecipe, stored)
    assert recipe.image_sizes == {"CAM_BACK": (56, 168)} and recipe.frames == FramesSpec(3, 0.5)


def test_keyframes_without_all_past_images_are_left_out(source, data):
    assert len(source) == 20 and len(data) == 2 * (10 - 6 - 2)  # the last six have no future, the first two no past
    assert data.rows.tolist() == [[2, 1, 0], [3, 2, 1], [6, 5, 4], [7, 6, 5]]
    assert [each.shape[:2] for each in data.pixels] == [(8, 1), (8, 1)]


def test_the_second_stage_sees_the_tokens_that_the_vehicle_gives(runs, vla, data, seen):
    planner = LanguagePlanner(vla)
    tokens = cached_tokens(planner, data, vla.encoder_fingerprint)
    recipe = LanguageRecipe("d", "o", batch=4, pruned_by="random")
    batches = LanguageBatches(data, planner.groups, AnswerText.of(vla), recipe, Processes("cpu"), tokens)
    (batch,) = batches[0]
    assert batch.kept.shape == (4, vla.tokens)
    torch.testing.assert_close(batch.visual, seen[np.sort(batches.indices(0))], atol=5e-3, rtol=5e-3)


def test_the_first_stage_encodes_them_in_the_prompts_order(vla, data, seen):
    planner, groups = TowerPlanner(vla), image_groups(vla)
    indices = np.arange(len(data))
    recipe = TowerRecipe("d", "o", cameras=CAMERAS, gradient_cameras=("CAM_BACK",), batch=2)
    batches = TowerBatches(data, groups, AnswerText.of(vla), recipe, Processes("cpu"))
    pixels = [torch.from_numpy(each) for each in batches.gather(data.pixels, indices)]
    vla.model.requires_grad_(True)
    tokens = planner.encode(pixels, [5, 2])
    torch.testing.assert_close(tokens, seen, atol=1e-4, rtol=1e-4)
    learned = torch.autograd.grad(tokens[:, 2 * 32 : 3 * 32].sum(), vla.model.model.visual.patch_embed.proj.weight)
    assert learned[0].abs().sum() > 0
    assert batches[0][0].learning == (5, 2)  # the images of t0: of the camera that always learns, and of the other


def test_foreground_is_that_of_each_tokens_own_cell(vla, data):
    labels = [np.zeros((1, *each.shape[1:]), np.uint8).repeat(3, 1) for each in data.labels]
    labels[1][0, 1, :4, 4:8] = 2  # the back camera, one step before t0 (the oldest is first): row 0, column 1
    share = foreground_share(labels, image_groups(vla))
    assert np.flatnonzero(share[0]).tolist() == [3 * 32 + 12 + 1] and share.max() == 1


def test_what_cannot_be_trained_on_is_refused(vla, source, tmp_path):
    with pytest.raises(RecipeError, match="image_sizes: 'CAM_ROOF' is no camera of the VLA"):
        train_tower.train({**SMALL, **KEYS, "dataset": "d", "out": "o", "image_sizes": {"CAM_ROOF": [56, 56]}}, False)
    with pytest.raises(RecipeError, match=r"unknown key frames\.tolerance; did you mean frames\.tolerance_s"):
        train_tower.train(
            {**SMALL, **KEYS, "dataset": "d", "out": "o", "frames": {**KEYS["frames"], "tolerance": 0.5}}, False
        )
    far = replace(vla, spec=replace(vla.spec, frames=FramesSpec(3, 2.0)))
    with pytest.raises(InputError, match="no item with a future has all images of the 4 s before it"):
        prepare(far, source, tmp_path)
    with pytest.raises(ModelError, match="image_sizes: sets needs one image size"):
        SetForms(sizes=((2, 2),)).check(vla)
