"""ReconPruner's variants as rows of ``fastdrive evaluate``, and what the sets before leave to the one with a memory."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch

from fastdrive_node.families import load_vla
from fastdrive_node.pruning.calibration import Calibration, CameraScale, FitRecord
from fastdrive_node.pruning.catalog import FILES, PRUNERS
from fastdrive_node.pruning.checkpoint import save_calibration, save_pruner
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.types import CAMERAS
from fastdrive_training.commands.evaluate import all_pruners
from fastdrive_training.data.nuscenes.keyframes import KeyframeDataset
from fastdrive_training.data.token_cache import FeatureStore
from fastdrive_training.evaluation import OpenLoopSettings, evaluate, segments
from fastdrive_training.evaluation.answers import REACH, EarlierSets
from tests.generation import lite_pruner
from tests.training.tiny_nuscenes import write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return KeyframeDataset(write_dataset(tmp_path_factory.mktemp("data") / "d", scenes=2, keyframes=8))


@pytest.fixture
def calibrated(tmp_path, tiny_vla):
    """An untrained pruner whose threshold some tokens pass."""
    torch.manual_seed(9)
    file = tmp_path / "pruner.safetensors"
    save_pruner(file, ReconPruner(tiny_vla.family, tiny_vla.config.text_config), tiny_vla.encoder_fingerprint)
    scales = {camera: CameraScale(50.0, -3.0) for camera in CAMERAS}
    save_calibration(file, Calibration(scales, FitRecord("toy", "val", 1, 0.1, 0.1)))
    return file


class Listener:
    """A pruner with a memory that keeps the contexts that it is given."""

    remembers = True

    def state_after(self, contexts):
        self.contexts = list(contexts)
        return "state"


def test_the_sets_before_are_those_of_the_scene_in_time_order(dataset, tiny_vla):
    features = FeatureStore(dataset, tiny_vla, None, attention=False)
    earlier, pruner = EarlierSets(dataset, tiny_vla, features), Listener()
    for index, expected in ((0, 0), (2, 2), (7, REACH), (8, 0), (9, 1)):
        assert earlier.state(pruner, index) == "state"
        stamps = [context.frame.t0_ns for context in pruner.contexts]
        assert stamps == [dataset[place].stamp_ns for place in range(index - expected, index)]
    assert torch.equal(pruner.contexts[0].tokens, features.load([8])[0].tokens)
    assert earlier.frame(9).cameras == tuple(tiny_vla.spec.cameras)


def test_a_memory_that_time_has_ended_chooses_as_the_pruner_alone(tmp_path, dataset, tiny_vla, calibrated, monkeypatch):
    monkeypatch.setattr(segments, "measure", lambda _, rows, *__, **___: [{} for _ in rows])
    pruners = ("reconpruner", *(f"reconpruner-{name}" for name in ("calibrated", "adaptive", "temporal", "pooled")))
    settings = OpenLoopSettings(pruners=pruners, drops=(0.25,), pruner_file=calibrated, out=tmp_path / "run")
    rows = {row["pruner"]: row for row in evaluate(dataset, tiny_vla, settings, progress=False)["rows"]}
    lines = pq.read_table(tmp_path / "run" / "samples.parquet").to_pylist()
    kept = {name: [line["kept"] for line in lines if line["pruner"] == name] for name in pruners}
    assert kept["reconpruner-temporal"] == kept["reconpruner"]  # half a second between keyframes
    assert rows["reconpruner"]["tokens"] == rows["reconpruner-calibrated"]["tokens"] == 144
    assert rows["reconpruner-pooled"]["tokens"] == 144 and kept["reconpruner-pooled"] != kept["reconpruner"]
    counts = [len(each) for each in kept["reconpruner-adaptive"]]
    assert len(set(counts)) > 1 and max(counts) <= 144
    assert rows["reconpruner-adaptive"]["tokens"] == pytest.approx(sum(counts) / len(counts))


def test_without_names_only_what_the_pruner_file_allows_is_compared(dataset, tiny_vla, calibrated, tmp_path):
    plain = tmp_path / "plain.safetensors"
    save_pruner(plain, ReconPruner(tiny_vla.family, tiny_vla.config.text_config), tiny_vla.encoder_fingerprint)
    assert all_pruners(dataset, tiny_vla, plain) == PRUNERS
    with_lite = shutil.copytree(tiny_vla.path, tmp_path / "vla")
    save_pruner(with_lite / FILES["reconpruner-lite"], lite_pruner(tiny_vla), tiny_vla.encoder_fingerprint)
    assert all_pruners(dataset, load_vla(with_lite), plain) == (*PRUNERS, "reconpruner-lite")
    assert all_pruners(dataset, tiny_vla, calibrated) == (*PRUNERS, "reconpruner-calibrated", "reconpruner-adaptive")


def test_matryoshka_is_compared_where_every_ratio_keeps_a_token_of_each_image(dataset, tiny_vla, tmp_path):
    plain = tmp_path / "plain.safetensors"
    save_pruner(plain, ReconPruner(tiny_vla.family, tiny_vla.config.text_config), tiny_vla.encoder_fingerprint)
    small = replace(tiny_vla, spec=replace(tiny_vla.spec, image_size=(2 * 28, 2 * 28)))
    assert small.tokens == 24
    assert set(all_pruners(dataset, small, plain, (0.75,))) == set(PRUNERS)
    assert set(PRUNERS) - set(all_pruners(dataset, small, plain, (0.75, 0.8))) == {"matryoshka", "tokenpacker"}


def test_tokenpacker_is_compared_where_every_ratio_keeps_as_many_tokens_as_it_gives(dataset, tiny_vla, tmp_path):
    plain = tmp_path / "plain.safetensors"
    save_pruner(plain, ReconPruner(tiny_vla.family, tiny_vla.config.text_config), tiny_vla.encoder_fingerprint)
    odd = replace(tiny_vla, spec=replace(tiny_vla.spec, image_size=(5 * 28, 15 * 28)))
    assert odd.grid == (5, 15)  # 3 x 8 cells of 75 tokens: 1 - 0.68 keeps just as many
    for drops, compared in (((), True), ((0.25, 0.68), True), ((0.69,), False), ((1.5,), False)):
        assert ("tokenpacker" in all_pruners(dataset, odd, plain, drops)) is compared
