"""Fitting a calibration, and the command, on a small written dataset with a pruner that knows the road."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch.nn.functional import rms_norm

from fastdrive_node.cli import main
from fastdrive_node.errors import InputError
from fastdrive_node.families import load_vla
from fastdrive_node.pruning.calibration import Calibration, CameraScale, FitRecord
from fastdrive_node.pruning.checkpoint import load_calibration, save_pruner
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.types import CAMERAS
from fastdrive_training.data.nuscenes.keyframes import KeyframeDataset
from fastdrive_training.scoring.calibration import (
    calibration_figures,
    expected_calibration_error,
    fit_cameras,
    reliability,
    threshold_figures,
)
from fastdrive_training.vla.tiny_model import build_tiny_vla
from tests.generation import SHALLOW, encode
from tests.training.tiny_nuscenes import write_dataset

TWO = ("CAM_FRONT", "CAM_BACK")


def drawn(scales, count=4000, seed=0):
    """Scores [1, cameras, count] and coverage whose probability follows ``scales``."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(0, 2, (1, len(scales), count))
    slopes, shifts = np.array(scales).T[:, None, :, None]
    return scores, (generator.random(scores.shape) < expit(slopes * scores + shifts)).astype(np.float32)


def test_the_numbers_behind_the_data_are_found_for_each_camera():
    scores, coverage = drawn([(2.0, -1.0), (0.7, 0.5)])
    fitted = fit_cameras(scores, coverage, TWO)
    assert (fitted["CAM_FRONT"].scale, fitted["CAM_FRONT"].shift) == pytest.approx((2.0, -1.0), abs=0.15)
    assert (fitted["CAM_BACK"].scale, fitted["CAM_BACK"].shift) == pytest.approx((0.7, 0.5), abs=0.15)


def test_calibration_removes_the_error():
    scores, coverage = drawn([(2.5, -2.0), (0.4, 1.0)])
    figures = calibration_figures(scores, coverage, TWO, fit_cameras(scores, coverage, TWO))
    assert figures["ece_before"] > 0.06 > 0.03 > figures["ece_after"]
    for row in figures["cameras"].values():
        assert row["ece_after"] < 0.5 * row["ece_before"] and row["tokens"] == 4000
        assert sum(part["tokens"] for part in row["reliability_after"]) == 4000


def test_the_same_threshold_means_the_same_on_both_cameras():
    scores, coverage = drawn([(2.5, -2.0), (0.4, 1.0)], count=40_000)
    scales = fit_cameras(scores, coverage, TWO)
    record = FitRecord("d", "val", 1, 0.1, 0.0)
    fractions = []
    for index, camera in enumerate(TWO):
        probability = expit(scales[camera].scale * scores[0, index] + scales[camera].shift)
        near = np.abs(probability - 0.6) < 0.05
        fractions.append(coverage[0, index][near].mean())
    assert fractions[0] == pytest.approx(0.6, abs=0.05) and fractions[1] == pytest.approx(0.6, abs=0.05)
    rows = threshold_figures(scores, coverage, TWO, Calibration(scales, record))
    counts = [row["tokens"]["mean"] for row in rows.values()]
    recalls = [row["recall"] for row in rows.values()]
    assert counts == sorted(counts, reverse=True) and recalls == sorted(recalls, reverse=True)
    assert rows["0.9"]["precision"] > 0.9


def test_a_camera_with_few_foreground_tokens_takes_the_fit_of_all():
    scores, coverage = drawn([(2.0, -1.0), (2.0, -1.0)])
    coverage[0, 1, 10:] = 0
    coverage[0, 1, :10] = 1
    fitted = fit_cameras(scores, coverage, TWO)
    assert fitted["CAM_BACK"] != fitted["CAM_FRONT"]
    known = fit_cameras(scores.reshape(1, 1, -1), coverage.reshape(1, 1, -1), ("ALL",))
    assert fitted["CAM_BACK"] == known["ALL"]


def test_tokens_in_doubt_take_no_part():
    scores, coverage = drawn([(2.0, -1.0), (0.7, 0.5)])
    expected = fit_cameras(scores[..., :3000], coverage[..., :3000], TWO)
    coverage[..., 3000:] = np.nan
    fitted = fit_cameras(scores, coverage, TWO)
    assert fitted == expected
    assert calibration_figures(scores, coverage, TWO, fitted)["cameras"]["CAM_BACK"]["tokens"] == 3000


def test_scores_that_tell_kinds_apart_stay_finite():
    scores = np.concatenate([np.full(500, -3.0), np.full(500, 3.0)])[None, None]
    fitted = fit_cameras(scores, (scores > 0).astype(np.float32), ("CAM_FRONT",))["CAM_FRONT"]
    assert 0 < fitted.scale < 100


def test_scores_the_wrong_way_round_are_refused():
    scores, coverage = drawn([(2.0, 0.0), (2.0, 0.0)])
    scores[:, 1] *= -1
    with pytest.raises(InputError, match="CAM_BACK: background scores higher"):
        fit_cameras(scores, coverage, TWO)


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_data_of_one_kind_are_refused(value):
    with pytest.raises(InputError, match="fewer than 50"):
        fit_cameras(np.zeros((1, 1, 500)), np.full((1, 1, 500), value), ("CAM_FRONT",))


def test_the_error_is_the_weighted_distance_of_the_bins():
    probability = np.array([0.1, 0.1, 0.9, 0.9])
    foreground = np.array([False, True, True, True])
    assert expected_calibration_error(probability, foreground) == pytest.approx((2 * 0.4 + 2 * 0.1) / 4)
    assert [row["tokens"] for row in reliability(probability, foreground)] == [2, 2]
    assert reliability(np.array([1.0]), np.array([True]))[0]["foreground_share"] == 1.0


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "d", scenes=2, keyframes=8)


@pytest.fixture(scope="module")
def vla_dir(tmp_path_factory, root):
    """An untrained VLA whose pruner's last layer is fitted to the masks by least squares."""
    path = build_tiny_vla(tmp_path_factory.mktemp("vla") / "tiny", seed=0, size=SHALLOW)
    vla = load_vla(path)
    torch.manual_seed(0)
    pruner = ReconPruner(vla.family, vla.config.text_config).requires_grad_(False).eval()
    features, truth = [], []
    with torch.inference_mode():
        for keyframe in KeyframeDataset(root, "train"):
            tokens = encode(vla, [keyframe.load_image(camera) for camera in CAMERAS])
            hidden = torch.cat([pruner.query.expand(6, 1, -1), tokens], dim=1)
            hidden = rms_norm(pruner.layer(hidden, vla.grid), hidden.shape[-1:], eps=1e-6)
            features.append((hidden[:, 1:] * hidden[:, :1]).flatten(0, 1))
            truth.append(torch.from_numpy(keyframe.coverage(CAMERAS, vla.grid)).flatten())
    design = torch.cat(features)
    design = torch.cat([design, torch.ones(len(design), 1)], dim=1)
    wanted = 4 * (torch.cat(truth) >= 0.5).float()[:, None] - 1
    weights = torch.linalg.lstsq(
        design.double().T @ design.double() + 0.1 * torch.eye(129), design.double().T @ wanted.double()
    )
    pruner.scorer.weight.copy_(weights.solution[:-1].T)
    pruner.scorer.bias.copy_(weights.solution[-1])
    save_pruner(path / "reconpruner.safetensors", pruner, vla.encoder_fingerprint)
    return path


def run(tmp_path, *arguments):
    assert main([*map(str, arguments), "--json", str(tmp_path / "figures.json")]) == 0
    return json.loads((tmp_path / "figures.json").read_text())


def test_the_command_writes_the_calibration_and_its_figures(tmp_path, root, vla_dir):
    out = tmp_path / "calibrated.safetensors"
    figures = run(tmp_path, "calibrate", root, "--vla", vla_dir, "--split", "val", "--out", out)
    assert figures["keyframes"] == 8 and figures["split"] == "val" and figures["pruner"] == str(out)
    assert figures["ece_after"] < figures["ece_before"]
    assert set(figures["cameras"]) == set(CAMERAS)
    assert {"scale", "shift", "ece_before", "ece_after", "reliability_after"} <= set(figures["cameras"]["CAM_BACK"])
    calibration = load_calibration(out)
    assert calibration.fit == FitRecord("d", "val", 8, figures["ece_before"], figures["ece_after"])
    scale = figures["cameras"]["CAM_BACK"]
    assert calibration.cameras["CAM_BACK"] == CameraScale(scale["scale"], scale["shift"])
    assert load_calibration(vla_dir / "reconpruner.safetensors") is None
    scored = run(tmp_path, "score", root, "--vla", vla_dir, "--pruner", out, "--split", "val", "--calibrated")
    assert scored["calibration"]["ece_after"] == pytest.approx(figures["ece_after"], abs=1e-6)
    assert scored["calibration"]["thresholds"] == figures["thresholds"]
    assert set(scored["calibration"]["ranking"]["recall"]) == {"0.75", "0.5", "0.25"}


def test_without_out_the_pruner_file_takes_it(tmp_path, root, vla_dir):
    file = tmp_path / "pruner.safetensors"
    file.write_bytes((vla_dir / "reconpruner.safetensors").read_bytes())
    run(tmp_path, "calibrate", root, "--vla", vla_dir, "--split", "val", "--pruner", file)
    assert load_calibration(file).fit.split == "val"


def test_splits_are_not_mixed_and_masks_are_needed(tmp_path, root, vla_dir, capsys):
    assert main(["calibrate", str(root), "--vla", str(vla_dir)]) == 1
    assert "holds the splits train, val" in capsys.readouterr().err
    bare = write_dataset(tmp_path / "bare", scenes=1, keyframes=2, masks=False)
    assert main(["calibrate", str(bare), "--vla", str(vla_dir)]) == 1
    assert "no masks" in capsys.readouterr().err
    assert main(["calibrate", str(root), "--vla", str(vla_dir), "--split", "val", "--limit", "0"]) == 2
    assert "--limit 0" in capsys.readouterr().err


def test_scoring_by_a_calibration_that_is_not_there_is_refused(root, vla_dir, capsys):
    assert main(["score", str(root), "--vla", str(vla_dir), "--split", "val", "--calibrated"]) == 1
    assert "no calibration; fit one with `fastdrive calibrate`" in capsys.readouterr().err


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["calibrate", "--help"])
    assert caught.value.code == 0 and "fastdrive calibrate data/sim" in capsys.readouterr().out
