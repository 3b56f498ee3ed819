"""What every family must do, whatever its model: the oracles are transformers' own ``generate`` and attention mask."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdrive_node.errors import ModelError
from fastdrive_node.families import LANGUAGE, MODEL_TYPES, PARTS, VISION, Vla, build_prompt, load_vla, prune_prompt
from fastdrive_node.families.common.language import TransformersLanguage
from fastdrive_node.planning.generator import Generator
from fastdrive_node.pruning.baselines.simple import NoPruner
from fastdrive_node.pruning.pruner import PruningContext, Selection
from tests.families.checks import answer, by_masking, by_transformers, images_of, scene_of, some_kept
from tests.families.tiny_vlas import TINY, build_family_vla


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
