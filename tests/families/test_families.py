"""What every family must do, whatever its model: the oracles are transformers' own ``generate`` and attention mask."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdrive_node.errors import ModelError
from fastdrive_node.families import (
    LANGUAGE,
    MODEL_TYPES,
    PARTS,
    VISION,
    LayeredLanguageModel,
    Vla,
    build_prompt,
    load_vla,
    prune_prompt,
)
from fastdrive_node.families.common.language import TransformersLanguage
from fastdrive_node.planning.generator import Generator
from fastdrive_node.pruning.baselines.simple import NoPruner
from fastdrive_node.pruning.pruner import PruningContext, Selection
from tests.families.checks import answer, by_masking, by_transformers, images_of, scene_of, some_kept
from tests.families.tiny_vlas import SPACE, TINY, build_family_vla, llama_tokenizer


@pytest.fixture(scope="module", params=MODEL_TYPES)
def vla(request, tmp_path_factory) -> Vla:
    return load_vla(build_family_vla(tmp_path_factory.mktemp("vla"), request.param))


@pytest.fixture(scope="module")
def scene(vla, ego_history):
    return scene_of(vla, ego_history)


def test_every_family_has_a_tiny_vla():
    assert set(TINY) == set(MODEL_TYPES)


def test_nothing_pruned_gives_the_answer_of_transformers_generate(vla, scene):
    images, visual, prompt = scene
    expected = by_transformers(vla, images, prompt)
    assert len(set(expected)) > 4, "the model must say something for this test to mean anything"
    assert answer(vla, visual, prompt) == expected


def test_in_bfloat16_the_answer_is_that_of_transformers_too(vla, ego_history):
    if isinstance(vla.torch_language(), LayeredLanguageModel):
        pytest.skip("its own tower rounds in another order")
    half = load_vla(vla.path, dtype=torch.bfloat16)
    images, visual, prompt = scene_of(half, ego_history)
    assert visual.rows.dtype == torch.bfloat16
    assert answer(half, visual, prompt) == by_transformers(half, images, prompt)


def test_past_images_give_the_answer_of_transformers_too(vla, tmp_path, ego_history):
    folder = shutil.copytree(vla.path, tmp_path / "vla")
    spec = json.loads((folder / "vla.json").read_text())
    (folder / "vla.json").write_text(json.dumps({**spec, "frames": {"count": 2, "interval_s": 0.5}}))
    past = load_vla(folder)
    images, visual, prompt = scene_of(past, ego_history)
    assert visual.total == past.tokens == 2 * vla.tokens
    assert answer(past, visual, prompt) == by_transformers(past, images, prompt)


@pytest.mark.parametrize("share", [0.7, 0.2])
def test_dropped_tokens_are_as_masked_ones(vla, scene, share):
    _, visual, prompt = scene
    kept = some_kept(vla, int(share * vla.tokens))
    ours = answer(vla, visual, prompt, kept)
    assert ours == by_masking(vla, visual, prompt, kept, len(ours))
    assert ours != answer(vla, visual, prompt), "the pruned answer must differ for this test to mean anything"


def test_a_pruned_prompt_keeps_its_positions(vla, scene):
    *_, prompt = scene
    pruned = prune_prompt(prompt, some_kept(vla, 5))
    assert pruned.next_position == int(prompt.position_ids.max()) + 1
    assert torch.equal(pruned.position_ids[:, -1], prompt.position_ids[:, -1])
    assert len(pruned) == len(prompt) - vla.tokens + 5


def test_the_first_decoded_token_has_the_position_behind_the_full_prompt(vla, scene, monkeypatch):
    _, visual, prompt = scene
    generator, seen = Generator(vla), []
    inputs = generator.language.position_inputs

    def record(position_ids):
        seen.append(position_ids)
        return inputs(position_ids)

    monkeypatch.setattr(generator.language, "position_inputs", record)
    selection = Selection(some_kept(vla, 5))
    generator.generate(NoPruner(), [PruningContext(visual)], [prompt], vla.tokens, [selection])
    assert seen[-1][:, 0, 0].tolist() == [int(prompt.position_ids.max()) + 1] * len(prompt.position_ids)


def test_a_familys_own_language_path_equals_the_one_of_transformers(vla, scene):
    _, visual, prompt = scene
    own, kept = vla.torch_language(), some_kept(vla, vla.tokens // 2)
    if isinstance(own, TransformersLanguage):
        pytest.skip("it has no other path")
    common = TransformersLanguage(vla, len(visual.layer_features))
    assert answer(vla, visual, prompt, kept, own) == answer(vla, visual, prompt, kept, common)


def test_a_batch_gives_the_answers_of_one_by_one(vla, scene, ego_history):
    _, visual, prompt = scene
    _, other, _ = scene_of(vla, ego_history, seed=1)
    kept = [some_kept(vla, 9, seed=1), some_kept(vla, 9, seed=2)]
    alone = [answer(vla, each, prompt, one) for each, one in zip((visual, other), kept, strict=True)]
    contexts = [PruningContext(visual), PruningContext(other)]
    both = Generator(vla).generate(NoPruner(), contexts, [prompt, prompt], vla.tokens, list(map(Selection, kept)))
    assert [each.answer.ids for each in both] == alone and alone[0] != alone[1]


def test_forced_logits_are_those_that_the_answer_was_chosen_from(vla, scene):
    _, visual, prompt = scene
    generator, kept = Generator(vla), some_kept(vla, 9)
    ids = answer(vla, visual, prompt, kept)
    prefilled = generator.prefill(NoPruner(), [prompt], [visual], [kept], 9)
    for _ in range(2):  # a second time over the same cache
        assert tuple(generator.forced_logits(prefilled, ids).argmax(dim=-1).tolist()) == ids


def test_an_image_is_read_at_the_vlas_size_whatever_it_had(vla):
    vision = vla.torch_vision()
    large = [image.repeat(3, axis=0).repeat(2, axis=1) for image in images_of(vla)]
    assert vision.preprocess(large).shape == vision.preprocess(images_of(vla)).shape


@torch.inference_mode()
def test_a_cameras_tokens_depend_on_its_own_image_alone(vla):
    """What ``SeparableVision`` says; sums may be rounded in another order where the number of images is another."""
    vision = vla.torch_vision()
    images = images_of(vla)
    others = [images[0], *(255 - image for image in images[1:])]
    ((backend, cameras, inputs),) = vision.groups(vision.preprocess(images))
    whole, changed = (vision.encode(vision.preprocess(each)) for each in (images, others))
    some = backend.encode(inputs[[2, 0]])
    assert list(cameras) == [0, 1, 2] and some.grid[0] == 2
    own, tokens = whole.raster(), len(whole.rows) // 3
    assert torch.equal(changed.raster()[0], own[0]) and not torch.equal(changed.raster()[1], own[1])
    assert torch.allclose(some.raster(), own[[2, 0]], atol=1e-4)
    for ours, theirs in zip(whole.layer_features, changed.layer_features, strict=True):
        assert torch.equal(ours[:tokens], theirs[:tokens]) and not torch.equal(ours[tokens:], theirs[tokens:])


def without(vla: Vla, folder, prefixes: tuple[str, ...]):
    """A copy of a VLA directory whose file lacks the weights with these prefixes."""
    for file in vla.path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(prefixes)}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_without_the_vision_part_no_weights_of_the_encoder_are_needed(vla, tmp_path, ego_history):
    folder = without(vla, tmp_path, vla.family.encoder_prefixes)
    with pytest.raises(ModelError, match="missing keys in the weights"):
        load_vla(folder)
    bare = load_vla(folder, parts=PARTS - {VISION})
    stored = bare.model.state_dict()
    assert not [name for name in stored if name.startswith(bare.family.encoder_prefixes)]
    assert all(torch.equal(tensor, stored[name]) for name, tensor in vla.model.state_dict().items() if name in stored)
    assert torch.equal(build_prompt(bare, ego_history).position_ids, build_prompt(vla, ego_history).position_ids)


def test_without_the_language_part_no_weights_of_its_layers_are_needed(vla, scene, tmp_path):
    layers = tuple(f"{prefix}layers." for prefix in vla.family.language_prefixes)
    folder = without(vla, tmp_path, layers)
    with pytest.raises(ModelError, match="missing keys in the weights"):
        load_vla(folder)
    bare = load_vla(folder, parts=PARTS - {LANGUAGE})
    assert not list(bare.model.model.language_model.layers)
    images, visual, _ = scene
    vision = bare.torch_vision()
    with torch.inference_mode():
        assert torch.equal(vision.encode(vision.preprocess(images)).rows, visual.rows)


def test_an_unknown_model_type_gives_the_list_of_the_supported_ones(tmp_path):
    path = build_family_vla(tmp_path, "llava")
    config = (path / "config.json").read_text()
    (path / "config.json").write_text(config.replace('"model_type": "llava"', '"model_type": "kosmos-2"'))
    with pytest.raises(ModelError, match=rf"'kosmos-2' is not supported; use {', '.join(MODEL_TYPES)}"):
        load_vla(path)


def changed(path: Path, change) -> Path:
    """The directory, its config.json changed in place."""
    config = json.loads((path / "config.json").read_text())
    change(config)
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    "model_type,change,reason",
    [
        ("llava", lambda c: c["text_config"].update(model_type="phi"), r"text_config\.model_type: 'phi' is not supp"),
        ("llava", lambda c: c["vision_config"].update(model_type="dinov2"), r"vision_config\.model_type: 'dinov2' is"),
        ("llava", lambda c: c.update(vision_feature_select_strategy="full"), "tokens of clip_vision_model are a grid"),
        ("llava", lambda c: c["vision_config"].update(image_size=98), r"image_size: 84 x 84, but .* reads 98 x 98 px"),
        (
            "llava_onevision",
            lambda c: c["text_config"].update(
                use_sliding_window=True, sliding_window=8, max_window_layers=1, layer_types=None
            ),
            r"text_config\.sliding_window: not supported",
        ),
        ("internvl", lambda c: c["vision_config"].update(image_size=[112, 224]), "is not square"),
    ],
)  # fmt: skip
def test_what_a_family_cannot_read_is_named(tmp_path, model_type, change, reason):
    with pytest.raises(ModelError, match=reason):
        load_vla(changed(build_family_vla(tmp_path, model_type), change))


def test_a_single_image_that_would_be_cut_into_tiles_is_refused(tmp_path):
    path = build_family_vla(tmp_path, "llava_onevision")
    spec = json.loads((path / "vla.json").read_text())
    (path / "vla.json").write_text(json.dumps({**spec, "cameras": spec["cameras"][:1]}))
    with pytest.raises(ModelError, match=r"vla\.json: cameras: this model cuts a single image into tiles"):
        load_vla(path)


def test_visual_tokens_without_the_features_of_later_layers_are_refused(tmp_path, ego_history):
    vla = load_vla(build_family_vla(tmp_path, "qwen3_vl"))
    _, visual, prompt = scene_of(vla, ego_history)
    assert len(visual.layer_features) == 2
    with pytest.raises(ModelError, match="visual tokens: 0 features of later layers, but qwen3_vl reads 2"):
        answer(vla, dataclasses.replace(visual, layer_features=()), prompt)


def test_features_of_later_layers_change_the_answer(tmp_path, ego_history):
    vla = load_vla(build_family_vla(tmp_path, "qwen3_vl"))
    _, visual, prompt = scene_of(vla, ego_history)
    moved = tuple(feature.roll(1, dims=0) for feature in visual.layer_features)
    other = dataclasses.replace(visual, layer_features=moved)
    assert answer(vla, other, prompt) != answer(vla, visual, prompt)


def test_the_newline_behind_an_image_is_no_visual_token_and_stays(tmp_path, ego_history):
    vla = load_vla(build_family_vla(tmp_path, "llava_onevision"))
    _, _, prompt = scene_of(vla, ego_history)
    pruned = prune_prompt(prompt, torch.tensor([0, 40]))
    left = int((pruned.input_ids == vla.image_token_id).sum())
    assert left == 2 + len(vla.spec.cameras) and len(pruned.visual) == 2
    newline = vla.torch_language().embed(prompt.input_ids)[int(prompt.visual[-1]) + 1]
    assert torch.equal(newline, vla.model.model.image_newline)


def test_a_prompt_for_a_tokenizer_that_writes_spaces_behind_added_tokens_is_read(tmp_path, ego_history):
    path = build_family_vla(tmp_path, "llava", tokenizer=llama_tokenizer())
    (path / "prompt.txt").write_text("<s>USER: {images}\nDrive {command}. ASSISTANT:")
    vla = load_vla(path)
    prompt = build_prompt(vla, ego_history)
    assert vla.tokenizer.convert_ids_to_tokens(prompt.input_ids[:3].tolist()) == ["<s>", SPACE, "U"]
    assert len(prompt.visual) == vla.tokens
