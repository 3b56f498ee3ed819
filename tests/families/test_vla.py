import json
import logging
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdrive_node.errors import ModelError
from fastdrive_node.families import LANGUAGE, load_vla
from fastdrive_node.families.spec import spec_json
from fastdrive_node.planning.answer_format import TextAnswer
from fastdrive_node.types import CAMERAS
from fastdrive_training.vla.tiny_model import build_tiny_vla, tiny_spec
from tests.generation import SHALLOW


@pytest.fixture
def broken(tiny_dir, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(tiny_dir, tmp_path / "vla")


def edit_json(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_tiny_vla_loads_for_inference(tiny_vla):
    assert tiny_vla.spec == tiny_spec()
    assert tiny_vla.spec.cameras == CAMERAS
    assert (tiny_vla.grid, tiny_vla.tokens, tiny_vla.width) == ((4, 8), 192, 128)
    assert not tiny_vla.model.training and not any(p.requires_grad for p in tiny_vla.model.parameters())
    assert len(tiny_vla.tokenizer) == 2048
    ends = {tiny_vla.tokenizer.decode([token]) for token in TextAnswer(tiny_vla).stop_ids}
    assert ends == {
        "<|im_end|>",
        "</PLANNING>",
    }


def test_the_seed_gives_the_weights(tiny_dir, tmp_path):
    same, other = (build_tiny_vla(tmp_path / str(seed), seed, SHALLOW) for seed in (0, 1))
    name = "model.safetensors"
    assert (same / name).read_bytes() == (tiny_dir / name).read_bytes() != (other / name).read_bytes()


def test_the_language_model_is_tied_and_positions_fit_the_heads(tiny_vla):
    model = tiny_vla.model
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert sum(model.config.text_config.rope_parameters["mrope_section"]) == 16


def test_it_loads_in_another_dtype_with_the_same_fingerprint(tiny_dir, tiny_vla):
    half = load_vla(tiny_dir, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.encoder_fingerprint == tiny_vla.encoder_fingerprint


@pytest.mark.parametrize("name", ["vla.json", "prompt.txt", "config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(broken, name):
    (broken / name).unlink()
    with pytest.raises(ModelError, match=rf"{name}: missing; (a VLA directory needs|write it with)"):
        load_vla(broken)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(ModelError, match="nowhere: no such VLA directory"):
        load_vla(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["vla.json", "config.json", "model.safetensors", "tokenizer.json", "prompt.txt"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe{", b'{"a": [1, 2'], ids=["empty", "binary", "cut"])
def test_a_damaged_file_is_named(broken, name, content):
    (broken / name).write_bytes(content)
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load_vla(broken)


def test_weights_that_are_cut_off_are_named(broken):
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"model\.safetensors: not a readable safetensors file"):
        load_vla(broken)


def test_pickled_weights_are_not_read(broken):
    torch.save(load_file(broken / "model.safetensors"), broken / "pytorch_model.bin")
    (broken / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors: missing"):
        load_vla(broken)


def test_code_beside_the_weights_is_not_run(broken, tmp_path):
    mark = tmp_path / "ran"
    (broken / "modeling_evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    edit_json(broken / "config.json", lambda c: c.update(auto_map={"AutoModel": "modeling_evil.Evil"}))
    load_vla(broken)
    assert not mark.exists()


def test_missing_weights_are_named_and_not_drawn_by_chance(broken):
    weights = load_file(broken / "model.safetensors")
    del weights["visual.blocks.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"missing keys in the weights: .*blocks\.1\.mlp\.up_proj"):
        load_vla(broken)


def test_weights_of_another_size_are_refused(broken):
    edit_json(broken / "config.json", lambda c: c["text_config"].update(intermediate_size=400))
    with pytest.raises(ModelError, match=r"do not fit config\.json"):
        load_vla(broken)


def test_another_model_type_is_refused(broken):
    edit_json(broken / "config.json", lambda c: c.update(model_type="llama"))
    with pytest.raises(ModelError, match="model_type: 'llama' is not supported; use qwen2_5_vl"):
        load_vla(broken)


@pytest.mark.parametrize(
    "change,field",
    [
        (lambda d: d.pop("answer"), "answer: is missing"),
        (lambda d: d.update(format=2), "format: 2: must be 1"),
        (lambda d: d.update(cameras=[]), "cameras"),
        (lambda d: d.update(cameras=["../x"]), r"cameras\.0: "),
        (lambda d: d["answer"].update(points="six"), r"answer\.points: 'six': must be a valid integer"),
        (lambda d: d["answer"].update(points=10**9), r"answer\.points"),
        (lambda d: d["answer"].update(interval_s=0), r"answer\.interval_s"),
        (lambda d: d["answer"].update(interval_s=1e-300), r"answer\.interval_s"),
        (lambda d: d["history"].update(steps=[0, 0, 0]), r"history\.steps: \[0, 0, 0\]: a step is there twice"),
        (lambda d: d["answer"].update(max_new_tokens=10), r"answer\.max_new_tokens: 10 is too few"),
        (lambda d: d["answer"].update(preamble="<PLANNING>Zebra: "), "does not give this text back"),
        (lambda d: d["history"].update(step=1), r"history\.step: 1: is no field here"),
        (lambda d: d["history"].update(item="{x.__class__}{z}"), r"history\.item: unknown marker \{x\.__class__\}"),
        (lambda d: d["image_size"].update(width=225), r"image_size\.width: 225 is not a multiple of 28 px"),
        (lambda d: d.update(prompt="../../etc/passwd"), "prompt"),
        (lambda d: d.update(camera_item="{camera}"), r"camera_item: the marker \{image\} is missing"),
        (lambda d: d.update(frame="enu"), "frame"),
    ],
)
def test_a_wrong_field_of_vla_json_is_named(broken, change, field):
    edit_json(broken / "vla.json", change)
    with pytest.raises(ModelError, match=field):
        TextAnswer(load_vla(broken))


@pytest.mark.parametrize(
    "template,reason",
    [
        ("{images}{weather}", r"prompt\.txt: unknown marker \{weather\}"),
        ("Past: {history}", r"prompt\.txt: its image markers are missing; give"),
        ("{images}zebra", r"prompt\.txt: tokenizer\.json does not give this text back"),
        ("{images}<|image_pad|>", "image tokens"),
    ],
)
def test_a_wrong_prompt_template_is_named(broken, template, reason):
    (broken / "prompt.txt").write_text(template)
    with pytest.raises(ModelError, match=reason):
        load_vla(broken)


def test_a_tokenizer_of_another_model_is_refused(broken):
    edit_json(broken / "config.json", lambda c: c.update(image_token_id=7))
    with pytest.raises(ModelError, match=r"<\|image_pad\|> is not token 7"):
        load_vla(broken)


def test_a_tokenizer_that_cuts_or_pads_texts_encodes_them_whole(broken, tiny_vla):
    file = broken / "tokenizer.json"
    content = json.loads(file.read_text())
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<|im_end|>",
    }  # fmt: skip
    file.write_text(json.dumps(content))
    text = "Speed: 5.2, acceleration: 0.1"
    ids = load_vla(broken).encode_text(text)
    assert 3 < len(ids) < 50 and ids == tiny_vla.tokenizer.encode(text, add_special_tokens=False)


def test_a_weight_index_cannot_name_files_elsewhere(broken):
    index = {"metadata": {}, "weight_map": {"a": "../../secret.safetensors"}}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    (broken / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="weight_map: names a file outside"):
        load_vla(broken)


def test_the_spec_survives_its_file(tiny_vla):
    assert spec_json(tiny_vla.spec) == json.loads((tiny_vla.path / "vla.json").read_text())


def test_fields_with_defaults_may_be_left_out(broken):
    def shorten(data):
        data.pop("commands"), data.pop("numbers")
        data["answer"].pop("number")
        data["answer"].update(max_new_tokens=200)  # plain numbers have a token per digit
        data["history"].update(steps=[])

    edit_json(broken / "vla.json", shorten)
    spec = load_vla(broken).spec
    assert spec.answer.number.integer_digits == 0 and spec.history.steps == ()


def test_loading_without_the_tower_writes_nothing_to_stderr(tiny_dir, capfd, monkeypatch):
    handler = next(h for h in logging.getLogger("transformers").handlers if type(h) is logging.StreamHandler)
    monkeypatch.setattr(handler, "stream", sys.stderr)  # it holds that of its import
    load_vla(tiny_dir, parts=frozenset({LANGUAGE}))
    assert capfd.readouterr().err == ""
