"""The oracles of pruned generation: transformers' own ``generate``, and a recomputation without any cache."""

import numpy as np
import pytest
import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.families import load_vla, prune_prompt
from fastdrive_node.families.prompt import build_prompt
from fastdrive_node.families.qwen2_5_vl.language import TorchLanguage
from fastdrive_node.planning.answer_format import TextAnswer
from fastdrive_node.planning.generator import Generator
from fastdrive_node.types import Command, EgoHistory
from fastdrive_training.vla.tiny_model import TinySize, build_tiny_vla
from tests.generation import SHALLOW, generate, generate_batch, vary_answers

SIZES = {
    "tiny": SHALLOW,
    "ragged": TinySize(image_height=140, image_width=196, layers=2, width=64, heads=2, kv_heads=1, intermediate=96),
}


@pytest.fixture(scope="module", params=[("tiny", 0), ("tiny", 1), ("ragged", 2), ("ragged", 3)], ids=str)
def vla(request, tmp_path_factory):
    name, seed = request.param
    vla = load_vla(build_tiny_vla(tmp_path_factory.mktemp("vla"), seed, SIZES[name]))
    vary_answers(vla, seed)
    return vla


@pytest.fixture(scope="module")
def scene(vla, ego_history):
    """Images, their tokens and a prompt."""
    height, width = vla.spec.image_size
    images = np.random.default_rng(0).integers(0, 256, (6, height, width, 3), dtype=np.uint8)
    vision = vla.torch_vision()
    with torch.inference_mode():
        patches = vision.preprocess(images)
        return patches, vision.encode_patches(patches), build_prompt(vla, ego_history, Command.LEFT)


def some_kept(vla, drop, seed=0):
    keep = int(vla.tokens * (1 - drop))
    return torch.randperm(vla.tokens, generator=torch.Generator().manual_seed(seed))[:keep].sort().values


@torch.inference_mode()
def by_transformers(vla, patches, prompt):
    """Token ids and text of transformers' greedy ``generate`` from images and the same token ids."""
    ids = prompt.input_ids[None]
    rows, columns = (2 * side for side in vla.grid)
    out = vla.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=patches.flatten(0, 1),
        image_grid_thw=torch.tensor([[1, rows, columns]] * len(vla.spec.cameras)),
        mm_token_type_ids=(ids == vla.model.config.image_token_id).int(),
        max_new_tokens=vla.spec.answer.max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(TextAnswer(vla).stop_ids),
    )[0, len(prompt) :].tolist()
    return tuple(out), vla.tokenizer.decode([token for token in out if token not in vla.eos_ids])


@torch.inference_mode()
def by_recomputation(vla, tokens, prompt, kept, count):
    """Greedy ids with the whole sequence recomputed for every token, positions gathered by hand."""
    places = sorted({*range(len(prompt))} - {*prompt.visual.tolist()} | {*prompt.visual[kept].tolist()})
    embeddings = vla.model.get_input_embeddings()(prompt.input_ids)
    embeddings[prompt.visual] = tokens.flatten(0, 1)
    embeddings, positions = embeddings[places], prompt.position_ids[:, places]
    ids = []
    for step in range(count):
        hidden = vla.model.model.language_model(inputs_embeds=embeddings[None], position_ids=positions[:, None])
        ids.append(int(vla.model.lm_head(hidden.last_hidden_state[0, -1]).argmax()))
        embedding = vla.model.get_input_embeddings()(torch.tensor(ids[-1:]))
        embeddings = torch.cat([embeddings, embedding])
        positions = torch.cat([positions, torch.full((3, 1), int(prompt.position_ids.max()) + 1 + step)], dim=1)
    return tuple(ids)


def test_with_all_tokens_the_answer_is_that_of_transformers_generate(vla, scene):
    patches, tokens, prompt = scene
    expected_ids, expected_text = by_transformers(vla, patches, prompt)
    answer = generate(TorchLanguage(vla), vla, tokens, torch.arange(vla.tokens), prompt)
    assert len(set(expected_ids)) > 5, "the model must say something for this test to mean anything"
    assert answer.ids == expected_ids
    assert answer.text == expected_text


def test_in_bfloat16_the_answer_to_the_same_tokens_is_that_of_transformers(vla, scene, ego_history):
    patches, _, prompt = scene
    half = load_vla(vla.path, dtype=torch.bfloat16)
    half.model.model.language_model.load_state_dict(vla.model.model.language_model.state_dict())
    grids = torch.tensor([[1, 2 * vla.grid[0], 2 * vla.grid[1]]] * 6)
    with torch.inference_mode():
        tokens = torch.cat(half.model.model.get_image_features(patches.flatten(0, 1), grids).pooler_output)
    answer = generate(TorchLanguage(half), half, tokens, None, prompt)
    assert (answer.ids, answer.text) == by_transformers(half, patches, prompt)


def test_generate_of_transformers_before_does_not_shift_the_text(vla, scene):
    """A stale ``rope_deltas`` in the model must not matter."""
    patches, tokens, prompt = scene
    before = generate(TorchLanguage(vla), vla, tokens, some_kept(vla, 0.5), prompt)
    by_transformers(vla, patches, prompt)
    vla.model.model.rope_deltas = torch.tensor([[1000]])
    assert generate(TorchLanguage(vla), vla, tokens, some_kept(vla, 0.5), prompt) == before


@pytest.mark.parametrize("drop", [0.25, 0.75])
def test_a_pruned_answer_equals_its_recomputation_without_a_cache(vla, scene, drop):
    _, tokens, prompt = scene
    kept = some_kept(vla, drop)
    answer = generate(TorchLanguage(vla), vla, tokens, kept, prompt)
    assert answer.ids[:24] == by_recomputation(vla, tokens, prompt, kept, min(24, len(answer.ids)))


@pytest.mark.parametrize("drop", [0.0, 0.25, 0.5, 0.75])
def test_gathered_positions_are_the_full_ones_at_the_kept_positions(vla, scene, drop):
    *_, prompt = scene
    kept = some_kept(vla, drop)
    pruned = prune_prompt(prompt, kept)
    full, _ = vla.model.model.get_rope_index(
        prompt.input_ids[None],
        (prompt.input_ids == vla.model.config.image_token_id).int()[None],
        image_grid_thw=torch.tensor([[1, 2 * vla.grid[0], 2 * vla.grid[1]]] * 6),
    )
    text = torch.ones(len(prompt), dtype=torch.bool)
    text[prompt.visual] = False
    left = torch.cat([text.nonzero().flatten(), prompt.visual[kept]]).sort().values
    assert torch.equal(pruned.position_ids, full[:, 0, left])
    assert torch.equal(pruned.input_ids, prompt.input_ids[left])
    assert torch.equal(left[pruned.visual], prompt.visual[kept])
    assert pruned.next_position == int(full.max()) + 1


def test_dropped_tokens_do_not_matter_and_kept_ones_do(vla, scene):
    _, tokens, prompt = scene
    kept = some_kept(vla, 0.5)
    answer = generate(TorchLanguage(vla), vla, tokens, kept, prompt)
    flat = tokens.flatten(0, 1)
    noise = 30 * torch.randn_like(flat)
    only_dropped, only_kept = flat + noise, flat.clone()
    only_dropped[kept], only_kept[kept] = flat[kept], flat[kept] + noise[kept]
    assert generate(TorchLanguage(vla), vla, only_dropped, kept, prompt) == answer
    assert generate(TorchLanguage(vla), vla, only_kept, kept, prompt) != answer


def test_a_batch_gives_the_answers_of_one_by_one(vla, scene, ego_history):
    _, tokens, _ = scene
    language = TorchLanguage(vla)
    prompts = [
        build_prompt(vla, EgoHistory(ego_history.states[:count]), command)
        for count, command in [(5, Command.LEFT), (1, Command.NONE), (3, Command.STRAIGHT)]
    ]
    visual = [tokens + 0.3 * row for row in range(3)]
    kept = [some_kept(vla, 0.5, 1), some_kept(vla, 0.75, 2), some_kept(vla, 0.5, 3)]
    alone = [generate(language, vla, *arguments) for arguments in zip(visual, kept, prompts, strict=True)]
    assert generate_batch(language, vla, visual, kept, prompts) == alone
    assert len(set(alone)) == 3


def test_an_answer_ends_at_its_closing_tag_or_end_of_turn(vla, scene):
    """The unembedding is set so that a chosen token always wins."""
    _, tokens, prompt = scene
    for token, text in (("</PLANNING>", "</PLANNING>"), ("<|im_end|>", "")):
        index = vla.tokenizer.convert_tokens_to_ids(token)
        language = TorchLanguage(vla)
        language._head = torch.nn.Linear(vla.width, len(vla.tokenizer))
        torch.nn.init.zeros_(language._head.weight)
        language._head.bias.data.zero_()[index] = 1
        answer = generate(language, vla, tokens, None, prompt)
        assert (answer.ids, answer.text) == ((index,), text)


def test_an_answer_without_an_end_stops_at_the_limit(vla, scene):
    _, tokens, prompt = scene
    language = TorchLanguage(vla)
    language._head = torch.nn.Linear(vla.width, len(vla.tokenizer))
    torch.nn.init.zeros_(language._head.weight)
    language._head.bias.data.zero_()[vla.tokenizer.convert_tokens_to_ids("5")] = 1
    assert generate(language, vla, tokens, None, prompt).text == "5" * vla.spec.answer.max_new_tokens


@pytest.mark.parametrize("kept", [[3, 2], [1, 1], [-1, 4], [0, 10_000]])
def test_kept_indices_must_ascend_inside_of_the_images(vla, scene, kept):
    *_, prompt = scene
    with pytest.raises(ValueError, match="expected ascending indices"):
        prune_prompt(prompt, torch.tensor(kept))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_of_the_likeliest_is_taken_and_a_row_that_is_not_finite_is_named(tiny_vla, dtype):
    generator = Generator(tiny_vla)
    logits = torch.zeros(3, 5, dtype=dtype)
    logits[0, 2:] = 1.0
    logits[2, 4] = 2.0
    assert generator._likeliest(logits, 7) == [2, 0, 4]
    for bad in (float("nan"), float("inf")):
        logits[1, 3] = bad
        with pytest.raises(ModelError, match="not finite at answer token 9 "):
            generator._likeliest(logits, 7)
