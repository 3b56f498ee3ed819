import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fastdrive_node import files
from fastdrive_node.cli import main
from fastdrive_node.errors import InputError, ModelError
from fastdrive_node.planning import loading as models
from fastdrive_node.planning.answer_format import format_answer
from fastdrive_node.pruning.checkpoint import save_pruner
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.types import CAMERAS
from tests.generation import answer_with


@pytest.fixture
def images(tmp_path):
    """Six files whose alphabetical order is not the camera order."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index, camera in enumerate(CAMERAS):
        pixels = np.random.default_rng(index).integers(0, 256, (112, 224, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"n015__{camera}__153240.png")
    return sorted(folder.iterdir())


@pytest.fixture
def driving(monkeypatch, tiny_vla):
    """The language model answers with a plan, whatever it sees."""
    text = format_answer([[4.0 * k, 0.0] for k in range(1, 7)], tiny_vla.spec.answer)
    answer_with(monkeypatch, text)


@pytest.fixture
def vla_with_pruner(tiny_dir, tiny_vla, tmp_path):
    folder = shutil.copytree(tiny_dir, tmp_path / "vla")
    torch.manual_seed(0)
    pruner = ReconPruner(tiny_vla.family, tiny_vla.config.text_config)
    save_pruner(folder / models.SHIPPED_PRUNER, pruner, tiny_vla.encoder_fingerprint)
    return folder


def plan(*arguments):
    return main(["plan", *map(str, arguments)])


def refusal(capsys, *arguments):
    assert plan(*arguments) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("fastdrive plan: ") and "\n" not in error
    return error


def test_six_images_become_a_plan_and_a_picture(images, tiny_dir, driving, tmp_path, capsys):
    picture = tmp_path / "plan.png"
    assert plan(*images, "--vla", tiny_dir, "--speed", 8, "--command", "left", "--json", "-", "--picture", picture) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["waypoints"] == [[4.0 * k, 0.0] for k in range(1, 7)] and result["dt_s"] == 0.5
    assert result["total_tokens"] == result["kept_tokens"] == 192 and result["mode"] == "nominal"
    assert set(result["stage_ms"]) >= {"load", "encode", "prefill", "decode", "total"}
    assert "192 of 192 visual tokens" in captured.err
    assert Image.open(picture).width > 1000


def test_the_plan_is_printed_for_people(images, tiny_dir, driving, capsys):
    assert plan(*images, "--vla", tiny_dir, "--speed", 8) == 0
    assert "    3.0   24.00    0.00" in capsys.readouterr().out


@pytest.mark.parametrize("arguments,kept", [((), 96), (("--drop", 0.75), 48), (("--drop", 0), 192)])
def test_the_pruner_beside_the_vla_is_used(images, vla_with_pruner, driving, tmp_path, arguments, kept):
    out = tmp_path / "plan.json"
    assert plan(*images, "--vla", vla_with_pruner, "--speed", 8, "--json", out, *arguments) == 0
    assert json.loads(out.read_text())["kept_tokens"] == kept


def test_speed_and_command_reach_the_prompt(images, tiny_dir, driving, monkeypatch):
    from fastdrive_node.planning import generator

    texts, build = [], generator.build_prompt
    monkeypatch.setattr(generator, "build_prompt", lambda *a: texts.append(build(*a).text) or build(*a))
    assert plan(*images, "--vla", tiny_dir, "--speed", 8.3, "--command", "right") == 0
    assert "Past: [?????, ?????]" in texts[-1] and "Speed: +08.3" in texts[-1] and "Command: right." in texts[-1]


def test_named_images_are_put_in_camera_order(images):
    from fastdrive_node.commands.plan import order_images

    ordered = order_images(images, CAMERAS)
    assert [file.name.split("__")[1] for file in ordered] == list(CAMERAS)


def test_images_without_camera_names_keep_their_order(tmp_path):
    from fastdrive_node.commands.plan import order_images

    files = [tmp_path / f"{index}.png" for index in (3, 1, 2, 0, 5, 4)]
    assert order_images(files, CAMERAS) == files


def test_names_that_leave_a_camera_without_image_are_refused(images):
    from fastdrive_node.commands.plan import order_images

    others = [file for file in images if "CAM_BACK__" not in file.name]
    for extra in (others[0], others[0].with_name("rear.png")):
        files = [*others, extra]
        with pytest.raises(InputError, match="no image name holds CAM_BACK, though others"):
            order_images(files, CAMERAS)


def test_another_number_of_images_is_refused(images, tiny_dir, capsys):
    assert "5 images for 6 cameras; give one each of CAM_FRONT," in refusal(capsys, *images[:5], "--vla", tiny_dir)


def test_a_truncated_image_is_refused_with_its_camera_and_file(images, tiny_dir, capsys):
    file = images[0]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    error = refusal(capsys, *images, "--vla", tiny_dir)
    assert "CAM_BACK" in error and file.name in error and "not a readable image" in error


@pytest.mark.parametrize("size", [(1, 1), (224, 13)])
def test_an_image_smaller_than_a_token_is_refused_before_the_model_is_loaded(
    images, tiny_dir, capsys, monkeypatch, size
):
    monkeypatch.setattr(models, "load_vla", None)  # a call would be a TypeError
    Image.new("RGB", size).save(images[3])
    error = refusal(capsys, *images, "--vla", tiny_dir)
    assert f"{images[3]}: {size[0]}x{size[1]} px is less than the 28x28 px of one visual token" in error


def test_a_missing_image_is_refused(images, tiny_dir, capsys):
    images[2].unlink()
    assert "not a readable image (no such file)" in refusal(capsys, *images, "--vla", tiny_dir)


def test_a_missing_vla_is_refused(images, tmp_path, capsys):
    assert "nowhere: no such VLA directory" in refusal(capsys, *images, "--vla", tmp_path / "nowhere")


def test_a_missing_pruner_is_refused(images, tiny_dir, tmp_path, capsys):
    arguments = (*images, "--vla", tiny_dir, "--pruner", tmp_path / "none.safetensors")
    assert "none.safetensors: no such pruner file" in refusal(capsys, *arguments)


def test_dropping_without_a_pruner_is_refused(images, tiny_dir, capsys):
    error = refusal(capsys, *images, "--vla", tiny_dir, "--drop", 0.5)
    assert "drop 0.5 needs a pruner" in error and "has no reconpruner.safetensors" in error


WRONG = [("--command", "up"), ("--drop", "1.5"), ("--drop", "nan"), ("--speed", "nan"), ("--speed", "1e9")]


@pytest.mark.parametrize("arguments", WRONG)
def test_an_unknown_value_is_wrong_usage(images, arguments):
    with pytest.raises(SystemExit) as stopped:
        plan(*images, *arguments)
    assert stopped.value.code == 2


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        plan("--help")
    assert stopped.value.code == 0 and "examples:" in capsys.readouterr().out


def test_the_shipped_vla_is_found_in_a_checkout(tmp_path, monkeypatch):
    place = tmp_path / "models" / "tiny"
    place.mkdir(parents=True)
    (place / "vla.json").touch()
    monkeypatch.setattr(files, "__file__", str(tmp_path / "fastdrive_node" / "files.py"))
    assert models.default_vla_dir() == place


def test_the_shipped_vla_is_found_in_an_installation(tmp_path, monkeypatch):
    place = tmp_path / "share" / "fastdrive_node" / "models" / "tiny"
    place.mkdir(parents=True)
    (place / "vla.json").touch()
    module = tmp_path / "lib" / "python3.11" / "site-packages" / "fastdrive_node" / "files.py"
    monkeypatch.setattr(files, "__file__", str(module))
    assert models.default_vla_dir() == place


def test_without_a_shipped_vla_a_directory_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "__file__", str(tmp_path / "a" / "files.py"))
    with pytest.raises(ModelError, match="give a VLA directory with --vla"):
        models.default_vla_dir()
