"""benchmarks/perf/gpu_suite.py at its tiny size, on the CPU."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.perf import gpu_suite
from benchmarks.perf.random_models import Scene

SCENES = {"one_image_84x84": 9, "six_cameras_112x56": 48}
DROPS = ("ours_drop_0", "ours_drop_0.25", "ours_drop_0.5", "ours_drop_0.75")
QUICK = ("--device", "cpu", "--sizes", "tiny", "--quick", "--steps", "models,compile", "--compile-backend", "eager")
GRAPHS = ("ours_drop_0_graphs", "ours_drop_0.75_graphs")


@pytest.fixture(scope="module", autouse=True)
def smaller():
    """The tiny size with one layer of text and smaller images."""
    size = gpu_suite.SIZES["tiny"]
    vision = {**size.vision, "depth": 2, "fullatt_block_indexes": [1]}
    scenes = (Scene("one_image_84x84", 1, 84, 84), Scene("six_cameras_112x56", 6, 56, 112))
    smaller = replace(size, vision=vision, text={**size.text, "num_hidden_layers": 1}, scenes=scenes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(gpu_suite.SIZES, "tiny", smaller)
        yield


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    out = tmp_path_factory.mktemp("suite") / "results" / "suite.json"
    gpu_suite.main([*QUICK, "--graphs-on-cpu", "--dtype", "bfloat16", "--out", str(out)])
    return json.loads(out.read_text())


def test_it_runs_to_the_end_with_every_stage_of_every_side(report):
    assert report["finished"] and report["dtype"] == "bfloat16" and report["machine"]["device"]
    scenes = report["sizes"]["tiny"]["scenes"]
    assert {name: scene["visual_tokens"] for name, scene in scenes.items()} == SCENES
    for scene in scenes.values():
        rows = {name: set(stage) for name, stage in scene["stages"].items()}
        ends = {"transformers", DROPS[0], DROPS[-1]}
        faster = {f"{drop}_{name}" for drop in (DROPS[0], DROPS[-1]) for name in ("drafts", "graphs", "drafts_graphs")}
        assert rows == {
            "vision": {"transformers", "ours", "ours_compiled"},
            "encode": {"transformers", "ours"},
            "prune": set(DROPS[1:]),
            "prefill": {"transformers", *DROPS, *GRAPHS},
            "decode_per_token": ends,
            "decode": faster,
            "end_to_end": ends | faster,
        }
        assert set(scene["faster"]) == faster
        assert all(1 <= entry["forwards"] <= 7 for entry in scene["faster"].values())
        times = [times for stage in scene["stages"].values() for times in stage.values()]
        assert all(0 < entry["min_ms"] <= entry["median_ms"] <= entry["p99_ms"] for entry in times)


def test_no_stage_is_timed_without_a_warm_up_run(monkeypatch, tmp_path):
    size, warm_ups = gpu_suite.SIZES["tiny"], []
    monkeypatch.setitem(gpu_suite.SIZES, "tiny", replace(size, scenes=size.scenes[:1]))
    monkeypatch.setattr(
        gpu_suite, "measure", lambda cases, runs, device, warm_up, tolerant: warm_ups.append(warm_up) or {}
    )
    gpu_suite.main([*QUICK, "--out", str(tmp_path / "suite.json")])
    assert warm_ups and min(warm_ups) >= 1


def test_the_pruning_ratios_keep_their_tokens(report):
    kept = report["sizes"]["tiny"]["scenes"]["six_cameras_112x56"]["kept_tokens"]
    assert list(kept.values()) == [48, 36, 24, 12]


def test_the_compiled_tower_and_pruner_give_what_eager_torch_gives(report):
    for scene in report["sizes"]["tiny"]["scenes"].values():
        compiled = scene["compiled"]["ours_compiled"]
        assert (
            compiled["graph_breaks"] == 0
            and compiled["cosine_min"] > 0.999
            and min(compiled["kept_overlap"].values()) > 0.9
        )
        eager, compiled = (scene["stages"]["vision"][side]["median_ms"] for side in ("ours", "ours_compiled"))
        assert scene["vision_ratios"]["ours_compiled"] == pytest.approx(eager / compiled, rel=1e-2)


def test_a_backend_that_cannot_compile_is_recorded_and_eager_is_measured(tmp_path):
    arguments = ("--steps", "compile", "--compile-backend", "no_such_backend", "--out", str(tmp_path / "suite.json"))
    for scene in gpu_suite.main([*QUICK, *arguments])["sizes"]["tiny"]["scenes"].values():
        assert (
            list(scene["stages"]) == ["vision"]
            and "no_such_backend" in scene["stages"]["vision"]["ours_compiled"]["error"]
        )
        assert scene["stages"]["vision"]["ours"]["median_ms"] > 0 and scene["vision_ratios"]["ours_compiled"] is None


def test_ratios_are_those_of_the_medians(report):
    scene = report["sizes"]["tiny"]["scenes"]["six_cameras_112x56"]
    prefill, prune = scene["stages"]["prefill"], scene["stages"]["prune"]["ours_drop_0.75"]["median_ms"]
    stock, none, fast = (prefill[side]["median_ms"] for side in ("transformers", "ours_drop_0", "ours_drop_0.75"))
    faster = scene["ratios"]["transformers_over_ours"]
    assert faster["prefill"]["ours_drop_0.75"] == pytest.approx(stock / fast, rel=1e-2)
    assert faster["prefill_with_pruner"]["ours_drop_0.75"] == pytest.approx(stock / (fast + prune), rel=1e-2)
    own = scene["ratios"]["ours_drop_0_over_ours"]
    assert own["prefill"]["ours_drop_0.75"] == pytest.approx(none / fast, rel=1e-2)
    assert own["prefill_with_pruner"]["ours_drop_0.75"] == pytest.approx(none / (fast + prune), rel=1e-2)
    none, fast = (prefill[name]["median_ms"] for name in GRAPHS)
    assert own["prefill"][GRAPHS[1]] == pytest.approx(none / fast, rel=1e-2)
    assert own["prefill_with_pruner"][GRAPHS[1]] == pytest.approx(none / (fast + prune), rel=1e-2)


def test_both_sides_agree_in_float32_and_the_ties_of_bfloat16_are_listed(report):
    for scene in report["sizes"]["tiny"]["scenes"].values():
        exact, rounded = scene["agreement"]["float32"], scene["agreement"]["bfloat16"]
        assert exact["dtype"] == "float32" and rounded["dtype"] == "bfloat16"
        assert exact["same_tokens"] and exact["equal_steps"] == exact["steps"] and exact["differences"] == []
        assert exact["encode_cosine"]["min"] > 0.9999 and rounded["encode_cosine"]["min"] > 0.99
        assert len(rounded["differences"]) == rounded["steps"] - rounded["equal_steps"]


def test_a_side_that_runs_out_of_memory_is_recorded_and_the_rest_goes_on(monkeypatch, tmp_path):
    def exhausted(self):
        raise torch.OutOfMemoryError("out of memory")

    size = gpu_suite.SIZES["tiny"]
    monkeypatch.setitem(gpu_suite.SIZES, "tiny", replace(size, scenes=size.scenes[-1:]))
    monkeypatch.setattr(gpu_suite.HfGenerate, "encode", exhausted)
    report = gpu_suite.main([*QUICK, "--out", str(tmp_path / "suite.json")])
    assert report["finished"]
    for scene in report["sizes"]["tiny"]["scenes"].values():
        failed = {"error": "OutOfMemoryError: out of memory"}
        stages, ratios = scene["stages"], scene["ratios"]["transformers_over_ours"]
        stopped = ("vision", "encode", "prefill", "decode_per_token")
        assert all(stages[name]["transformers"] == failed for name in stopped)
        assert scene["agreement"]["float32"] == failed
        assert ratios["prefill"]["ours_drop_0.5"] is None and ratios["end_to_end"]["ours_drop_0.75"] > 0
        assert "median_ms" in stages["prefill"]["ours_drop_0.5"]


def test_a_size_that_cannot_be_built_is_recorded(monkeypatch, capsys):
    def exhausted(*arguments):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(gpu_suite, "build_model", exhausted)
    gpu_suite.main(list(QUICK))
    printed = json.loads(capsys.readouterr().out)
    assert printed["finished"] and printed["sizes"]["tiny"]["error"] == "OutOfMemoryError: out of memory"


def test_without_a_gpu_there_are_no_rows_of_graphs(monkeypatch, tmp_path):
    size = gpu_suite.SIZES["tiny"]
    monkeypatch.setitem(gpu_suite.SIZES, "tiny", replace(size, scenes=size.scenes[:1]))
    arguments = ("--steps", "models", "--out", str(tmp_path / "suite.json"))
    (scene,) = gpu_suite.main([*QUICK, *arguments])["sizes"]["tiny"]["scenes"].values()
    assert set(scene["faster"]) == {"ours_drop_0_drafts", "ours_drop_0.75_drafts"}
    assert set(scene["stages"]["prefill"]) == {"transformers", *DROPS}


def test_scenes_are_chosen_by_the_beginnings_of_their_names(tmp_path):
    arguments = ("--steps", "compile", "--scenes", "six", "--out", str(tmp_path / "suite.json"))
    assert list(gpu_suite.main([*QUICK, *arguments])["sizes"]["tiny"]["scenes"]) == ["six_cameras_112x56"]
    scenes = gpu_suite.parse_arguments(["--sizes", "tiny", "--scenes", "six,one_image_84"]).scenes
    assert scenes == "six,one_image_84"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--sizes", "3b,huge"),
        ("--steps", "all"),
        ("--precisions", "int8"),
        ("--runs", "0"),
        ("--scenes", "seven"),
        ("--scenes", "six,seven"),
    ],
)
def test_an_unknown_name_is_wrong_usage(option, value, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu_suite.parse_arguments([option, value])
    assert stopped.value.code == 2 and f"error: {option}: " in capsys.readouterr().err


def test_the_full_size_is_that_of_the_paper():
    size = gpu_suite.SIZES["3b"]
    tokens = {scene.name: scene.images * (scene.height // 28) * (scene.width // 28) for scene in size.scenes}
    assert tokens == {"one_image_1596x1596": 3249, "six_cameras_672x392": 2016}
    model = gpu_suite.build_model(size, torch.device("meta"), torch.bfloat16, seed=0)
    assert 3.7e9 < sum(parameter.numel() for parameter in model.parameters()) < 3.8e9
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
