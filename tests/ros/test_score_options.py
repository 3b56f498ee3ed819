"""The parameters that switch calibrated scores, thresholds and temporal terms on."""

import pytest
import torch

from fastdrive_node.errors import InputError, ModelError
from fastdrive_node.pruning.calibration import Calibration, CameraScale, FitRecord
from fastdrive_node.pruning.catalog import ScoreOptions
from fastdrive_node.pruning.checkpoint import save_calibration, save_pruner
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.ros.parameters import Settings, validate
from fastdrive_node.ros.planner_factory import load_planner
from fastdrive_node.types import CAMERAS


@pytest.fixture
def settings(tiny_vla, tmp_path):
    """Of an untrained pruner with a calibration."""
    torch.manual_seed(0)
    file = tmp_path / "pruner.safetensors"
    save_pruner(file, ReconPruner(tiny_vla.family, tiny_vla.config.text_config), tiny_vla.encoder_fingerprint)
    scales = {camera: CameraScale(1.0, 0.0) for camera in CAMERAS}
    save_calibration(file, Calibration(scales, FitRecord("sim", "val", 800, 0.04, 0.012)))
    return Settings(vla=str(tiny_vla.path), pruner=str(file), device="cpu")


def test_the_defaults_do_nothing_to_the_scores():
    assert Settings().score_options() == ScoreOptions()
    assert not Settings().score_options().active


def test_each_parameter_reaches_its_option():
    values = {"calibrated_scores": True, "keep_threshold": 0.3, "k_min": 8, "temporal_change": 0.4}
    options = Settings(**values, temporal_memory=0.2, temporal_max_gap_s=0.6, even_spacing=0.2).score_options()
    assert options.even_spacing == 0.2 and Settings(pooled_cells=True).score_options() == ScoreOptions(pooled=True)
    assert (options.calibrated, options.keep_threshold, options.k_min) == (True, 0.3, 8)
    assert (options.temporal.change, options.temporal.memory, options.temporal.max_gap_s) == (0.4, 0.2, 0.6)


@pytest.mark.parametrize("name", ["temporal_change", "temporal_memory"])
def test_one_weight_is_enough(name):
    options = Settings(**{name: 0.5}).score_options()
    assert options.temporal.change + options.temporal.memory == 0.5


@pytest.mark.parametrize(
    "name,value", [("keep_threshold", 1.0), ("k_min", 0), ("temporal_memory", 1.0), ("temporal_max_gap_s", 0.0)]
)
def test_values_out_of_range_are_refused(name, value):
    assert name in validate(name, value)


def test_the_planner_has_the_options_and_the_diagnostics_say_so(settings):
    on = settings.model_copy(update={"keep_threshold": 0.3, "temporal_memory": 0.5, "even_spacing": 0.25})
    loaded = load_planner(on)
    pruner = loaded.planner.pruner
    assert pruner.options == on.score_options() and pruner.calibration is not None
    identity = loaded.identity()
    assert identity["calibration"] == "sim val, expected calibration error 0.012"
    assert identity["keep_threshold"] == "0.3, at least 16 tokens"
    assert identity["even_spacing"] == "0.25"
    assert identity["temporal"] == "change 0, memory 0.5, up to 0.25 s"


def test_pooled_cells_are_named_and_refused_with_even_spacing(settings):
    assert load_planner(settings.model_copy(update={"pooled_cells": True})).identity()["pooled_cells"] == "true"
    with pytest.raises(InputError, match=r"pooled_cells, even_spacing: .*turn one of them off"):
        load_planner(settings.model_copy(update={"pooled_cells": True, "even_spacing": 0.5}))


def test_without_the_options_nothing_is_said(settings):
    names = {"calibration", "keep_threshold", "temporal", "even_spacing", "pooled_cells"}
    assert not names & set(load_planner(settings).identity())


def test_a_pruner_without_calibration_is_refused_at_start(settings, tiny_vla):
    pruner = ReconPruner(tiny_vla.family, tiny_vla.config.text_config)
    save_pruner(settings.pruner, pruner, tiny_vla.encoder_fingerprint)
    with pytest.raises(ModelError, match="no calibration"):
        load_planner(settings.model_copy(update={"calibrated_scores": True}))
