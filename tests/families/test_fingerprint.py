import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdrive_node.errors import ModelError
from fastdrive_node.families import load_vla
from fastdrive_node.families.fingerprint import directory_fingerprint, encoder_fingerprint, tensors_fingerprint
from tests.generation import QWEN


@pytest.fixture
def weights(tiny_dir):
    return load_file(tiny_dir / "model.safetensors")


def write(folder, weights):
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return encoder_fingerprint(folder, QWEN.encoder_prefixes)


def test_it_is_that_of_the_tower_in_memory(tiny_vla):
    assert tiny_vla.encoder_fingerprint == tensors_fingerprint(tiny_vla.model.model.visual.state_dict().items())


def test_it_does_not_change_with_the_language_half(tmp_path, tiny_dir, weights):
    weights["model.norm.weight"] += 1
    assert write(tmp_path, weights) == encoder_fingerprint(tiny_dir, QWEN.encoder_prefixes)


def test_it_changes_with_one_value_of_the_tower(tmp_path, tiny_dir, weights):
    weights["visual.merger.ln_q.weight"][3] += 1e-3
    assert write(tmp_path, weights) != encoder_fingerprint(tiny_dir, QWEN.encoder_prefixes)


def test_it_notices_that_a_file_was_replaced(tmp_path, weights):
    before = write(tmp_path, weights)
    weights["visual.merger.ln_q.weight"] *= 2
    weights["model.language_model.extra"] = torch.zeros(1)
    assert write(tmp_path, weights) != before


def test_checkpoints_may_name_the_tower_inside_of_the_model(tmp_path, tiny_dir, weights):
    renamed = {f"model.{name}" if name.startswith("visual.") else name: tensor for name, tensor in weights.items()}
    assert write(tmp_path, renamed) == encoder_fingerprint(tiny_dir, QWEN.encoder_prefixes)


def test_weights_in_shards_have_the_same_one(tmp_path, tiny_dir, weights):
    names = sorted(weights)
    save_file({name: weights[name] for name in names[::2]}, tmp_path / "model-1.safetensors")
    save_file({name: weights[name] for name in names[1::2]}, tmp_path / "model-2.safetensors")
    assert encoder_fingerprint(tmp_path, QWEN.encoder_prefixes) == encoder_fingerprint(tiny_dir, QWEN.encoder_prefixes)


def test_no_tower_is_an_error(tmp_path):
    with pytest.raises(ModelError, match=r"visual"):
        write(tmp_path, {"other": torch.zeros(1)})


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match=r"model\.safetensors: not a readable safetensors file"):
        encoder_fingerprint(tmp_path, QWEN.encoder_prefixes)


def test_that_of_a_directory_changes_with_the_language_model_and_with_vla_json(tmp_path, tiny_dir, weights):
    shutil.copytree(tiny_dir, tmp_path / "copy")
    copy = tmp_path / "copy"
    before = directory_fingerprint(copy)
    assert before == directory_fingerprint(tiny_dir)
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    changed = directory_fingerprint(copy)
    assert changed != before
    content = (copy / "vla.json").read_text()
    (copy / "vla.json").write_text(content + " ")
    assert directory_fingerprint(copy) != changed


@pytest.mark.parametrize(
    ("name", "decides"),
    [
        ("prompt.txt", True),
        ("tokenizer.json", True),
        ("chat_template.jinja", True),
        ("README.md", False),
        ("reconpruner_plan.safetensors", False),
        ("prune2drive.json", False),
        ("camera_geometry.json", False),
        ("vision.onnx", False),
        ("vision.onnx.json", False),
    ],
)
def test_that_of_a_directory_changes_only_with_files_that_decide_the_answers(tmp_path, tiny_dir, name, decides):
    copy = shutil.copytree(tiny_dir, tmp_path / "copy")
    (copy / "vision.onnx").touch()
    before = directory_fingerprint(copy)
    (copy / name).write_text("other")
    assert (directory_fingerprint(copy) != before) == decides


def test_a_pruner_beside_the_weights_has_no_part_in_that_of_the_encoder(tmp_path, tiny_dir):
    copy = shutil.copytree(tiny_dir, tmp_path / "copy")
    (copy / "another.safetensors").write_bytes(b"damaged")
    assert encoder_fingerprint(copy, QWEN.encoder_prefixes) == encoder_fingerprint(tiny_dir, QWEN.encoder_prefixes)


def test_a_shard_that_the_index_names_and_that_is_missing_is_told(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    with pytest.raises(ModelError, match=r"model-1\.safetensors: cannot be read"):
        directory_fingerprint(tmp_path)


def test_an_index_beside_a_whole_file_which_is_loaded_has_no_part_in_that_of_the_encoder(tmp_path, tiny_dir):
    copy = shutil.copytree(tiny_dir, tmp_path / "copy")
    save_file({"model.visual.a": torch.zeros(1)}, copy / "model-1.safetensors")
    (copy / "model.safetensors.index.json").write_text('{"weight_map": {"model.visual.a": "model-1.safetensors"}}')
    assert load_vla(copy).encoder_fingerprint == encoder_fingerprint(tiny_dir, QWEN.encoder_prefixes)


@pytest.mark.parametrize("name", ["../model-1.safetensors", "..", "", "a\\u0000"])
def test_an_index_that_names_no_file_of_the_directory_is_refused(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(f'{{"weight_map": {{"a": "{name}"}}}}')
    with pytest.raises(ModelError, match="weight_map: names a file outside of the directory"):
        directory_fingerprint(tmp_path)


def test_folders_that_are_named_as_files_have_no_part_in_that_of_a_directory(tmp_path, tiny_dir):
    copy = shutil.copytree(tiny_dir, tmp_path / "copy")
    (copy / "more.json").mkdir()
    assert directory_fingerprint(copy) == directory_fingerprint(tiny_dir)
