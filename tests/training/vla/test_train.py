"""Imitation training of a tiny VLA in two stages: what it learns from, what it writes, how it resumes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from fastdrive_node.cli import main
from fastdrive_node.errors import InputError, ModelError, TrainingError
from fastdrive_node.families import load_vla
from fastdrive_node.families.loading import read_vla
from fastdrive_node.files import SHIPPED_PRUNER, VIEW_WEIGHTS_FILE
from fastdrive_node.planning.loading import check_pruner
from fastdrive_node.pruning.baselines.prune2drive import save_weights
from fastdrive_node.pruning.catalog import FILES
from fastdrive_node.pruning.checkpoint import save_pruner
from fastdrive_node.types import CAMERAS
from fastdrive_training.data.adapters import open_source
from fastdrive_training.engine.config import RecipeError, parse_recipe
from fastdrive_training.engine.distributed import Processes
from fastdrive_training.vla import train_planner, train_tower
from fastdrive_training.vla.data import image_groups, prepare
from fastdrive_training.vla.targets import AnswerText
from fastdrive_training.vla.train_planner import LanguageRecipe, foreground_share, keep_some
from fastdrive_training.vla.train_tower import TowerBatches, TowerPlanner, TowerRecipe, jittered
from tests.generation import untrained_pruner
from tests.training.tiny_nuscenes import write_dataset

SHAPE = {"tower_depth": 2, "full_attention_blocks": [1], "layers": 1}
SMALL = {"batch": 2, "split": "train", "workers": 0, "tensorboard": False, "device": "cpu"}
TOWER = {**SMALL, "size": SHAPE}


@pytest.fixture(scope="module")
def planner(tiny_vla) -> TowerPlanner:
    return TowerPlanner(tiny_vla)


def test_dense_labels_meet_the_token_of_their_place(planner, tiny_vla) -> None:
    """Scores that name the class of exactly one fine cell cost least where the labels have it at that cell."""
    token = 1 * 8 + 3  # row 1, column 3 of the merged grid
    with torch.no_grad():
        planner.classes.weight.zero_()
        planner.classes.bias.zero_()
        planner.classes.weight.view(4, 4, 16, -1)[2, 1, 9, 0] = 20.0  # fine row 2, fine column 1 of a cell: class 9
        planner.classes.bias.view(4, 4, 16)[..., 0] = 10.0
    tokens = torch.zeros(1, 192, tiny_vla.width)
    tokens[0, token, 0] = 1.0
    labels = torch.zeros(1, 6, 16, 32, dtype=torch.uint8)
    labels[0, 0, 4 * 1 + 2, 4 * 3 + 1] = 9
    right = planner.dense_loss(tokens, [labels], [0])
    labels[0, 0] = labels[0, 0].roll(1, 0)
    assert right < 0.01 < planner.dense_loss(tokens, [labels], [0])


@pytest.mark.parametrize("learning", [(0, 1, 5, 3), (4,), (0, 1, 2, 3, 4, 5)])
def test_encoding_keeps_the_order_of_the_cameras(planner, learning) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 6, 3, 112, 224), dtype=np.uint8))
    whole = planner.vision.encode_patches(planner.vision.patches(pixels.flatten(0, 1))).reshape(1, 192, -1)
    assert torch.allclose(planner.encode([pixels], learning), whole, atol=1e-5)


def test_front_cameras_always_carry_gradient_and_one_other_by_turns(long_dataset, tmp_path, tiny_vla) -> None:
    recipe = TowerRecipe(str(long_dataset), "out", batch=1, gradient_cameras=("CAM_BACK", "CAM_FRONT"))
    data = prepare(tiny_vla, open_source(long_dataset, "train"), tmp_path)
    batches = TowerBatches(data, image_groups(tiny_vla), AnswerText.of(tiny_vla), recipe, Processes("cpu"))
    learning = [batches[step][0].learning for step in range(12)]
    assert {cameras[:2] for cameras in learning} == {(3, 0)}  # front is 0, back is 3
    assert {cameras[2] for cameras in learning} == {1, 2, 4, 5}
    with pytest.raises(RecipeError, match=r"gradient_cameras: 'CAM_ROOF' is no camera of the VLA"):
        train_tower.train({**TOWER, "dataset": "d", "out": "o", "gradient_cameras": ["CAM_ROOF"]}, False)


@pytest.fixture(scope="module")
def long_dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "long", scenes=2, keyframes=12)


def test_random_pruning_does_not_look_at_the_foreground(tiny_vla) -> None:
    labels = np.zeros((400, 6, 16, 32), np.uint8)
    labels[:, 0] = 2  # the first camera is all road
    share, more = foreground_share([labels], image_groups(tiny_vla)), {}
    for name in ("foreground", "random", "mixed"):
        kept = (
            keep_some(share, np.random.default_rng(0), LanguageRecipe("d", "o", pruned_by=name))
            .numpy()
            .reshape(400, 6, 32)
        )
        assert 0.3 < kept.all(axis=(1, 2)).mean() < 0.4
        more[name] = kept[:, 0].mean() - kept[:, 1:].mean()
    assert abs(more["random"]) < 0.03 < more["mixed"] < more["foreground"] - 0.05


@pytest.fixture(scope="module")
def tower_run(long_dataset, tmp_path_factory):
    """The folder of a first stage of two steps; ``figures.json`` in it holds what the training returned."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = {**TOWER, "dataset": str(long_dataset), "out": str(folder / "tower"), "cache": str(folder / "cache")}
    figures = train_tower.train({**recipe, "steps": 2, "workers": 1}, False)
    (folder / "tower" / "figures.json").write_text(json.dumps(figures))
    return folder / "tower"


def test_a_vla_with_other_cameras_trains_too(long_dataset, tmp_path) -> None:
    cameras = {"cameras": ["CAM_BACK", "CAM_FRONT"], "gradient_cameras": ["CAM_FRONT"]}
    paths = {"dataset": str(long_dataset), "out": str(tmp_path / "two"), "cache": str(tmp_path / "cache")}
    train_tower.train({**TOWER, **paths, **cameras, "steps": 1}, False)
    vla = load_vla(tmp_path / "two" / "vla")
    assert vla.spec.cameras == ("CAM_BACK", "CAM_FRONT") and vla.tokens == 2 * 32


def test_a_tower_goes_on_from_another_vlas_at_another_image_size(long_dataset, tmp_path, tiny_dir, tiny_vla) -> None:
    paths = {"dataset": str(long_dataset), "out": str(tmp_path / "wide"), "cache": str(tmp_path / "cache")}
    size = {**SHAPE, "image_height": 56, "image_width": 168}
    recipe = {**SMALL, **paths, "start": str(tiny_dir), "size": size, "steps": 1, "rate": 1e-9, "seed": 5}
    train_tower.train(recipe, False)
    vla = load_vla(tmp_path / "wide" / "vla")
    assert vla.grid == (2, 6)
    ours, theirs = (each.model.model.visual.state_dict() for each in (vla, tiny_vla))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
    assert not torch.allclose(vla.model.lm_head.weight, tiny_vla.model.lm_head.weight, atol=1e-3)
    with pytest.raises(ModelError, match="start: its tower has other sizes than the recipe's"):
        train_tower.train({**recipe, "size": {**SHAPE, "tower_depth": 3}}, False)


def test_a_folder_with_ego_motion_trains_too(tmp_path) -> None:
    """One camera without masks, and a dataset whose name for it is not the simulator's."""
    (tmp_path / "folder" / "train").mkdir(parents=True)
    for index in range(16):
        cv2.imwrite(str(tmp_path / "folder" / "train" / f"{index:02d}.png"), np.full((56, 112, 3), index, np.uint8))
    poses = {
        f"{index:02d}": {"scene": "a", "t_s": index / 2, "x": 2.0 * index, "y": 0.0, "yaw": 0.0} for index in range(16)
    }
    (tmp_path / "folder" / "train" / "ego_motion.json").write_text(json.dumps(poses))
    paths = {"dataset": str(tmp_path / "folder"), "out": str(tmp_path / "run"), "cache": str(tmp_path / "cache")}
    cameras = {"cameras": ["camera"], "gradient_cameras": ["camera"], "dataset_kind": "folder"}
    figures = train_tower.train({**TOWER, **paths, **cameras, "steps": 1}, False)
    assert figures["light"] == 0.0  # of which the dataset tells nothing
    assert np.isfinite(figures["total"])


@pytest.fixture
def language(long_dataset, tower_run, tmp_path) -> dict:
    """A recipe of the second stage."""
    paths = {
        "dataset": long_dataset,
        "tower_run": tower_run,
        "cache": tower_run.parent / "cache",
        "out": tmp_path / "o",
    }
    return {**SMALL, **{key: str(path) for key, path in paths.items()}, "steps": 4, "checkpoint_every": 2}


def test_both_stages_run_and_write_a_vla_that_loads(tower_run, language, tmp_path) -> None:
    figures = json.loads((tower_run / "figures.json").read_text())
    assert {"dense", "numbers", "words", "waypoints", "light", "gaps", "images_per_s"} <= set(figures)
    train_planner.train({**language, "steps": 1, "pruned_by": "none"}, False)
    before, after = load_vla(tower_run / "vla"), load_vla(tmp_path / "o" / "vla")
    assert before.encoder_fingerprint == after.encoder_fingerprint
    stored = yaml.safe_load((tmp_path / "o" / "recipe.yaml").read_text())
    assert stored["kind"] == "vla_language" and stored["pruned_by"] == "none" and stored["warmup_steps"] == 200


def test_several_datasets_are_read_as_one(long_dataset, tower_run, language, tmp_path, monkeypatch) -> None:
    read = []
    monkeypatch.setattr(train_planner, "prepare", lambda *args: read.append(args[1]) or prepare(*args))
    other = write_dataset(tmp_path / "other", scenes=1, keyframes=12, masks=False)
    for table in [*(other / "v1.0-tiny").iterdir(), other / "splits.json"]:  # names of its own
        table.write_text(table.read_text().replace('"s0k', '"r0k').replace("scene-0", "road-0"))
    train_planner.train({**language, "steps": 1, "more_datasets": [str(other)]}, False)
    assert len(read[0]) == len(open_source(long_dataset, "train")) + len(open_source(other, "train"))


class _Cut(Exception):
    pass


def test_a_resumed_run_ends_like_an_unbroken_one(language, tmp_path, monkeypatch) -> None:
    whole = train_planner.train({**language, "out": str(tmp_path / "whole")}, False)
    forward, calls = train_planner.LanguagePlanner.forward, []

    def cut(planner, batch):
        calls.append(batch)
        if len(calls) == 4:  # as a power cut, in the step after the one that follows the checkpoint
            raise _Cut
        return forward(planner, batch)

    monkeypatch.setattr(train_planner.LanguagePlanner, "forward", cut)
    with pytest.raises(_Cut):
        train_planner.train(language, False)
    resumed = train_planner.train(language, True)
    assert len(calls) == 6  # the third step is done again
    assert {**resumed, "images_per_s": 0} == {**whole, "images_per_s": 0}
    ours, theirs = (load_file(tmp_path / name / "vla" / "model.safetensors") for name in ("o", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_resuming_needs_a_checkpoint(language, tmp_path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "notes.txt").write_text("mine")
    for stage in (train_planner, train_tower):
        recipe = (
            language if stage is train_planner else {**SMALL, "dataset": language["dataset"], "out": language["out"]}
        )
        with pytest.raises(TrainingError, match=r"o/checkpoint\.pt: no checkpoint to resume; start without --resume"):
            stage.train({key: value for key, value in recipe.items() if key != "tower_run"}, True)
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["notes.txt"]


def test_resuming_another_recipe_names_the_key(language, tmp_path) -> None:
    train_planner.train({**language, "steps": 1}, False)
    with pytest.raises(TrainingError, match=r"rate was 0\.001 in that run, now it is 0\.002; set it back"):
        train_planner.train({**language, "steps": 1, "rate": 2e-3}, True)
    assert (tmp_path / "o" / "vla" / "model.safetensors").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_keyframes(language, tmp_path, monkeypatch) -> None:
    forward = train_planner.LanguagePlanner.forward
    infinite = lambda planner, batch: {"words": forward(planner, batch)["words"] * float("inf")}  # noqa: E731
    monkeypatch.setattr(train_planner.LanguagePlanner, "forward", infinite)
    with pytest.raises(TrainingError, match=r"step 0: the loss is inf on the batch scene-\d+ s0k\d, scene-"):
        train_planner.train(language, False)
    assert not (tmp_path / "o" / "checkpoint.pt").exists()


def test_the_second_stage_needs_the_first(language, tmp_path) -> None:
    with pytest.raises(InputError, match=r"heads\.pt: missing; finish the training"):
        train_planner.train({**language, "tower_run": str(tmp_path / "none")}, False)


def test_an_unknown_recipe_key_is_named(tmp_path, capsys) -> None:
    path = tmp_path / "tower.yaml"
    path.write_text("kind: vla_tower\ndataset: d\nout: o\nstepps: 3\n")
    assert main(["train", str(path)]) == 1
    assert "tower.yaml: unknown key stepps; did you mean steps? known are dataset" in capsys.readouterr().err


def test_jitter_varies_each_keyframe_and_the_seed_decides_the_noise() -> None:
    pixels = torch.full((2, 1, 3, 8, 8), 100, dtype=torch.uint8)
    still = torch.tensor([[1.0, 1, 1, 1, 0, 0, 0]])
    assert torch.equal(jittered(pixels, still.expand(2, -1), 3), pixels)
    darker = torch.tensor([[1.0, 1, 1, 1, -20, 0, 0], [0.5, 1, 1, 1, 0, 0, 0]])
    assert jittered(pixels, darker, 3).flatten(1).float().mean(1).tolist() == [80, 114]
    red = torch.tensor([[1.0, 1.1, 1, 1, 0, 0, 0]])
    assert jittered(pixels[:1], red, 3)[0, 0, :, 0, 0].tolist() == [97, 100, 100]
    edge = torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8)
    edge[..., 4:] = 200
    assert 0 < int(jittered(edge, torch.tensor([[1.0, 1, 1, 1, 0, 1, 0]]), 3)[0, 0, 0, 0, 3]) < 200
    grainy = still.expand(2, -1).clone()
    grainy[:, -1] = 8
    first, again, other = (jittered(pixels, grainy, seed) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert 4 < float(first.float().std()) < 12


NO_PAST = (
    "<|im_start|>user\n{images}Past: [?????, ?????]. Speed: {speed}, acceleration: +00.0, yaw rate: {yaw_rate}. "
    "Command: {command}.<|im_end|>\n<|im_start|>assistant\n"
)


def test_another_prompt_is_trained_and_written_into_the_vla(language, tower_run, tmp_path, monkeypatch) -> None:
    seen = []
    forward = train_planner.LanguagePlanner.forward
    monkeypatch.setattr(
        train_planner.LanguagePlanner, "forward", lambda planner, batch: seen.append(batch) or forward(planner, batch)
    )
    train_planner.train({**language, "steps": 1, "prompt": NO_PAST}, False)
    vla = load_vla(tmp_path / "o" / "vla")
    assert vla.template == NO_PAST != load_vla(tower_run / "vla").template
    text = vla.tokenizer.decode(seen[0].text[0].tolist())
    assert "Past: [?????, ?????]. Speed: +" in text and "acceleration: +00.0" in text


def test_the_first_stage_takes_another_prompt_too(long_dataset, tmp_path, tower_run) -> None:
    paths = {"dataset": str(long_dataset), "out": str(tmp_path / "o"), "cache": str(tower_run.parent / "cache")}
    train_tower.train({**TOWER, **paths, "steps": 1, "prompt": NO_PAST}, False)
    assert load_vla(tmp_path / "o" / "vla").template == NO_PAST


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("{images}Past: {histories}.", "prompt: unknown marker {histories}; known are"),
        ("Speed: {speed}.", r"prompt: its image markers are missing; give {images}"),
        ("{images}Hello", "prompt: tokenizer.json does not give this text back"),
    ],
)
def test_a_prompt_that_the_vla_cannot_write_is_refused(language, prompt, text) -> None:
    with pytest.raises(RecipeError, match=text):
        train_planner.train({**language, "prompt": prompt}, False)


def test_the_second_stage_goes_on_from_a_vla_directory(language, start) -> None:
    """Without a run's heads."""
    out = Path(language["out"])
    train_planner.train({**language, "tower_run": "missing", "start": str(start), "steps": 1, "rate": 1e-9}, False)
    ours, theirs = (load_file(path / "model.safetensors") for path in (out / "vla", start))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
    assert (out / "heads.pt").exists()  # a run goes on from here


@pytest.fixture
def start(tiny_dir, tmp_path) -> Path:
    """A VLA directory with every file of a pruner, and a card."""
    folder = shutil.copytree(tiny_dir, tmp_path / "start")
    pruner = untrained_pruner(load_vla(folder))
    for name in (SHIPPED_PRUNER, *FILES.values()):
        save_pruner(folder / name, pruner, load_vla(folder).encoder_fingerprint)
    save_weights(folder / VIEW_WEIGHTS_FILE, dict.fromkeys(CAMERAS, 1.0))
    (folder / "README.md").write_text("figures of another VLA")
    return folder


def test_files_that_are_true_of_another_language_model_are_left_out_and_told(language, start, tmp_path, capsys) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"kind": "vla_language", **language, "start": str(start), "steps": 1}))
    assert main(["train", str(path), "--json", str(tmp_path / "figures.json")]) == 0
    figures, told = json.loads((tmp_path / "figures.json").read_text()), capsys.readouterr().err
    of_language = {"README.md", "tokenpacker.safetensors", "prune2drive.json", "reconpruner_plan.safetensors"}
    assert figures["left_out"].keys() == of_language
    written = tmp_path / "o" / "vla"
    for name, reason in figures["left_out"].items():
        assert f"{written}: without {name}: {reason}" in told and not (written / name).exists()
    of_tower = {"reconpruner.safetensors", "reconpruner_lite.safetensors", "camera_geometry.json", "tokenizer.json"}
    assert of_tower < {file.name for file in start.iterdir()} - of_language == {file.name for file in written.iterdir()}
    for name in ("reconpruner", "reconpruner-lite", "ring-view"):
        check_pruner(read_vla(written), name)


@pytest.mark.parametrize("beside", [False, True])
def test_a_vla_that_began_from_shards_has_its_own_weights_alone(language, start, beside) -> None:
    vla, whole = load_vla(start), (start / "model.safetensors").read_bytes()
    (start / "model.safetensors").unlink()
    vla.model.save_pretrained(start, max_shard_size="1MB")
    if beside:
        (start / "model.safetensors").write_bytes(whole)
    assert len(list(start.glob("model-*.safetensors"))) > 1
    train_planner.train({**language, "start": str(start), "steps": 1}, False)
    written = {file.name for file in (Path(language["out"]) / "vla").glob("model*")}
    assert written == {"model.safetensors"}


def test_a_share_of_changing_plans_that_the_data_do_not_have_is_refused(language) -> None:
    with pytest.raises(InputError, match=r"changing: 0\.5, but no plan of the dataset changes speed or direction"):
        train_planner.train({**language, "changing": 0.5}, False)


def test_samples_of_a_batch_that_keep_equally_many_tokens_have_the_losses_of_masked_ones(planner, monkeypatch) -> None:
    """Tokens that are left out cost nothing, and change nothing beside those that are masked."""
    rng = np.random.default_rng(0)
    keys = {"unpruned": 0.0, "drop": (0.6, 0.6), "pruned_alike": True, "pruned_by": "random"}
    kept = keep_some(rng.random((2, 192)), rng, LanguageRecipe("d", "o", **keys))
    assert kept.sum(1).tolist() == [76, 76] and not torch.equal(kept[0], kept[1])
    tokens, text = torch.randn(2, 192, 128), torch.zeros(2, len(planner.form) + 5, dtype=torch.int64)
    with torch.no_grad():
        short = planner.hidden(tokens, text, kept)
        mixed = planner.hidden(tokens.repeat(2, 1, 1), text.repeat(2, 1), torch.cat([kept, kept | True]))[:2]
    assert short.shape[1] == text.shape[1] - 116
    assert torch.allclose(short[:, -6:], mixed[:, -6:], atol=1e-4)


def test_one_number_of_tokens_is_drawn_for_a_batch_where_the_recipe_says_so() -> None:
    share = np.zeros((64, 192))
    counts = {}
    for alike in (False, True):
        recipe = LanguageRecipe("d", "o", unpruned=0.2, drop=(0.5, 0.7), pruned_alike=alike)
        draws = [keep_some(share, np.random.default_rng(seed), recipe).sum(1).numpy() for seed in range(60)]
        counts[alike] = np.array(draws)
    assert (np.ptp(counts[True], axis=1) == 0).all() and (np.ptp(counts[False], axis=1) > 0).all()
    for found in counts.values():
        assert ((found == 192) | ((found >= 57) & (found <= 97))).all()
        assert 0.05 < (found == 192).mean() < 0.4


def test_a_range_of_dropped_tokens_must_be_one() -> None:
    with pytest.raises(RecipeError, match=r"drop: \[0\.8, 0\.2\] is no range below 1; give the least, then the most"):
        parse_recipe(LanguageRecipe, {"dataset": "d", "out": "o", "drop": [0.8, 0.2]})
