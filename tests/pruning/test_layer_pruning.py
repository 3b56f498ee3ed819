"""Dropping tokens inside of the language model, against transformers' own layers without any cache."""

import dataclasses

import numpy as np
import pytest
import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.families import VisualTokens, load_vla
from fastdrive_node.families.prompt import build_prompt
from fastdrive_node.families.qwen2_5_vl.language import TorchLanguage
from fastdrive_node.pruning.layer_pruning import (
    LayerChoice,
    LayerPruner,
    LayerStep,
    Reached,
    text_attention,
    tokens_by_layer,
)
from fastdrive_node.pruning.pruner import PruningContext
from fastdrive_node.types import Command, EgoHistory
from fastdrive_training.vla.tiny_model import build_tiny_vla
from tests.generation import decode, encode, generate, prefill, prefill_chosen, vary_answers

ANSWER = 12  # tokens that are compared
MAX_NEW_TOKENS = 32


class Stub(LayerPruner):
    """Two steps; the first and last words rate; merges where it is told to."""

    name = "stub"

    def __init__(self, keeps=((1, 100), (3, 40)), merge=False):
        self.keeps, self.merge = keeps, merge

    def steps(self, layers, total, keep):
        return tuple(LayerStep(*step) for step in self.keeps)

    def raters(self, visual, text):
        return torch.tensor([0, len(text) - 1])

    def choose_in_layer(self, reached, keep):
        best, hidden = reached.attention.topk(keep).indices.sort().values, reached.hidden
        return LayerChoice(best, hidden[best] + hidden.mean(dim=0) if self.merge else None)


@pytest.fixture(scope="module")
def vla(tmp_path_factory):
    vla = load_vla(build_tiny_vla(tmp_path_factory.mktemp("vla"), 5))
    vary_answers(vla, 5)
    return vla


@pytest.fixture(scope="module")
def scene(vla, ego_history):
    images = np.random.default_rng(0).integers(0, 256, (6, 112, 224, 3), dtype=np.uint8)
    with torch.inference_mode():
        tokens = encode(vla, images)
    return tokens, build_prompt(vla, ego_history, Command.LEFT)


@pytest.fixture
def eager(vla, monkeypatch):
    """transformers' attention gives its weights."""
    monkeypatch.setattr(vla.model.config.text_config, "_attn_implementation", "eager")


def by_layers(vla, tokens, prompt, pruner, keep):
    language = TorchLanguage(vla)
    done = prefill_chosen(language, pruner, [PruningContext.of(tokens, vla.grid)], [prompt], keep, MAX_NEW_TOKENS)
    return language, done.prompts, done


@torch.inference_mode()
def by_transformers(vla, tokens, prompt, pruner, ids):
    """Logits [1 + len(ids), vocabulary] behind the prompt and each further id, and the visual tokens that are left."""
    model = vla.model.model.language_model
    embeddings = model.embed_tokens(torch.cat([prompt.input_ids, torch.tensor(ids, dtype=torch.int64)]))
    embeddings[prompt.visual] = tokens.flatten(0, 1)
    behind = (prompt.next_position + torch.arange(len(ids))).expand(3, -1)
    positions = torch.cat([prompt.position_ids, behind], dim=1)
    steps = {step.layer: step.keep for step in pruner.steps(len(model.layers), len(prompt.visual), 0)}
    first_text = int(prompt.visual[-1]) + 1
    raters = first_text + pruner.raters(embeddings[prompt.visual], embeddings[first_text : len(prompt)])
    visual, hidden, present, weights = prompt.visual, embeddings, torch.arange(len(embeddings)), None
    for index, layer in enumerate(model.layers):
        if index in steps:
            here = torch.isin(present, visual)
            paid = weights[0].mean(dim=0)[torch.isin(present, raters)][:, here].mean(dim=0)
            images = torch.searchsorted(prompt.visual, visual) // 32
            choice = pruner.choose_in_layer(Reached(hidden[here], images, lambda paid=paid: paid), steps[index])
            if choice.hidden is not None:
                hidden[here.nonzero().flatten()[choice.indices]] = choice.hidden
            visual = visual[choice.indices]
            stays = torch.isin(present, visual) | ~here
            hidden, present = hidden[stays], present[stays]
        angles = model.rotary_emb(hidden[None], positions[:, None, present])
        mask = torch.full((len(present), len(present)), -torch.inf).triu(1)[None, None]
        _, weights = layer.self_attn(
            layer.input_layernorm(hidden[None]), position_embeddings=angles, attention_mask=mask
        )
        hidden = layer(hidden[None], position_embeddings=angles, attention_mask=mask)[0]
    last = hidden[-1 - len(ids) :]
    return vla.model.lm_head(model.norm(last)), torch.searchsorted(prompt.visual, visual)


@pytest.mark.parametrize("merge", [False, True])
def test_logits_of_prompt_and_answer_are_those_of_transformers_layers(vla, scene, eager, merge):
    tokens, prompt = scene
    pruner = Stub(merge=merge)
    language, whole, done = by_layers(vla, tokens, prompt, pruner, 40)
    first, kept = by_transformers(vla, tokens, prompt, pruner, [])
    assert done.kept[0].tolist() == kept.tolist()
    torch.testing.assert_close(done.logits, first, atol=1e-3, rtol=1e-4)
    ids = decode(language, vla, whole, done.logits, done.cache)[0].ids[:ANSWER]
    assert len(set(ids)) > 3, "the model must say something for this test to mean anything"
    expected, _ = by_transformers(vla, tokens, prompt, pruner, ids[:-1])
    assert tuple(expected.argmax(dim=-1).tolist()) == ids


def test_with_nothing_pruned_the_logits_are_exactly_those_of_the_plain_path(vla, scene):
    tokens, prompt = scene
    language, whole, done = by_layers(vla, tokens, prompt, Stub(((1, 192), (2, 192))), 192)
    plain, plain_cache = prefill(language, whole, [tokens.flatten(0, 1)], MAX_NEW_TOKENS)
    assert torch.equal(done.logits, plain)
    assert done.cache.used == plain_cache.used and done.cache.missing == plain_cache.missing
    length = done.cache.used
    for ours, theirs in zip(done.cache.keys, plain_cache.keys, strict=True):
        assert torch.equal(ours[:, :, :length], theirs[:, :, :length])
    answer = decode(language, vla, whole, done.logits, done.cache)[0]
    assert answer == generate(language, vla, tokens, None, prompt)


def test_layers_hold_only_the_tokens_that_reach_them(vla, scene):
    tokens, prompt = scene
    _, _, done = by_layers(vla, tokens, prompt, Stub(((1, 100), (3, 40))), 40)
    assert done.tokens_by_layer == (192, 100, 100, 40)
    text = len(prompt) - 192
    assert [keys.shape[2] for keys in done.cache.keys] == [
        text + count + MAX_NEW_TOKENS for count in done.tokens_by_layer
    ]
    assert len(done.kept[0]) == 40 and bool((done.kept[0].diff() > 0).all())


def test_a_batch_gives_the_logits_of_one_by_one(vla, scene, ego_history):
    tokens, prompt = scene
    other = build_prompt(vla, EgoHistory(ego_history.states[:1]), Command.LEFT)
    assert len(other) == len(prompt)
    prompts = [prompt, other]
    contexts = [PruningContext.of(each, vla.grid) for each in (tokens, tokens.flip(0, 1))]
    language = TorchLanguage(vla)
    together = prefill_chosen(language, Stub(merge=True), contexts, prompts, 40, MAX_NEW_TOKENS)
    for row in range(2):
        alone = prefill_chosen(language, Stub(merge=True), [contexts[row]], [prompts[row]], 40, MAX_NEW_TOKENS)
        torch.testing.assert_close(together.logits[row], alone.logits[0], atol=1e-3, rtol=1e-4)
        assert torch.equal(together.kept[row], alone.kept[0])
    assert not torch.equal(together.kept[0], together.kept[1])


def test_text_attention_is_the_mean_of_the_texts_rows(vla, scene, eager):
    tokens, prompt = scene
    with torch.inference_mode():
        embeddings = vla.model.get_input_embeddings()(prompt.input_ids)
        embeddings[prompt.visual] = tokens.flatten(0, 1)
        weights = vla.model.model.language_model(
            inputs_embeds=embeddings[None], position_ids=prompt.position_ids[:, None], output_attentions=True
        ).attentions
    first_text = int(prompt.visual[-1]) + 1
    visual = VisualTokens.from_raster(tokens, vla.grid)
    for layer in (0, 1, 3):
        expected = weights[layer][0, :, first_text:, :][:, :, prompt.visual].mean(dim=(0, 1))
        found = text_attention(TorchLanguage(vla), prompt, visual, layer)
        torch.testing.assert_close(found, expected.view(6, 32), atol=1e-6, rtol=1e-4)
    assert torch.equal(text_attention(TorchLanguage(vla), prompt, visual, 99), found)


@pytest.mark.parametrize("keep", [0, 193])
def test_a_budget_out_of_range_is_refused(vla, scene, keep):
    with pytest.raises(ValueError, match="keep"):
        by_layers(vla, *scene, Stub(), keep)


def test_prompts_of_different_visual_tokens_are_refused(vla, scene):
    tokens, prompt = scene
    shorter = dataclasses.replace(prompt, visual=prompt.visual[:-1])
    contexts = [PruningContext.of(tokens, vla.grid)] * 2
    with pytest.raises(ValueError, match="differ in their number"):
        prefill_chosen(TorchLanguage(vla), Stub(), contexts, [prompt, shorter], 4, 1)


def test_a_language_model_without_layers_is_refused(vla, scene):
    tokens, prompt = scene
    with pytest.raises(ModelError, match="pruner stub: acts inside of the language model"):
        prefill_chosen(object(), Stub(), [PruningContext.of(tokens, vla.grid)], [prompt], 40, 1)


def test_tokens_by_layer_follow_the_schedule():
    steps = [LayerStep(4, 10), LayerStep(1, 50)]
    assert tokens_by_layer(6, 100, steps) == (100, 50, 50, 50, 10, 10)
    assert tokens_by_layer(3, 7, []) == (7, 7, 7)
