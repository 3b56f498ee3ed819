"""``camera_floor``: tokens of every camera at a fixed ratio and with a deadline, and what is refused at the start."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from fastdrive_node.errors import InputError, ModelError
from fastdrive_node.families import VisualTokens
from fastdrive_node.planning.camera_floor import CameraFloor
from fastdrive_node.planning.deadline import LatencyModel
from fastdrive_node.planning.loading import open_pipeline
from fastdrive_node.planning.pipeline import Pipeline
from fastdrive_node.pruning.calibration import Calibration, CameraScale, FitRecord
from fastdrive_node.pruning.catalog import ScoreOptions, TemporalSettings
from fastdrive_node.pruning.registry import make_pruner
from fastdrive_node.pruning.score_pruner import RefinedPruner
from fastdrive_node.pruning.temporal import FrameContext
from fastdrive_node.ros.parameters import Settings
from fastdrive_node.ros.planner_factory import load_planner
from fastdrive_node.types import CAMERAS, EgoState, KeptTokens, Plan


def by_camera(plan: Plan) -> list[int]:
    assert isinstance(plan.kept, KeptTokens)
    return [int(mask.sum()) for mask in plan.kept.masks()]


def favors(monkeypatch, pruner, camera: int) -> None:
    """Scores by which the tokens of one camera are the best, and others differ."""

    def score(self, context):
        scores = type(pruner)._score(self, pruner.module, context).float()
        scores[camera] += 100.0
        return scores

    monkeypatch.setattr(type(pruner), "score", score)


@pytest.fixture
def front_only(pruner, monkeypatch):
    favors(monkeypatch, pruner, 0)
    return pruner


def test_every_camera_keeps_its_floor_at_a_fixed_ratio(tiny_vla, front_only, frame_set, ego_history, good_plan):
    alone = Pipeline(tiny_vla, front_only, drop=0.8).plan(frame_set, ego_history)
    floored = Pipeline(tiny_vla, front_only, drop=0.8, camera_floor=5).plan(frame_set, ego_history)
    assert by_camera(alone)[0] == 32 and min(by_camera(alone)) < 5
    assert by_camera(floored)[0] == 13 and by_camera(floored)[1:] == [5] * 5


def test_a_floor_of_none_changes_nothing(tiny_vla, pruner, frame_set, ego_history, good_plan):
    plan = Pipeline(tiny_vla, pruner, drop=0.8).plan(frame_set, ego_history)
    other = Pipeline(tiny_vla, pruner, drop=0.8, camera_floor=0).plan(frame_set, ego_history)
    assert np.array_equal(plan.kept.indices, other.kept.indices) and plan.text == other.text


def test_a_deadline_keeps_the_floors(tiny_vla, front_only, frame_set, ego_history, good_plan):
    pipeline = Pipeline(tiny_vla, front_only, drop=0.5, camera_floor=3)
    pipeline.set_deadline(1e6, 18)
    pipeline._deadline.model = LatencyModel(0.0, 3e4)
    pipeline._deadline._relative.clear()
    pipeline._deadline._encoder_load = lambda: 1.0
    plan = pipeline.plan(frame_set, ego_history)
    assert plan.deadline.reason == "deadline" and plan.kept.kept == plan.deadline.keep < 32
    assert by_camera(plan) == [plan.kept.kept - 15, 3, 3, 3, 3, 3]


def test_a_missing_camera_takes_no_tokens_from_the_others(tiny_vla, front_only, frame_set, ego_history, good_plan):
    degraded = dataclasses.replace(frame_set, missing=(CAMERAS[3],))
    plan = Pipeline(tiny_vla, front_only, drop=0.8, camera_floor=6).plan(degraded, ego_history)
    assert by_camera(plan) == [14, 6, 6, 0, 6, 6]


@pytest.mark.parametrize(
    "options",
    [ScoreOptions(even_spacing=0.2), ScoreOptions(temporal=TemporalSettings())],
    ids=["even_spacing", "temporal"],
)
def test_options_of_the_scores_keep_the_floors(
    tiny_vla, front_only, frame_set, ego_history, good_plan, options: ScoreOptions
):
    refined = RefinedPruner(front_only, options, None, CAMERAS)
    plan = Pipeline(tiny_vla, refined, drop=0.8, camera_floor=5).plan(frame_set, ego_history)
    assert sum(by_camera(plan)) == 38 and min(by_camera(plan)) >= 5


def test_a_ratio_that_keeps_fewer_than_the_floors_is_refused(tiny_vla, pruner):
    told = r"drop: 0.9 keeps 19 of the 192 tokens of a frame set, camera_floor keeps 24; give a smaller drop, or"
    with pytest.raises(InputError, match=told):
        Pipeline(tiny_vla, pruner, drop=0.9, camera_floor=4)
    pipeline = Pipeline(tiny_vla, pruner, drop=0.8, camera_floor=4)
    with pytest.raises(InputError, match=told):
        pipeline.check_drop(0.9)  # while it runs
    assert Pipeline(tiny_vla, pruner, drop=0.9, camera_floor=3).check_drop(0.9) == 19


def test_a_k_min_below_the_floors_is_refused(tiny_vla, pruner):
    pipeline = Pipeline(tiny_vla, pruner, drop=0.5, camera_floor=3)
    with pytest.raises(InputError, match=r"k_min: 17 with deadline_ms 100, but camera_floor 3 keeps 18 tokens of 6"):
        pipeline.set_deadline(100.0, 17)
    scales = {camera: CameraScale(1.0, 0.0) for camera in CAMERAS}
    calibration = Calibration(scales, FitRecord("sim", "val", 800, 0.04, 0.012))
    threshold = RefinedPruner(pruner, ScoreOptions(keep_threshold=0.5, k_min=17), calibration, CAMERAS)
    with pytest.raises(InputError, match="k_min: 17 with keep_threshold, but camera_floor 3 keeps 18"):
        Pipeline(tiny_vla, threshold, drop=0.5, camera_floor=3)


def test_more_tokens_than_a_camera_has_are_refused(tiny_vla, pruner):
    with pytest.raises(InputError, match="camera_floor: 33, but CAM_FRONT has 32 tokens"):
        Pipeline(tiny_vla, pruner, drop=0.0, camera_floor=33)


@pytest.mark.parametrize("name", ["random", "uniform", "divprune", "fastv", "vispruner", "matryoshka"])
def test_pruners_that_do_not_take_the_best_by_score_are_refused(tiny_vla, name):
    with pytest.raises(ModelError, match=f"camera_floor: 2, but pruner {name} does not take the best tokens by score"):
        open_pipeline(tiny_vla.path, name, 0.5, camera_floor=2)


def test_pooled_cells_are_refused_by_their_name(tiny_vla, pruner):
    pooled = RefinedPruner(pruner, ScoreOptions(pooled=True), None, CAMERAS)
    with pytest.raises(ModelError, match="camera_floor: 2, but pruner reconpruner with pooled_cells does not"):
        Pipeline(tiny_vla, pooled, drop=0.5, camera_floor=2)


def test_a_pruner_that_ranks_by_attention_keeps_the_floors(tiny_vla, frame_set, ego_history, good_plan):
    pruner = make_pruner("prumerge", tiny_vla)
    plan = Pipeline(tiny_vla, pruner, drop=0.8, camera_floor=6).plan(frame_set, ego_history)
    assert sum(by_camera(plan)) == 38 and min(by_camera(plan)) >= 6


def test_the_images_of_a_camera_have_one_floor_together(tiny_vla):
    names = (CAMERAS[0], CAMERAS[1], CAMERAS[0])
    visual = VisualTokens.from_raster(torch.zeros(3, 2, 4), (1, 2))
    floors = CameraFloor(tiny_vla, 1).floors(visual, FrameContext(0, names, (CAMERAS[1],), EgoState(0, 0, 0, 0, 0)))
    assert floors is not None and floors.cameras.tolist() == [0, 0, -1, -1, 0, 0]


def test_the_parameter_reaches_the_planner_and_the_diagnostics_say_so():
    settings = Settings(vla="tiny", device="cpu", warm_up=False, camera_floor=4, deadline_ms=1e4, k_min=24)
    loaded = load_planner(settings)
    assert loaded.planner.camera_floor.least == 4 and loaded.identity()["camera_floor"] == "4"
    with pytest.raises(InputError, match="k_min: 23 with deadline_ms 10000"):
        load_planner(settings.model_copy(update={"k_min": 23}))
    assert "camera_floor" not in load_planner(Settings(vla="tiny", device="cpu", warm_up=False)).identity()
