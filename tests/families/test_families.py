"""What every family must do, whatever its model: the oracles are transformers' own ``generate`` and attention mask."""

from __future__ import annotations

import pytest
import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.families import MODEL_TYPES, VisualTokens, Vla, build_prompt, load_vla, prune_prompt
from fastdrive_node.families.common.language import TransformersLanguage
from fastdrive_node.planning.generator import Generator
from fastdrive_node.pruning.baselines.simple import NoPruner
from fastdrive_node.pruning.pruner import PruningContext, Selection
from fastdrive_node.types import Command
from tests.families.tiny_vlas import TINY, build_family_vla, by_transformers, images_of


@pytest.fixture(scope="module", params=MODEL_TYPES)
def vla(request, tmp_path_factory) -> Vla:
    return load_vla(build_family_vla(tmp_path_factory.mktemp("vla"), request.param))


@pytest.fixture(scope="module")
def scene(vla, ego_history):
    """Images, their tokens and a prompt."""
    images, vision = images_of(vla), vla.torch_vision()
    with torch.inference_mode():
        return images, vision.encode(vision.preprocess(images)), build_prompt(vla, ego_history, Command.LEFT)


def some_kept(vla: Vla, keep: int, seed: int = 0) -> torch.Tensor:
    return torch.randperm(vla.tokens, generator=torch.Generator().manual_seed(seed))[:keep].sort().values


def answer(vla: Vla, visual: VisualTokens, prompt, kept: torch.Tensor | None = None) -> tuple[int, ...]:
    """Token ids of an answer from the tokens in ``kept``."""
    kept = torch.arange(vla.tokens) if kept is None else kept
    done = Generator(vla).generate(NoPruner(), [PruningContext(visual)], [prompt], vla.tokens, [Selection(kept)])
    return done[0].answer.ids


def test_every_family_has_a_tiny_vla():
    assert set(TINY) == set(MODEL_TYPES)


def test_nothing_pruned_gives_the_answer_of_transformers_generate(vla, scene):
    images, visual, prompt = scene
    expected = by_transformers(vla, images, prompt, sorted(Generator(vla).answer.stop_ids))
    assert len(set(expected)) > 4, "the model must say something for this test to mean anything"
    assert answer(vla, visual, prompt) == expected


@torch.inference_mode()
def by_masking(vla: Vla, visual: VisualTokens, prompt, kept: torch.Tensor, count: int) -> tuple[int, ...]:
    """Greedy ids with every token in the sequence, the dropped ones masked; the whole is computed again each time."""
    language = TransformersLanguage(vla, len(visual.layer_features))
    embeddings = vla.torch_language().embed(prompt.input_ids)[None].clone()
    embeddings[0, prompt.visual] = visual.rows
    seen = torch.ones(1, len(prompt), dtype=torch.int64)
    seen[0, prompt.visual] = 0
    seen[0, prompt.visual[kept]] = 1
    positions, ids = prompt.position_ids[:, None], []
    for step in range(count):
        is_visual = torch.zeros(embeddings.shape[:2], dtype=torch.bool)
        is_visual[0, prompt.visual] = True
        hidden = vla.model.model.language_model(
            inputs_embeds=embeddings,
            attention_mask=seen,
            position_ids=positions[0] if len(positions) == 1 else positions,
            use_cache=False,
            **language._features(is_visual, [visual]),
        ).last_hidden_state
        ids.append(int(vla.model.lm_head(hidden[0, -1]).argmax()))
        embeddings = torch.cat([embeddings, vla.model.get_input_embeddings()(torch.tensor([ids[-1:]]))], dim=1)
        seen = torch.cat([seen, torch.ones(1, 1, dtype=torch.int64)], dim=1)
        following = torch.full((len(positions), 1, 1), prompt.next_position + step)
        positions = torch.cat([positions, following], dim=2)
    return tuple(ids)


@pytest.mark.parametrize("share", [0.7, 0.2])
def test_dropped_tokens_are_as_masked_ones(vla, scene, share):
    _, visual, prompt = scene
    kept = some_kept(vla, int(share * vla.tokens))
    ours = answer(vla, visual, prompt, kept)
    assert ours == by_masking(vla, visual, prompt, kept, len(ours))
    assert ours != answer(vla, visual, prompt), "the pruned answer must differ for this test to mean anything"


def test_decoding_starts_behind_the_full_prompt(vla, scene):
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


def test_the_transformers_path_equals_the_familys_own(vla, scene, ego_history):
    _, visual, prompt = scene
    kept = some_kept(vla, vla.tokens // 2)
    own = answer(vla, visual, prompt, kept)
    generator = Generator(vla, TransformersLanguage(vla, len(visual.layer_features)))
    done = generator.generate(NoPruner(), [PruningContext(visual)], [prompt], vla.tokens, [Selection(kept)])
    assert done[0].answer.ids == own


def test_a_batch_gives_the_answers_of_one_by_one(vla, scene, ego_history):
    _, visual, prompt = scene
    vision = vla.torch_vision()
    with torch.inference_mode():
        other = vision.encode(vision.preprocess(images_of(vla, seed=1)))
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


def test_an_unknown_model_type_gives_the_list_of_the_supported_ones(tmp_path):
    path = build_family_vla(tmp_path, "llava")
    config = (path / "config.json").read_text()
    (path / "config.json").write_text(config.replace('"model_type": "llava"', '"model_type": "kosmos-2"'))
    with pytest.raises(ModelError, match=rf"'kosmos-2' is not supported; use {', '.join(MODEL_TYPES)}"):
        load_vla(path)
