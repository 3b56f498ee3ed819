"""Faults in ``config.json``: one error that names the file and the field and says what may stand there."""

import json
import math
import shutil

import pytest

from fastdrive_node.errors import ModelError
from fastdrive_node.families import MODEL_TYPES
from fastdrive_node.families.loading import read_config
from tests.families.hub_checkpoint import FLAT
from tests.families.tiny_vlas import build_family_vla


@pytest.fixture
def flat(tmp_path):
    def refused(change) -> str:
        content = json.loads(json.dumps(FLAT))
        change(content)
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(ModelError) as error:
            read_config(tmp_path)
        return str(error.value).removeprefix(f"{tmp_path / 'config.json'}: ")

    return refused


def test_a_checkpoints_configuration_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FLAT))
    assert read_config(tmp_path)[1].text_config.num_hidden_layers == 2


@pytest.mark.parametrize(
    "field,value,told",
    [
        ("num_attention_heads", 0, "num_attention_heads: 0: give a whole number from 1 to 1024"),
        ("num_attention_heads", 3, "num_key_value_heads|num_attention_heads: 3: give a divisor of hidden_size (32)"),
        ("num_key_value_heads", 4, "num_key_value_heads: 4: give a divisor of num_attention_heads (2)"),
        ("hidden_size", -32, "hidden_size: -32: give a whole number from 1 to 131072"),
        ("hidden_size", "32", "hidden_size: '32': give a whole number"),
        ("vocab_size", True, "vocab_size: True: give a whole number"),
        ("num_hidden_layers", 2.0, "num_hidden_layers: 2.0: give a whole number"),
        ("rms_norm_eps", math.nan, "rms_norm_eps: nan: give a number from 1e-12 to 1"),
        ("rms_norm_eps", "1e-6", "rms_norm_eps: '1e-6': give a number"),
        ("rope_theta", 0, "rope_theta: 0: give a number from 1 to 1e+12"),
        ("hidden_act", "sillu", "hidden_act: 'sillu': give an activation of transformers, such as silu"),
        ("hidden_act", ["silu"], "hidden_act: ['silu']: give an activation"),
        ("rope_scaling", [2, 3, 3], "rope_scaling: [2, 3, 3]: give an object"),
        ("rope_scaling", {"type": "mropes"}, "rope_scaling.type: 'mropes': give one of default, mrope"),
        ("rope_scaling", {"type": []}, "rope_scaling.type: []: give one of"),
        ("rope_scaling", {"type": "mrope", "mrope_section": [2, 6]}, "rope_scaling.mrope_section: [2, 6]: give three"),
        ("rope_scaling", {"type": "mrope", "mrope_section": "2"}, "rope_scaling.mrope_section: '2': give three whole"),
        ("rope_scaling", {"type": "mrope", "mrope_section": [2, 3, 4]}, "rope_scaling.mrope_section: [2, 3, 4]: give"),
        ("rope_scaling", {"type": "mrope"}, "rope_scaling.mrope_section: None: give three numbers whose sum is 8"),
        ("layer_types", ["full_attention"], "layer_types: give a list with one kind for each of the 2 layers"),
        ("vision_config", [], "vision_config: []: give an object"),
        ("text_config", 7, "text_config: 7: give an object"),
        ("torch_dtype", "bfloat17", "torch_dtype: 'bfloat17': give a dtype of torch"),
    ],
)
def test_a_wrong_field_is_named_with_what_may_stand_there(flat, field, value, told):
    assert flat(lambda content: content.update({field: value})).startswith(tuple(told.split("|"))[-1])


@pytest.mark.parametrize(
    "field,value,told",
    [
        ("num_heads", 0, "vision_config.num_heads: 0: give a whole number"),
        ("num_heads", 3, "vision_config.num_heads: 3: give a divisor of vision_config.hidden_size (32)"),
        ("patch_size", 0, "vision_config.patch_size: 0: give a side in px"),
        ("fullatt_block_indexes", "1", "vision_config.fullatt_block_indexes: '1': give a list"),
        ("hidden_act", "gelou", "vision_config.hidden_act: 'gelou': give an activation of transformers, such as gelu"),
    ],
)
def test_a_wrong_field_of_the_tower_is_named(flat, field, value, told):
    assert flat(lambda content: content["vision_config"].update({field: value})).startswith(told)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_familys_own_configuration_passes_and_its_nested_fields_are_looked_at(tmp_path, model_type):
    folder = build_family_vla(tmp_path / "vla", model_type)
    assert read_config(folder)[0].model_type == model_type
    content = json.loads((folder / "config.json").read_text())
    content["text_config"]["num_attention_heads"] = 0
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"config\.json: text_config\.num_attention_heads: 0: give a whole number"):
        read_config(folder)
