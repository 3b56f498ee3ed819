"""What ``config.json`` says against the headers of the weights: each contradiction is named by field and file."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdrive_node.cli import main
from fastdrive_node.errors import ModelError
from fastdrive_node.families import MODEL_TYPES, PARTS, load_vla
from fastdrive_node.families.loading import read_config
from fastdrive_node.families.weights import weight_problems
from tests.families.tiny_vlas import build_family_vla


@pytest.fixture(scope="module", params=MODEL_TYPES)
def stored(request, tmp_path_factory):
    return build_family_vla(tmp_path_factory.mktemp("vla"), request.param)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return build_family_vla(tmp_path_factory.mktemp("vla"), "qwen2_5_vl")


def problems(folder, part=None, **changes):
    """What is found with other fields in ``config.json`` than in the checkpoint."""
    file = folder / "config.json"
    before = file.read_text()
    try:
        content = json.loads(before)
        fields = content if part is None else content[part]
        fields.update(changes)
        fields.pop("layer_types", None)
        file.write_text(json.dumps(content))
        return weight_problems(folder, *read_config(folder), PARTS)
    finally:
        file.write_text(before)


def test_a_checkpoint_fits_its_own_configuration(stored):
    assert weight_problems(stored, *read_config(stored), PARTS) == []


@pytest.mark.parametrize("layers", [2, 4])
def test_another_number_of_language_layers_is_named(stored, layers):
    (found,) = problems(stored, "text_config", num_hidden_layers=layers)
    assert found.endswith(f"config.json: text_config.num_hidden_layers {layers}: there are 3 in the weights")


def test_another_vocabulary_is_named(stored):
    (found,) = problems(stored, "text_config", vocab_size=4000)
    assert "config.json: text_config.vocab_size 4000: " in found and str(stored / "model.safetensors") in found


def test_another_number_of_key_and_value_heads_is_named(stored):
    (found,) = problems(stored, "text_config", num_key_value_heads=4 if stored_heads(stored) == 2 else 2)
    assert "text_config.num_key_value_heads" in found and "k_proj" in found


def stored_heads(folder):
    return json.loads((folder / "config.json").read_text())["text_config"]["num_key_value_heads"]


def test_another_inner_size_is_named_once_for_all_layers(stored):
    (found,) = problems(stored, "text_config", intermediate_size=100)
    assert "text_config.intermediate_size 100: " in found


def test_another_width_of_the_tower_is_the_only_problem(stored):
    found = problems(stored, "vision_config", hidden_size=256)
    assert [text for text in found if "vision_config.hidden_size 256: " in text] == found and len(found) == 1


def test_another_number_of_tower_layers_is_named(stored):
    content = json.loads((stored / "config.json").read_text())["vision_config"]
    name = "depth" if "depth" in content else "num_hidden_layers"
    (found,) = problems(stored, "vision_config", **{name: 5})
    assert f"vision_config.{name} 5: there are {content[name]} in the weights" in found


def test_fields_of_a_flat_configuration_have_their_own_names(qwen, tmp_path):
    folder = shutil.copytree(qwen, tmp_path / "flat")
    content = json.loads((folder / "config.json").read_text())
    content |= {**content.pop("text_config"), "model_type": "qwen2_5_vl", "vocab_size": 5000}
    (folder / "config.json").write_text(json.dumps(content))
    (found,) = weight_problems(folder, *read_config(folder), PARTS)
    assert "config.json: vocab_size 5000: " in found


def test_a_width_that_is_wrong_explains_what_follows_from_it(qwen):
    text = {"num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 32}
    rope = json.loads((qwen / "config.json").read_text())["text_config"]["rope_parameters"]
    found = problems(qwen, "text_config", **text, rope_parameters={**rope, "mrope_section": [2, 3, 3]})
    assert len([text for text in found if "text_config.hidden_size 32: " in text]) == 1 == len(found)


def test_loading_refuses_with_the_same_words_and_check_tells_all_of_them(qwen, tmp_path, capsys):
    folder = shutil.copytree(qwen, tmp_path / "vla")
    content = json.loads((folder / "config.json").read_text())
    changed = {"num_hidden_layers": 5, "layer_types": None, "vocab_size": 4000, "intermediate_size": 100}
    content["text_config"] |= changed
    content["vision_config"] |= {"depth": 3}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="num_hidden_layers 5: there are 3"):
        load_vla(folder)
    assert main(["vla", "check", str(folder)]) == 1
    told = capsys.readouterr().err
    for field in ("num_hidden_layers 5", "vocab_size 4000", "intermediate_size 100", "depth 3"):
        assert field in told, field


@pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.bool])
def test_weights_that_are_no_floats_are_refused_by_name(qwen, tmp_path, dtype):
    folder = shutil.copytree(qwen, tmp_path / "vla")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))
    save_file({**weights, name: weights[name].to(dtype)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=rf"model\.safetensors: {name}: is (I32|I8|BOOL), but weights are"):
        load_vla(folder)
