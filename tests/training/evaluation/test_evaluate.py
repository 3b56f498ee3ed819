"""``fastdrive evaluate`` on small written datasets, with an untrained VLA and with answers put in its mouth."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from fastdrive_node.cli import main
from fastdrive_node.errors import InputError
from fastdrive_node.families import load_vla
from fastdrive_node.planning.answer_format import format_answer
from fastdrive_node.pruning.catalog import PRUNERS
from fastdrive_node.types import CAMERAS
from fastdrive_training.annotate.run import Annotation
from fastdrive_training.data import token_cache
from fastdrive_training.data.adapters import open_source
from fastdrive_training.data.nuscenes.keyframes import KeyframeDataset
from fastdrive_training.data.sampling import Shard
from fastdrive_training.evaluation import (
    OpenLoopSettings,
    constant_velocity,
    efficiency,
    evaluate,
    other_scenes,
    segments,
)
from fastdrive_training.evaluation.metrics.horizons import at_metric_steps
from tests.generation import SHALLOW, generate_as, untrained_vla
from tests.training.annotate.annotate_fixtures import BrightModels, settings
from tests.training.evaluation.planning_scenes import add_object, draw_road
from tests.training.tiny_nuscenes import write_dataset

SPEED = 4.0  # of scene 0; scene 1 drives 1 m/s faster
SAMPLES = [0, 1, 8, 9]  # keyframes with 3 s of future


@pytest.fixture(scope="module")
def vla_dir(tmp_path_factory):
    return untrained_vla(tmp_path_factory.mktemp("vla") / "tiny", SHALLOW)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "d", scenes=2, keyframes=8, speed=SPEED)


@pytest.fixture
def silent(monkeypatch):
    """No row is timed."""
    monkeypatch.setattr(segments, "measure", lambda _, rows, *__, **___: [{} for _ in rows])


def _run(tmp_path, *arguments) -> dict:
    assert main([*map(str, arguments), "--json", str(tmp_path / "figures.json")]) == 0
    return json.loads((tmp_path / "figures.json").read_text())


def _speak(monkeypatch, text_of_call) -> list[tuple[int, ...]]:
    """Every answer becomes ``text_of_call(number)``; returns what was kept, call by call."""
    kept = []

    def text(indices):
        kept.append(tuple(indices.tolist()))
        return text_of_call(len(kept) - 1)

    generate_as(monkeypatch, text)
    return kept


def test_untrained_vla_is_refused_throughout_and_scored_nowhere(tmp_path, root, vla_dir, monkeypatch):
    monkeypatch.setattr(efficiency, "TIMED_SAMPLES", 1)
    monkeypatch.setattr(efficiency, "COUNTED_SAMPLES", 1)
    arguments = ("--pruners", "none,random,reconpruner,fastv", "--drop", "0.75", "--seeds", 2, "--limit", 2)
    figures = _run(tmp_path, "evaluate", root, "--vla", vla_dir, *arguments)
    rows = figures["rows"]
    assert [(row["pruner"], row["drop"], row["seed"]) for row in rows] == [
        ("none", 0.0, 0),
        ("random", 0.75, 0),
        ("random", 0.75, 1),
        ("reconpruner", 0.75, 0),
        ("fastv", 0.75, 0),
        ("constant-velocity", 0.0, 0),
    ]
    assert (figures["samples"], figures["without_future"], figures["vla"]) == (2, 12, str(vla_dir))
    for row in rows[:-1]:
        assert (row["samples"], row["refused"]) == (2, 2)
        assert row["l2_avg_to_t"] == {"1s": None, "2s": None, "3s": None, "avg": None}
        assert row["collision_polygon"] is row["off_drivable"] is row["intersection"] is None
        assert row["tokens"] == int(192 * (1 - row["drop"]))
        assert min(row[name] for name in ("prefill_ms", "decode_ms_per_token", "flops", "peak_memory_mb")) > 0
    assert rows[0]["pruner_ms"] is None and rows[4]["pruner_ms"] is None and rows[3]["pruner_ms"] > 0
    assert rows[1]["flops"] == rows[2]["flops"]  # the seeds of one row cost the same
    assert rows[2]["flops"] < rows[3]["flops"] < rows[4]["flops"] < rows[0]["flops"]
    assert rows[4]["tokens_by_layer"] == [192, 192, 48] and "tokens_by_layer" not in rows[3]
    assert rows[-1]["tokens"] is None and rows[-1]["refused"] == 0
    assert rows[-1]["l2_avg_to_t"]["avg"] == pytest.approx(0.0, abs=1e-6)  # the scenes go straight at one speed
    assert figures["comparisons"] == []


def test_every_pruner_gives_a_row(root, vla_dir, silent):
    settings = OpenLoopSettings(drops=(0.5,), limit=1, pruner_file=vla_dir / "reconpruner.safetensors")
    rows = evaluate(KeyframeDataset(root), load_vla(vla_dir), settings, progress=False)["rows"]
    assert [row["pruner"] for row in rows] == [*PRUNERS, "constant-velocity"]


def test_answers_are_judged_and_refusals_left_out(tmp_path, vla_dir, monkeypatch, silent):
    root = write_dataset(tmp_path / "d", scenes=1, keyframes=10, speed=SPEED)
    # a car that stands on the road 8 m in front of the first sample's 1 s point; the plan stays at full speed
    add_object(root, "car", {f"s0k{index}": (112.0, 52.8, 0.0) for index in range(10)})
    draw_road(root, "scene-0", 45.0, 52.0)
    vla, dataset = load_vla(vla_dir), KeyframeDataset(root)
    plan = constant_velocity(dataset[0].history)
    left = plan + np.stack([np.zeros(6), [0, 0, 0, 0, 1.2, 2.5]], axis=1)
    texts = [
        format_answer(left, vla.spec.answer),
        "no plan",
        format_answer(plan + np.array([0.0, 60.0]), vla.spec.answer),  # grammatical, but no vehicle drives it
        format_answer(plan, vla.spec.answer),
    ]
    _speak(monkeypatch, texts.__getitem__)
    out = tmp_path / "run"
    row = evaluate(dataset, vla, OpenLoopSettings(pruners=("none",), out=out), progress=False)["rows"][0]
    assert (row["samples"], row["refused"]) == (4, 2)
    assert row["l2_at_t"] == pytest.approx({"1s": 0, "2s": 0, "3s": 1.25, "avg": 1.25 / 3}, abs=0.01)
    assert set(row["judged"].values()) == {2} and "collision_any" in row["judged"]
    assert row["collision_any"] == pytest.approx({"1s": 0, "2s": 0, "3s": 0.5, "avg": 1 / 6})
    assert row["relative_performance"] is row["tails"] is None  # it is what the others are compared with
    lines = pq.read_table(out / "samples.parquet").to_pylist()
    first, second, third, fourth = (line for line in lines if line["pruner"] == "none")
    assert first["collision"] == [False] * 4 + [True, True]
    assert first["off_drivable"] == first["raster_collision"] == [False] * 4 + [True, True]
    assert row["collision_polygon"] == pytest.approx({"1s": 0, "2s": 0, "3s": 1 / 6, "avg": 1 / 18})
    assert row["off_drivable"] == pytest.approx({"1s": 0, "2s": 0, "3s": 0.5, "avg": 1 / 6})
    assert not any(fourth["collision"]) and not any(fourth["off_drivable"])
    np.testing.assert_allclose(first["plan_m"], left, atol=0.06)
    assert (
        second["refused"]
        and second["plan_m"] is None
        and second["collision"] is None
        and "PLANNING" in second["reason"]
    )
    assert third["refused"] and third["errors_m"] is None and "speed" in third["reason"]
    assert first["kept"] == list(range(192)) and first["sample"] == "s0k0" and not first["refused"]


def test_dataset_without_objects_has_no_collision_figure(root, vla_dir, silent):
    row = evaluate(KeyframeDataset(root), load_vla(vla_dir), OpenLoopSettings(pruners=()), progress=False)["rows"][0]
    assert row["pruner"] == "constant-velocity"
    assert row["collision_polygon"] is None and row["judged"]["collision_polygon"] == 0
    assert row["off_drivable"] == {"1s": 0, "2s": 0, "3s": 0, "avg": 0}


def test_shuffled_images_come_from_another_scene(root, vla_dir, monkeypatch, silent):
    dataset, vla = KeyframeDataset(root), load_vla(vla_dir)
    donors = other_scenes(dataset.root, dataset.scenes, SAMPLES)
    assert donors == other_scenes(dataset.root, dataset.scenes, SAMPLES)
    scenes = dataset.scenes
    assert all(scenes[donor] != scenes[sample] for donor, sample in zip(donors, SAMPLES, strict=True))
    with pytest.raises(InputError, match="two scenes"):
        other_scenes(dataset.root, dataset.scenes, [0, 1])
    _speak(monkeypatch, lambda _: "no plan")
    shown = []
    load = token_cache.FeatureStore.load
    monkeypatch.setattr(token_cache.FeatureStore, "load", lambda self, which: shown.extend(which) or load(self, which))
    figures = evaluate(dataset, vla, OpenLoopSettings(pruners=("none",), shuffled=True), progress=False)
    assert figures["images"] == "shuffled" and shown == list(dict.fromkeys(donors))


def test_random_choices_depend_on_seed_and_sample_alone(root, vla_dir, monkeypatch, silent):
    vla, dataset = load_vla(vla_dir), KeyframeDataset(root)
    kept = _speak(monkeypatch, lambda _: "no plan")
    for batch in (1, 3):
        settings = OpenLoopSettings(pruners=("random",), drops=(0.5,), seeds=2, batch=batch)
        evaluate(dataset, vla, settings, progress=False)
    assert kept[:8] == kept[8:]
    assert len(set(kept)) == 8  # four samples, two seeds


def test_constant_velocity_is_straight_ahead_at_the_current_speed(root):
    plan = constant_velocity(KeyframeDataset(root)[9].history)
    np.testing.assert_allclose(plan[:, 0], (SPEED + 1) * 0.5 * np.arange(1, 7), atol=1e-6)
    assert (plan[:, 1] == 0).all()


def test_cameras_follow_the_vlas_order(tmp_path, root, vla_dir, monkeypatch, silent):
    shutil.copytree(vla_dir, tmp_path / "reversed")
    spec = json.loads((vla_dir / "vla.json").read_text())
    spec["cameras"] = list(CAMERAS[::-1])
    (tmp_path / "reversed" / "vla.json").write_text(json.dumps(spec))
    asked = []
    read = token_cache.load_images
    monkeypatch.setattr(token_cache, "load_images", lambda item, names: asked.append(names) or read(item, names))
    _speak(monkeypatch, lambda _: "no plan")
    evaluate(KeyframeDataset(root), load_vla(tmp_path / "reversed"), OpenLoopSettings(("none",), limit=1), False)
    assert asked == [CAMERAS[::-1]]


def test_shipped_vla_is_named_as_the_commands_name_it(tmp_path, root, vla_dir, monkeypatch, silent):
    monkeypatch.setattr("fastdrive_node.families.spec.default_vla_dir", lambda: vla_dir)
    assert _run(tmp_path, "evaluate", root, "--pruners", "none", "--limit", 1)["vla"] == "models/tiny"


def test_oracle_needs_masks(tmp_path, vla_dir, capsys, silent):
    bare = write_dataset(tmp_path / "bare", scenes=1, keyframes=7, masks=False)
    assert main(["evaluate", str(bare), "--vla", str(vla_dir), "--pruners", "oracle"]) == 1
    assert "has no masks" in capsys.readouterr().err
    rows = _run(tmp_path, "evaluate", bare, "--vla", vla_dir, "--drop", "0.9", "--limit", 1)["rows"]
    left_out = {"oracle", "tokenpacker"}  # the latter always gives a quarter of the tokens
    assert {row["pruner"] for row in rows} == {*PRUNERS, "constant-velocity"} - left_out


def test_dataset_without_futures_and_wrong_arguments_are_refused(tmp_path, root, vla_dir, capsys):
    short = write_dataset(tmp_path / "short", scenes=2, keyframes=3)
    assert main(["evaluate", str(short), "--vla", str(vla_dir), "--pruners", "none"]) == 1
    assert "none of the 6 items has a recorded future of 3 s" in capsys.readouterr().err
    for arguments, message in (
        (["--pruners", "best"], "--pruners: 'best' is not known"),
        (["--drop", "1.5"], "--drop: 1.5 is not in [0, 0.95]"),
        (["--pruners", "random", "--drop", "0.951"], "--drop: 0.951 is not in [0, 0.95]"),
        (
            ["--pruners", "none,tokenpacker", "--drop", "0.5,0.9"],
            "--drop: 0.9 keeps 19 of 192 tokens, tokenpacker",
        ),
        (["--limit", "0"], "--limit"),
        (["--seeds", "0"], "--seeds"),
    ):
        assert main(["evaluate", str(root), "--vla", str(vla_dir), *arguments]) == 2
        assert message in capsys.readouterr().err


def test_help_has_an_example(capsys):
    for command in ("evaluate", "metrics"):
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0
        assert f"fastdrive {command}" in capsys.readouterr().out


def test_a_folder_with_ego_motion_gives_l2_and_says_what_is_null(tmp_path, vla_dir, monkeypatch, capsys, silent):
    root, motion = tmp_path / "folder", {}
    image = np.full((56, 112, 3), 90, np.uint8)
    for index in range(8):
        for camera in CAMERAS:
            (root / "images" / camera).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / "images" / camera / f"{index}.png"), image)
        motion[f"{index}"] = {"scene": "a", "t_s": 0.5 * index, "x": 2.0 * index, "y": 0.0, "yaw": 0.0}
    (root / "ego_motion.json").write_text(json.dumps(motion))
    ahead = np.stack([2.2 * np.arange(1, 7), np.zeros(6)], axis=1)  # 0.2 m too far in each step
    _speak(monkeypatch, lambda _: format_answer(ahead, load_vla(vla_dir).spec.answer))
    figures = _run(tmp_path, "evaluate", root, "--vla", vla_dir, "--pruners", "none")
    row, baseline = figures["rows"]
    assert (figures["samples"], figures["without_future"]) == (2, 6)
    assert row["l2_avg_to_t"]["avg"] == pytest.approx(0.5, abs=0.06)
    assert baseline["l2_avg_to_t"]["avg"] == pytest.approx(0.0, abs=1e-6)
    assert row["collision_polygon"] is row["off_drivable"] is row["intersection"] is None
    assert "collision_polygon is null: the dataset does not have objects" in capsys.readouterr().err


@pytest.mark.parametrize(("absent", "state"), [((0, 1), "are null"), ((1,), "are of 2 samples only")])
def test_road_figures_are_left_out_where_map_masks_are_missing(tmp_path, vla_dir, capsys, silent, absent, state):
    root = write_dataset(tmp_path / "d", scenes=2, keyframes=8, speed=SPEED)
    for scene in absent:
        (root / "maps" / f"scene-{scene}.png").unlink()
    figures = _run(tmp_path, "evaluate", root, "--vla", vla_dir, "--pruners", "none")
    row = figures["rows"][-1]
    assert row["l2_avg_to_t"]["avg"] == pytest.approx(0.0, abs=1e-6) and row["judged"]["l2_avg_to_t"] == 4
    assert row["judged"]["off_drivable"] == row["judged"]["intersection"] == 4 - 2 * len(absent)
    assert (row["off_drivable"] is None) == (row["intersection"] is None) == (len(absent) == 2)
    lines = [line for line in capsys.readouterr().err.splitlines() if "off_drivable" in line]
    assert len(lines) == 1 and f"off_drivable and intersection {state}: {len(absent)} map masks are missing" in lines[0]


def test_a_run_whose_maps_were_missing_is_not_continued_with_them(tmp_path, vla_dir, silent):
    root = write_dataset(tmp_path / "d", scenes=1, keyframes=8, speed=SPEED)
    picture = (root / "maps" / "scene-0.png").read_bytes()
    (root / "maps" / "scene-0.png").unlink()
    settings = OpenLoopSettings(pruners=(), out=tmp_path / "run")
    evaluate(KeyframeDataset(root), load_vla(vla_dir), settings, progress=False)
    (root / "maps" / "scene-0.png").write_bytes(picture)
    with pytest.raises(InputError, match="parts differs"):
        evaluate(KeyframeDataset(root), load_vla(vla_dir), settings, progress=False)


@pytest.mark.parametrize(
    ("cameras", "names"), [((*CAMERAS, "CAM_ROOF"), CAMERAS[::-1]), (("CAM_BACK",), ("CAM_BACK",))]
)
def test_a_vla_reads_its_cameras_of_any_rig(tmp_path, vla_dir, monkeypatch, cameras, names, silent):
    root = write_dataset(tmp_path / "d", scenes=1, keyframes=8, cameras=cameras)
    shutil.copytree(vla_dir, tmp_path / "rig")
    spec = json.loads((vla_dir / "vla.json").read_text())
    (tmp_path / "rig" / "vla.json").write_text(json.dumps({**spec, "cameras": list(names)}))
    kept = _speak(monkeypatch, lambda _: "no plan")
    arguments = ["--vla", tmp_path / "rig", "--pruners", "random,oracle", "--drop", "0.5"]
    figures = _run(tmp_path, "evaluate", root, *arguments)
    tokens = load_vla(tmp_path / "rig").tokens
    assert {row["tokens"] for row in figures["rows"][:2]} == {tokens // 2} and len(kept) > 0


@pytest.mark.parametrize(("points", "interval_s"), [(6, 0.5), (12, 0.25), (10, 0.4), (3, 1.0), (8, 0.5)])
def test_plans_of_other_intervals_are_compared_at_the_metrics_steps(points, interval_s):
    plan = np.stack([4.0 * interval_s * np.arange(1, points + 1), np.zeros(points)], axis=1)
    np.testing.assert_allclose(at_metric_steps(plan, interval_s)[:, 0], 2.0 * np.arange(1, 7), atol=1e-9)


def test_plans_that_end_before_3_s_are_refused(tmp_path, root, vla_dir):
    with pytest.raises(ValueError, match=r"ends at 2\.5 s"):
        at_metric_steps(np.zeros((5, 2)), 0.5)
    vla = load_vla(vla_dir)
    short = replace(vla, spec=replace(vla.spec, answer=replace(vla.spec.answer, points=5)))
    with pytest.raises(InputError, match=r"vla\.json: answer: 5 points every 0.5 s end before 3 s"):
        evaluate(KeyframeDataset(root), short, OpenLoopSettings(pruners=("none",)), progress=False)


def test_oracle_reads_the_masks_that_are_named(tmp_path, vla_dir, silent, capsys):
    root = write_dataset(tmp_path / "d", scenes=1, keyframes=8, masks=False)
    data = open_source(root, "train", own_masks=False)
    annotation = Annotation(data, tmp_path / "m", settings(), Shard(), BrightModels)
    annotation.finish(annotation.run(), samples=0)
    arguments = ["evaluate", root, "--vla", vla_dir, "--pruners", "oracle", "--drop", "0.5", "--split", "train"]
    assert main([*map(str, arguments)]) == 1
    assert "masks" in capsys.readouterr().err
    out = tmp_path / "run"
    _run(tmp_path, *arguments, "--masks", tmp_path / "m", "--out", out)
    kept = pq.read_table(out / "samples.parquet").column("kept").to_pylist()[0]
    covered = KeyframeDataset(root, "train", masks=tmp_path / "m")[0].coverage(CAMERAS, load_vla(vla_dir).grid)
    assert set(np.flatnonzero(covered > 0.5)) <= set(kept)  # every foreground token: they are fewer than are kept
    assert 0 < (covered > 0.5).sum() < len(kept)
    index = tmp_path / "m" / "images.jsonl"
    index.write_text(index.read_text().replace("\n", " \n"))  # masks that were made again
    assert main([*map(str, [*arguments, "--masks", tmp_path / "m", "--out", out])]) == 1
    assert "masks differs" in capsys.readouterr().err
