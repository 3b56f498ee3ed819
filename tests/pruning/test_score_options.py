import dataclasses
import math

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import ROOT
from fastdrive_node.errors import InputError, ModelError
from fastdrive_node.pruning.calibration import Calibration, CameraScale, FitRecord
from fastdrive_node.pruning.catalog import ScoreOptions, TemporalSettings
from fastdrive_node.pruning.pruner import PruningContext
from fastdrive_node.pruning.score_pruner import refine
from fastdrive_node.pruning.select import keep_above, select_top
from fastdrive_node.pruning.temporal import FrameContext
from fastdrive_node.types import EgoState

GRID = (2, 3)
CAMERAS = ("CAM_FRONT", "CAM_BACK")
CONTEXT = PruningContext.of(torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0)), GRID)
SCORES = torch.tensor([[3.0, 1.0, -1.0, -2.0, -3.0, 0.5], [2.0, 0.0, -0.5, -4.0, 1.5, -1.5]])
CALIBRATION = Calibration(
    {"CAM_FRONT": CameraScale(1.0, -2.0), "CAM_BACK": CameraScale(2.0, 1.0)}, FitRecord("d", "val", 1, 0.1, 0.1)
)
TEMPORAL = TemporalSettings(change=1.0, memory=0.5)


def test_the_options_that_are_on_have_the_names_of_the_node_s_parameters():
    assert ScoreOptions(pooled=True, keep_threshold=0.1).parameters == ["keep_threshold", "pooled_cells"]
    all_of_them = ScoreOptions(True, 0.1, 16, TEMPORAL, 0.2).parameters
    names = yaml.safe_load((ROOT / "config/fastdrive.yaml").read_text())["/**"]["ros__parameters"]
    assert {name for each in all_of_them for name in each.split(", ")} | {"pooled_cells"} <= set(names)
    assert not ScoreOptions().parameters


def frame(t_s=0.0, speed=5.0):
    return FrameContext(round(t_s * 1e9), CAMERAS, (), EgoState(0, speed * t_s, 0.0, 0.0, speed))


def run(options, scores=SCORES, t_s=0.0, keep=6, state=None, calibration=CALIBRATION, context=CONTEXT):
    return refine(scores, dataclasses.replace(context, frame=frame(t_s), state=state), keep, options, calibration)


def test_nothing_is_done_by_default():
    refined = run(ScoreOptions())
    assert refined.scores is SCORES and refined.keep == 6
    assert (refined.temporal, refined.state) == ("off", None)


@pytest.mark.parametrize("options", [ScoreOptions(calibrated=True), ScoreOptions(keep_threshold=0.5)])
def test_options_need_a_calibration_for_each_camera(options):
    with pytest.raises(ModelError, match="fastdrive calibrate"):
        run(options, calibration=None)
    half = dataclasses.replace(CALIBRATION, cameras={"CAM_FRONT": CameraScale(1, 0)})
    with pytest.raises(ModelError, match="CAM_BACK: was not calibrated"):
        run(options, calibration=half)


def test_calibrated_scores_are_compared_over_the_cameras():
    raw, calibrated = run(ScoreOptions(), keep=2), run(ScoreOptions(calibrated=True), keep=2)
    assert select_top(raw.scores, raw.keep).tolist() == [0, 6]
    assert select_top(calibrated.scores, calibrated.keep).tolist() == [6, 10]


def test_a_threshold_keeps_the_tokens_above_it():
    options = ScoreOptions(keep_threshold=0.5, k_min=1)
    refined = run(options, keep=12)
    above = torch.sigmoid(CALIBRATION.logits(SCORES, CAMERAS)) >= 0.5
    assert refined.keep == int(above.sum())
    assert select_top(refined.scores, refined.keep).tolist() == above.flatten().nonzero().flatten().tolist()


def test_the_pruning_ratio_is_the_most_and_k_min_the_least():
    assert run(ScoreOptions(keep_threshold=0.01, k_min=1), keep=3).keep == 3
    assert run(ScoreOptions(keep_threshold=0.99, k_min=5), keep=12).keep == 5
    assert run(ScoreOptions(keep_threshold=0.99, k_min=50), keep=4).keep == 4


def test_kept_tokens_are_in_ascending_order_with_every_option():
    options = ScoreOptions(True, 0.3, 1, TEMPORAL)
    state = run(options).state
    refined = run(options, scores=SCORES.flip(1), t_s=0.1, keep=12, state=state)
    kept = select_top(refined.scores, refined.keep)
    assert refined.temporal == "used" and (kept.diff() > 0).all()


def test_the_state_of_the_set_before_is_used_once_it_is_there():
    options = ScoreOptions(temporal=TEMPORAL)
    first = run(options)
    assert first.temporal == "new" and torch.equal(first.scores, SCORES)
    second = run(options, scores=-SCORES, t_s=0.1, state=first.state)
    assert second.temporal == "used"
    assert second.scores.abs().max() < 1e-4  # half of each, and no token is new


def test_a_stale_state_changes_nothing_and_says_why():
    options = ScoreOptions(temporal=TEMPORAL)
    state = run(options).state
    late = run(options, scores=-SCORES, t_s=3.0, state=state)
    assert late.temporal == "dropped: gap of 3.00 s"
    assert torch.equal(late.scores, -SCORES) and torch.equal(late.state.scores, -SCORES)


def test_temporal_terms_come_after_the_calibration():
    options = ScoreOptions(calibrated=True, temporal=TemporalSettings(change=0.0, memory=0.5))
    state = run(options).state
    torch.testing.assert_close(state.scores, CALIBRATION.logits(SCORES, CAMERAS))
    refined = run(options, t_s=0.1, state=state)
    torch.testing.assert_close(refined.scores, CALIBRATION.logits(SCORES, CAMERAS))


@pytest.mark.parametrize(
    "values,reason",
    [
        ({"even_spacing": 1.1}, "even_spacing"),
        ({"even_spacing": math.nan}, "even_spacing"),
        ({"even_spacing": 0.1, "pooled": True}, r"pooled_cells, even_spacing: .*turn one of them off"),
        ({"keep_threshold": 1.0}, "keep_threshold"),
        ({"keep_threshold": -0.1}, "keep_threshold"),
        ({"keep_threshold": math.nan}, "keep_threshold"),
        ({"k_min": 0}, "k_min"),
    ],
)
def test_options_out_of_range_are_refused(values, reason):
    with pytest.raises(InputError, match=reason):
        ScoreOptions(**values)


@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40),
    st.floats(0.01, 0.99),
    st.integers(1, 60),
    st.integers(1, 60),
)
def test_adaptive_k_is_bounded_and_falls_with_the_threshold(logits, threshold, k_min, k_max):
    scores = torch.tensor(logits)
    keep = keep_above(scores, threshold, k_min, k_max)
    assert keep <= k_max and keep >= min(k_min, k_max)
    assert keep >= keep_above(scores, threshold + 0.005, k_min, k_max)
    if k_min < keep < k_max:
        assert keep == int((scores >= math.log(threshold / (1 - threshold))).sum())


@pytest.mark.parametrize("arguments", [(0.0, 1, 2), (1.0, 1, 2), (math.nan, 1, 2), (0.5, 0, 2), (0.5, 1, 0)])
def test_thresholds_and_bounds_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError):
        keep_above(torch.zeros(3), *arguments)


def test_logits_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        keep_above(torch.tensor([0.0, math.nan]), 0.5, 1, 2)
