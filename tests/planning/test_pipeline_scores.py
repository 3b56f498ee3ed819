"""The pipeline with calibrated scores, a threshold and temporal terms."""

import dataclasses

import numpy as np
import pytest
import torch

from fastdrive_node.errors import AnswerError, InputError, ModelError
from fastdrive_node.planning.answer_format import format_answer
from fastdrive_node.planning.loading import open_pipeline
from fastdrive_node.planning.pipeline import Pipeline
from fastdrive_node.pruning.calibration import Calibration, CameraScale, FitRecord
from fastdrive_node.pruning.catalog import ScoreOptions, TemporalSettings
from fastdrive_node.pruning.checkpoint import save_calibration, save_pruner
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.pruning.registry import make_pruner
from fastdrive_node.pruning.score_pruner import RefinedPruner, ScorePruner
from fastdrive_node.types import CAMERAS, CameraFrame, EgoHistory, EgoState, FrameSet
from tests.generation import answer_with

FIT = FitRecord("sim", "val", 8, 0.1, 0.05)
TEMPORAL = ScoreOptions(temporal=TemporalSettings())
SPEED = 5.0


def calibration(scale=1.0, shift=0.0, cameras=CAMERAS):
    return Calibration({camera: CameraScale(scale, shift) for camera in cameras}, FIT)


def frame_set(t_s, seed=0, missing=()):
    """Noise that depends on the camera and the seed."""
    t0_ns = round((100 + t_s) * 1e9)

    def load(camera):
        return np.random.default_rng((seed, CAMERAS.index(camera))).integers(0, 256, (112, 224, 3)).astype(np.uint8)

    frames = tuple(CameraFrame(camera, t0_ns, t0_ns, lambda camera=camera: load(camera)) for camera in CAMERAS)
    return FrameSet(frames, t0_ns, missing)


def history(t_s, **changes):
    return EgoHistory((dataclasses.replace(EgoState(0, SPEED * t_s, 0.0, 0.0, SPEED), **changes),), 0.5)


@pytest.fixture(scope="module")
def pruner(tiny_vla):
    torch.manual_seed(0)
    return ScorePruner(ReconPruner(tiny_vla.family, tiny_vla.config.text_config).requires_grad_(False).eval())


def refined(pruner, options, calibration=None):
    return RefinedPruner(pruner, options, calibration, CAMERAS)


@pytest.fixture(autouse=True)
def answers(monkeypatch, tiny_vla):
    """What the language model says; a drivable plan unless a test puts another text first."""
    good = format_answer(np.array([[2.5 * k, 0.0] for k in range(1, 7)]), tiny_vla.spec.answer)
    said = []
    answer_with(monkeypatch, lambda: said.pop(0) if said else good)
    return said


def plan(pipeline, t_s, seed=0, missing=(), **changes):
    return pipeline.plan(frame_set(t_s, seed, missing), history(t_s, **changes)).kept


def test_everything_is_off_by_default(tiny_vla, pruner):
    pipeline = Pipeline(tiny_vla, pruner, drop=0.5)
    first, second = plan(pipeline, 0.0, seed=1), plan(pipeline, 0.1)
    assert first.temporal == second.temporal == "off"
    assert np.array_equal(second.indices, plan(Pipeline(tiny_vla, pruner, drop=0.5), 0.1).indices)


def test_the_set_before_counts(tiny_vla, pruner):
    pipeline = Pipeline(tiny_vla, refined(pruner, TEMPORAL), 0.5)
    alone = plan(Pipeline(tiny_vla, pruner, 0.5), 0.1)
    kept = [plan(pipeline, 0.0, seed=1), plan(pipeline, 0.1)]
    assert [each.temporal for each in kept] == ["new", "used"]
    assert not np.array_equal(kept[1].scores, alone.scores)
    assert (np.diff(kept[1].indices) > 0).all() and kept[1].kept == 96
    assert kept[1].scores[np.ravel(kept[1].masks())].min() >= kept[1].scores[~np.ravel(kept[1].masks())].max()


def test_the_same_sets_give_the_same_choice_again(tiny_vla, pruner):
    runs = []
    for _ in range(2):
        pipeline = Pipeline(tiny_vla, refined(pruner, TEMPORAL), 0.5)
        runs.append([plan(pipeline, 0.1 * step, seed=step).indices.tolist() for step in range(3)])
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    "t_s,changes,missing,reason",
    [
        (1.0, {}, (), "gap of 1.00 s"),
        (-5.0, {}, (), "time went back"),
        (0.1, {"x_m": 90.0}, (), "pose jumped"),
        (0.1, {}, ("CAM_BACK",), "another set of cameras"),
    ],
)
def test_a_stale_state_is_dropped_with_its_reason(tiny_vla, pruner, t_s, changes, missing, reason):
    pipeline = Pipeline(tiny_vla, refined(pruner, TEMPORAL), 0.5)
    plan(pipeline, 0.0, seed=1)
    kept = plan(pipeline, t_s, missing=missing, **changes)
    assert kept.temporal.startswith(f"dropped: {reason}")
    assert np.array_equal(kept.indices, plan(Pipeline(tiny_vla, pruner, 0.5), t_s, missing=missing).indices)


def test_a_refused_answer_leaves_no_state(tiny_vla, pruner, answers):
    pipeline = Pipeline(tiny_vla, refined(pruner, TEMPORAL), 0.5)
    plan(pipeline, 0.0, seed=1)
    answers.append("no plan")
    with pytest.raises(AnswerError):
        plan(pipeline, 0.1, seed=2)
    assert plan(pipeline, 0.2).temporal == "new"


def test_an_image_that_cannot_be_read_leaves_no_state(tiny_vla, pruner):
    pipeline = Pipeline(tiny_vla, refined(pruner, TEMPORAL), 0.5)
    plan(pipeline, 0.0, seed=1)
    whole = frame_set(0.1)
    broken = dataclasses.replace(whole.frames[0], load=lambda: None)
    with pytest.raises(InputError, match="CAM_FRONT"):
        pipeline.plan(dataclasses.replace(whole, frames=(broken, *whole.frames[1:])), history(0.1))
    with pytest.raises(InputError, match="in this order"):
        pipeline.plan(dataclasses.replace(whole, frames=whole.frames[:2]), history(0.1))
    assert plan(pipeline, 0.2).temporal == "new"


def test_warming_up_leaves_no_state(tiny_vla, pruner):
    pipeline = Pipeline(tiny_vla, refined(pruner, TEMPORAL), 0.5)
    pipeline.warm_up()
    assert plan(pipeline, 0.0).temporal == "new"


def test_two_pipelines_share_nothing(tiny_vla, pruner):
    first, second = (Pipeline(tiny_vla, refined(pruner, TEMPORAL), 0.5) for _ in range(2))
    plan(first, 0.0)
    assert plan(second, 0.1).temporal == "new"


def test_evenly_spaced_tokens_are_kept_whatever_their_scores(tiny_vla, pruner):
    kept = plan(Pipeline(tiny_vla, refined(pruner, ScoreOptions(even_spacing=0.5)), 0.5), 0.0)
    alone = plan(Pipeline(tiny_vla, pruner, 0.5), 0.0)
    every = plan(Pipeline(tiny_vla, refined(pruner, ScoreOptions(even_spacing=1.0)), 0.75), 0.0)
    assert set(every.indices) <= set(kept.indices) and kept.kept == 96 == 2 * every.kept
    assert not set(every.indices) <= set(alone.indices)


@pytest.mark.parametrize("drop", [0.5, 0.9])
def test_pooled_cells_of_a_missing_camera_are_left_out(tiny_vla, pruner, drop):
    pipeline = Pipeline(tiny_vla, refined(pruner, ScoreOptions(pooled=True)), drop)
    every, fewer = plan(pipeline, 0.0), plan(pipeline, 0.1, missing=CAMERAS[:1])
    assert every.kept == {0.5: 96, 0.9: 19}[drop]
    assert fewer.indices.tolist() == [place for place in every.indices if place >= 32]


def test_packed_cells_of_a_missing_camera_are_left_out(tiny_vla, monkeypatch):
    pruner, rows = make_pruner("tokenpacker", tiny_vla), []
    tokens = pruner.tokens
    monkeypatch.setattr(pruner, "tokens", lambda *given: rows.append(tokens(*given).rows) or tokens(*given))
    pipeline = Pipeline(tiny_vla, pruner, 0.5)
    every, fewer = plan(pipeline, 0.0), plan(pipeline, 0.1, missing=CAMERAS[:1])
    assert (every.kept, fewer.kept) == (48, 40)
    assert fewer.indices.tolist() == [place for place in every.indices if place >= 32]
    torch.testing.assert_close(rows[1], rows[0][8:])


def test_a_threshold_chooses_how_many(tiny_vla, pruner):
    raw = plan(Pipeline(tiny_vla, pruner, 0.25), 0.0).scores
    middle = float(np.median(raw))
    options = ScoreOptions(keep_threshold=0.5, k_min=1)
    fitted = calibration(scale=3.0, shift=-3.0 * middle)
    kept = plan(Pipeline(tiny_vla, refined(pruner, options, fitted), 0.25), 0.0)
    assert kept.kept == pytest.approx(96, abs=1)
    assert sorted(kept.indices) == kept.indices.tolist() and kept.scores[kept.indices].min() >= 0


@pytest.mark.parametrize("shift,keep", [(50.0, 48), (-50.0, 20)])
def test_a_threshold_stays_within_its_bounds(tiny_vla, pruner, shift, keep):
    options = ScoreOptions(keep_threshold=0.5, k_min=20)
    kept = plan(Pipeline(tiny_vla, refined(pruner, options, calibration(shift=shift)), 0.75), 0.0)
    assert kept.kept == keep


def test_the_bound_follows_the_ratio_between_plans(tiny_vla, pruner):
    options = ScoreOptions(keep_threshold=0.5)
    pipeline = Pipeline(tiny_vla, refined(pruner, options, calibration(shift=50.0)), 0.75)
    assert plan(pipeline, 0.0).kept == 48
    pipeline.drop = 0.5
    assert plan(pipeline, 0.1).kept == 96


@pytest.mark.parametrize("options", [ScoreOptions(calibrated=True), ScoreOptions(keep_threshold=0.5)])
def test_a_missing_calibration_is_found_at_once(tiny_vla, pruner, options):
    with pytest.raises(ModelError, match="no calibration; fit one with `fastdrive calibrate`"):
        refined(pruner, options)
    with pytest.raises(ModelError, match="CAM_BACK: was not calibrated"):
        refined(pruner, options, calibration(cameras=CAMERAS[:3]))


def test_pruners_without_scores_are_refused_with_the_options(tiny_dir):
    with pytest.raises(ModelError, match=r"^temporal_change, temporal_memory: are for .*the pruner is 'random'"):
        open_pipeline(tiny_dir, "random", scores=TEMPORAL)


def test_the_calibration_comes_from_the_pruner_file(tiny_vla, tiny_dir, pruner, tmp_path):
    file = tmp_path / "pruner.safetensors"
    save_pruner(file, pruner.module, tiny_vla.encoder_fingerprint)
    options = ScoreOptions(calibrated=True)
    with pytest.raises(ModelError, match="no calibration"):
        open_pipeline(tiny_dir, file, scores=options)
    save_calibration(file, calibration(shift=0.25))
    assert open_pipeline(tiny_dir, file, scores=options).pruner.calibration == calibration(shift=0.25)
    assert isinstance(open_pipeline(tiny_dir, file).pruner, ScorePruner)


def test_options_without_a_pruner_are_refused(tiny_dir):
    with pytest.raises(ModelError, match="the pruner is 'none'"):
        open_pipeline(tiny_dir, scores=TEMPORAL)
    open_pipeline(tiny_dir, scores=ScoreOptions())
