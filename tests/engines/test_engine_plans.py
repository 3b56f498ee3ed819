"""Plans of the ONNX backend are those of torch: pipeline, node and options."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="onnx is not installed: pip install -e .[export]")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e .[export]")

from fastdrive_export.build import GraphOptions, build_onnx
from fastdrive_node.engines.vision_engine import EngineChoice, EngineVision
from fastdrive_node.errors import InputError, ModelError
from fastdrive_node.families import VisualTokens
from fastdrive_node.planning.loading import open_pipeline
from fastdrive_node.planning.pipeline import Pipeline
from fastdrive_node.pruning.catalog import ScoreOptions
from fastdrive_node.pruning.pruner import PruningContext
from fastdrive_node.pruning.score_pruner import ScorePruner
from fastdrive_node.pruning.select import CameraFloors
from fastdrive_node.ros.parameters import Settings
from fastdrive_node.ros.planner_factory import load_planner
from fastdrive_node.types import CAMERAS, CameraFrame, Command, FrameSet
from tests.generation import read_answers_as


@pytest.fixture(autouse=True)
def answers_are_read_as_they_are(monkeypatch):
    """An untrained model writes no plans; what counts here is that both backends make it write the same."""
    read_answers_as(monkeypatch)


def frame_set(seed: int) -> FrameSet:
    def image(camera: int) -> np.ndarray:
        return np.random.default_rng([seed, camera]).integers(0, 256, (90, 160, 3), dtype=np.uint8)

    frames = tuple(CameraFrame(name, 0, 0, lambda i=i: image(i)) for i, name in enumerate(CAMERAS))
    return FrameSet(frames, t0_ns=seed)


def pipelines(toy, file, drop) -> list[Pipeline]:
    choices = (None, EngineChoice("onnxruntime", file))
    return [open_pipeline(toy.vla.path, toy.pruner_file, drop, engine=choice) for choice in choices]


def plans(pipeline, ego_history, sets=4):
    return [pipeline.plan(frame_set(seed), ego_history, Command.LEFT) for seed in range(sets)]


@pytest.mark.parametrize("windows", ["ragged", "full"])
def test_plans_equal_those_of_torch_at_every_budget(toys, tmp_path, ego_history, windows):
    toy = toys[windows]
    torch_side, engine_side = pipelines(toy, build_onnx(toy.vla.path, toy.pruner_file, tmp_path)[0], 0.0)
    texts = set()
    for drop in (0.0, 0.25, 0.75):  # K = N, and K < N of the same engine
        torch_side.drop = engine_side.drop = drop
        for ours, theirs in zip(plans(engine_side, ego_history), plans(torch_side, ego_history), strict=True):
            assert ours.text == theirs.text and ours.kept.grid == theirs.kept.grid
            assert np.array_equal(ours.kept.indices, theirs.kept.indices)
            np.testing.assert_allclose(ours.kept.scores, theirs.kept.scores, atol=2e-5)
            texts.add(theirs.text)
    assert len(texts) > 6, "the answers hardly depend on the pictures: the test compares nothing"


def test_an_engine_of_fewer_tokens_gives_the_same_plans_up_to_its_own(toy, tmp_path, ego_history):
    file, _ = build_onnx(toy.vla.path, toy.pruner_file, tmp_path, GraphOptions(max_keep=90))
    torch_side, engine_side = pipelines(toy, file, 0.5)
    for drop in (0.5, 0.75):
        torch_side.drop = engine_side.drop = drop
        pairs = zip(plans(engine_side, ego_history), plans(torch_side, ego_history), strict=True)
        assert all(ours.text == theirs.text for ours, theirs in pairs)
    with pytest.raises(InputError, match=r"drop: 0\.25 keeps 135 of 180 tokens, the engine gives 90; .*--max-keep"):
        engine_side.drop = 0.25
    assert engine_side.drop == 0.75
    assert open_pipeline(toy.vla.path, toy.pruner_file, engine=EngineChoice("onnxruntime", file)).drop == 0.5


def test_the_default_ratio_is_one_that_the_engine_serves(toy, tmp_path):
    file, _ = build_onnx(toy.vla.path, toy.pruner_file, tmp_path, GraphOptions(max_keep=36))
    pipeline = open_pipeline(toy.vla.path, toy.pruner_file, engine=EngineChoice("onnxruntime", file))
    assert pipeline.drop == pytest.approx(0.8)


def test_the_torch_tower_is_let_go(toy, engine_file):
    pipeline = open_pipeline(toy.vla.path, toy.pruner_file, engine=EngineChoice("onnxruntime", engine_file))
    assert pipeline.vla.model.model.visual is None
    pipeline.warm_up()


def settings(toy, **values) -> Settings:
    return Settings(**{"vla": str(toy.vla.path), "pruner": str(toy.pruner_file), **values})


def test_the_node_runs_on_an_engine_by_its_parameters(toy, engine_file, ego_history):
    loaded = load_planner(settings(toy, vision_backend="onnxruntime", engine=str(engine_file), device="cpu"))
    identity = loaded.identity()
    assert (
        str(engine_file) in identity["engine"] and "cpu" in identity["runtime"] and identity["parity"] == "not verified"
    )
    theirs = load_planner(settings(toy, device="cpu")).planner.plan(frame_set(0), ego_history)
    assert loaded.planner.plan(frame_set(0), ego_history).text == theirs.text


@pytest.mark.parametrize(
    ("values", "error", "reason"),
    [
        ({"vision_backend": "onnxruntime"}, InputError, "needs an engine file"),
        ({"engine": "vision.onnx"}, InputError, "vision_backend is torch"),
        (
            {"vision_backend": "tensorrt", "engine": "ENGINE"},
            ModelError,
            "kind: .* set vision_backend to 'onnxruntime'",
        ),
        ({"vision_backend": "onnxruntime", "engine": "absent.onnx"}, ModelError, "absent.onnx: no such engine file"),
        (
            {"vision_backend": "onnxruntime", "engine": "ENGINE", "onnx_provider": "cuda"},
            ModelError,
            "onnx_provider: 'cuda' is not in this onnxruntime",
        ),
    ],
)
def test_parameters_that_do_not_fit_are_refused(toy, engine_file, values, error, reason):
    values = {name: str(engine_file) if value == "ENGINE" else value for name, value in values.items()}
    with pytest.raises(error, match=reason):
        load_planner(settings(toy, device="cpu", warm_up=False, **values))


class BrokenRunner:
    """Gives what it is told to."""

    device, name = torch.device("cpu"), "broken"

    def __init__(self, engine: EngineVision, **outputs):
        self.engine, self.outputs = engine, outputs

    def execute(self, pointers) -> None:
        for name, value in self.outputs.items():
            self.engine._tensors[name].fill_(value)


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ({"scores": float("nan"), "indices": 0}, "scores: not finite"),
        ({"scores": 1.0, "indices": 180}, "indices: not 180 different tokens"),
        ({"scores": 1.0, "indices": -1}, "indices: not 180 different tokens"),
        ({"scores": 1.0, "indices": 3}, "indices: not 180 different tokens"),
    ],
)
def test_numbers_that_no_sound_engine_gives_are_refused(toy, engine_file, outputs, reason):
    choice = EngineChoice("onnxruntime", engine_file)
    engine = open_pipeline(toy.vla.path, toy.pruner_file, engine=choice).vision
    engine.runner = BrokenRunner(engine, **outputs)
    with pytest.raises(ModelError, match=reason):
        engine.encode(engine.preprocess(toy.images))


def test_tokens_and_scores_of_a_run_stay_when_the_engine_runs_again(toy, engine_file):
    engine = open_pipeline(toy.vla.path, toy.pruner_file, engine=EngineChoice("onnxruntime", engine_file)).vision
    first = engine.encode(engine.preprocess(toy.images))
    rows, scores = first.rows.clone(), first.scores.clone()
    engine.encode(engine.preprocess(toy.images[::-1].copy()))
    assert torch.equal(first.rows, rows) and torch.equal(first.scores, scores)


def test_an_engine_encodes_every_camera_of_every_set(toy, engine_file, ego_history, monkeypatch):
    _, pipeline = pipelines(toy, engine_file, 0.5)
    pipeline.warm_up()
    runs = []
    execute = pipeline.vision.runner.execute
    monkeypatch.setattr(pipeline.vision.runner, "execute", lambda pointers: runs.append(pointers) or execute(pointers))
    plans = [pipeline.plan(frame_set(0), ego_history) for _ in range(2)]
    assert len(runs) == 2 and [plan.reused_cameras for plan in plans] == [0, 0]
    assert np.array_equal(plans[0].kept.scores, plans[1].kept.scores)


def test_other_scores_choose_among_the_tokens_that_the_engine_gives(toy, tmp_path):
    file, _ = build_onnx(toy.vla.path, toy.pruner_file, tmp_path, GraphOptions(max_keep=20))
    engine = open_pipeline(toy.vla.path, toy.pruner_file, engine=EngineChoice("onnxruntime", file)).vision
    visual = engine.encode(engine.preprocess(toy.images))
    context, pruner = PruningContext(visual), ScorePruner(None)
    own = pruner.score(context)
    turned = pruner.select(context, -own, 5)
    assert set(turned.tolist()) == set(visual.indices[-5:].tolist())
    assert visual.take(turned).shape == (5, visual.rows.shape[1])
    with pytest.raises(ValueError, match=r"keep: 21 is not in 1\.\.20"):
        pruner.select(context, own, 21)


def test_pruners_that_read_all_tokens_are_refused_behind_an_engine_that_gives_fewer(toy, tmp_path):
    file, _ = build_onnx(toy.vla.path, toy.pruner_file, tmp_path, GraphOptions(max_keep=20))
    with pytest.raises(ModelError, match=r"pruner divprune: reads all .* --max-keep"):
        open_pipeline(toy.vla.path, "divprune", 0.9, engine=EngineChoice("onnxruntime", file))
    for name, options in {
        "even_spacing": ScoreOptions(even_spacing=0.5),
        "pooled_cells": ScoreOptions(pooled=True),
    }.items():
        with pytest.raises(ModelError, match=rf"reconpruner with {name}: reads all .* --max-keep"):
            open_pipeline(toy.vla.path, toy.pruner_file, 0.9, engine=EngineChoice("onnxruntime", file), scores=options)


def test_floors_need_an_engine_whose_missing_tokens_leave_each_camera_enough(toy, tmp_path, ego_history):
    few, enough = (
        EngineChoice("onnxruntime", build_onnx(toy.vla.path, toy.pruner_file, tmp_path / str(keep), options)[0])
        for keep, options in ((153, GraphOptions(max_keep=153)), (154, GraphOptions(max_keep=154)))
    )
    with pytest.raises(
        ModelError, match=r"camera_floor: 4 of each camera needs .* 154 of the 180 tokens, .* gives 153;"
    ):
        open_pipeline(toy.vla.path, toy.pruner_file, 0.8, engine=few, camera_floor=4)
    by_torch, by_engine = (
        open_pipeline(toy.vla.path, toy.pruner_file, 0.85, engine=engine, camera_floor=4) for engine in (None, enough)
    )
    alone = open_pipeline(toy.vla.path, toy.pruner_file, 0.85)
    plans = [pipeline.plan(frame_set(0), ego_history) for pipeline in (by_torch, by_engine, alone)]
    kept = [plan.kept.indices.tolist() for plan in plans]
    assert kept[0] == kept[1] != kept[2] and plans[0].text == plans[1].text
    assert min(int(mask.sum()) for mask in plans[1].kept.masks()) == 4


def test_the_tokens_that_an_engine_leaves_out_may_all_be_of_one_camera():
    scores = torch.arange(12.0).view(3, 4)
    visual = VisualTokens(torch.zeros(10, 4), torch.arange(11, 1, -1), (3, 2, 2), scores)
    floors = CameraFloors(2, torch.arange(3).repeat_interleave(4))
    kept = ScorePruner(None).select(PruningContext(visual, floors=floors), scores, 7)
    assert kept.tolist() == [2, 3, 6, 7, 9, 10, 11]


def test_other_pruners_run_behind_an_engine_that_gives_all_tokens(toy, engine_file):
    pipeline = open_pipeline(toy.vla.path, "divprune", 0.5, engine=EngineChoice("onnxruntime", engine_file))
    assert pipeline.vla.parts == {"language"}
    pipeline.warm_up()


@pytest.mark.parametrize("options", [ScoreOptions(even_spacing=0.5), ScoreOptions(pooled=True)])
def test_options_that_read_all_tokens_plan_alike_behind_an_engine_that_gives_all(
    toy, engine_file, ego_history, options
):
    engines = (None, EngineChoice("onnxruntime", engine_file))
    by_torch, by_engine = (
        open_pipeline(toy.vla.path, toy.pruner_file, 0.6, engine=engine, scores=options).plan(frame_set(0), ego_history)
        for engine in engines
    )
    alone = open_pipeline(toy.vla.path, toy.pruner_file, 0.6).plan(frame_set(0), ego_history)
    kept = [plan.kept.indices.tolist() for plan in (by_torch, by_engine, alone)]
    assert kept[0] == kept[1] != kept[2] and by_torch.text == by_engine.text


def test_pictures_of_another_form_are_refused(toy, engine_file):
    engine = open_pipeline(toy.vla.path, toy.pruner_file, engine=EngineChoice("onnxruntime", engine_file)).vision
    with pytest.raises(InputError, match="engine: images"):
        engine.encode(engine.preprocess(toy.images[:5]))
