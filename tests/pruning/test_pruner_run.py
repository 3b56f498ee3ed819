"""Every pruner through the same functions, from tokens to an answer."""

import dataclasses

import numpy as np
import pytest
import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.families.loading import load_vla
from fastdrive_node.families.qwen2_5_vl.language import LanguageModel
from fastdrive_node.families.qwen2_5_vl.prompt import build_prompt
from fastdrive_node.families.qwen2_5_vl.tower import TorchVision
from fastdrive_node.planning.decode import generate
from fastdrive_node.planning.pipeline import Pipeline
from fastdrive_node.planning.pruned_generation import answer_pruned, build_context, prefill_pruned, text_behind
from fastdrive_node.pruning.baselines import PRUNERS, LayerPruner, Need, choose, make_pruner
from fastdrive_node.pruning.checkpoint import save_pruner
from fastdrive_node.pruning.layer_pruning import text_attention
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.types import Command, EgoHistory
from fastdrive_training.vla.tiny_model import build_tiny_vla

KEEP = 48


@pytest.fixture(scope="module")
def vla(tmp_path_factory):
    vla = load_vla(build_tiny_vla(tmp_path_factory.mktemp("vla"), 7))
    torch.manual_seed(7)
    for parameter in vla.model.model.language_model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)  # untrained weights repeat one token; these do not
    return dataclasses.replace(
        vla, spec=dataclasses.replace(vla.spec, answer=dataclasses.replace(vla.spec.answer, max_new_tokens=8))
    )


@pytest.fixture(scope="module")
def pruners(vla, tmp_path_factory):
    file = tmp_path_factory.mktemp("pruner") / "pruner.safetensors"
    save_pruner(file, ReconPruner.from_config(vla.model.config.text_config), vla.encoder_fingerprint)
    return {name: make_pruner(name, vla, file) for name in PRUNERS}


@pytest.fixture(scope="module")
def samples(vla, ego_history):
    """Tokens, tower attention, coverage and prompt of three samples."""
    generator, vision = np.random.default_rng(0), TorchVision(vla.model.model.visual, vla.spec.image_size)
    found = []
    for command in (Command.LEFT, Command.NONE, Command.RIGHT):
        images = generator.integers(0, 256, (6, 112, 224, 3), dtype=np.uint8)
        with torch.inference_mode():
            tokens, attention = vision.encode_with_attention(vision.preprocess(images))
        coverage = torch.from_numpy(generator.random((6, 32), dtype=np.float32))
        found.append((tokens, attention, coverage, build_prompt(vla, ego_history, command)))
    return found


def contexts_of(pruner, vla, language, samples):
    return [
        build_context(pruner, language, tokens, vla.grid, prompt, attention, coverage)
        for tokens, attention, coverage, prompt in samples
    ]


@pytest.mark.parametrize("name", PRUNERS)
def test_each_pruner_answers_with_as_many_tokens_as_asked(vla, pruners, samples, name):
    language, pruner = LanguageModel(vla), pruners[name]
    contexts = contexts_of(pruner, vla, language, samples)
    done = prefill_pruned(pruner, language, contexts, [sample[3] for sample in samples], KEEP, 1)
    count = 192 if name == "none" else KEEP
    assert done.tokens[-1] == count and done.logits.isfinite().all()
    for kept in done.kept:
        assert kept.device.type == "cpu" and kept.dtype == torch.int64
        assert len(kept) == count and bool((kept.diff() > 0).all()) and int(kept[0]) >= 0 and int(kept[-1]) < 192


@pytest.mark.parametrize("name", sorted({*PRUNERS} - {"random"}))
def test_a_batch_gives_the_answers_of_one_by_one(vla, pruners, samples, name):
    language, pruner = LanguageModel(vla), pruners[name]
    contexts, prompts = contexts_of(pruner, vla, language, samples), [sample[3] for sample in samples]
    together = answer_pruned(pruner, language, vla, contexts, prompts, KEEP)
    for row, (answer, kept) in enumerate(together):
        ((alone, chosen),) = answer_pruned(pruner, language, vla, [contexts[row]], [prompts[row]], KEEP)
        assert alone == answer and torch.equal(chosen, kept)
    assert len({answer.ids for answer, _ in together}) == 3


@pytest.mark.parametrize("name", [name for name in PRUNERS if name not in ("random", "none")])
def test_pruners_that_see_all_tokens_give_the_unpruned_answer(vla, pruners, samples, name):
    language, pruner = LanguageModel(vla), pruners[name]
    contexts = contexts_of(pruner, vla, language, samples[:1])
    ((answer, kept),) = answer_pruned(pruner, language, vla, contexts, [samples[0][3]], 192)
    assert kept.tolist() == list(range(192))
    assert answer == generate(language, vla, samples[0][0], None, samples[0][3])


def test_pruners_differ_from_each_other(vla, pruners, samples):
    language = LanguageModel(vla)
    chosen = {}
    for name, pruner in pruners.items():
        contexts = contexts_of(pruner, vla, language, samples[:1])
        chosen[name] = prefill_pruned(pruner, language, contexts, [samples[0][3]], KEEP, 1).kept[0].tolist()
    assert len({tuple(kept) for kept in chosen.values()}) == len(PRUNERS)


def test_prompts_of_different_length_are_answered_in_their_order(vla, pruners, samples, ego_history):
    language, pruner = LanguageModel(vla), pruners["fastv"]
    prompts = [
        build_prompt(vla, EgoHistory(ego_history.states[:count]), command)
        for count, command in ((5, Command.LEFT), (1, Command.NONE), (5, Command.RIGHT))
    ]
    prompts[1] = dataclasses.replace(  # one word longer
        prompts[1],
        input_ids=torch.cat([prompts[1].input_ids, prompts[1].input_ids[-1:]]),
        position_ids=torch.cat([prompts[1].position_ids, prompts[1].position_ids[:, -1:] + 1], dim=1),
        next_position=prompts[1].next_position + 1,
    )
    contexts = contexts_of(pruner, vla, language, samples)
    together = answer_pruned(pruner, language, vla, contexts, prompts, KEEP)
    alone = [
        answer_pruned(pruner, language, vla, [context], [prompt], KEEP)[0]
        for context, prompt in zip(contexts, prompts, strict=True)
    ]
    assert [answer for answer, _ in together] == [answer for answer, _ in alone]


def test_a_context_holds_what_is_needed_and_no_more(vla, pruners, samples):
    language = LanguageModel(vla)
    tokens, attention, coverage, prompt = samples[0]
    for pruner in pruners.values():
        context = build_context(pruner, language, tokens, vla.grid, prompt, attention, coverage)
        assert {need for need in Need if getattr(context, need.value) is not None} == set(pruner.needs)
    cdpruner = build_context(pruners["cdpruner"], language, tokens, vla.grid, prompt)
    assert torch.equal(cdpruner.text, language.embed(prompt.input_ids[int(prompt.visual[-1]) + 1 :]))
    oracle = build_context(pruners["oracle"], language, tokens, vla.grid, prompt, coverage=coverage)
    assert torch.equal(oracle.text_attention, text_attention(language, prompt, tokens))


def test_the_text_behind_the_images_ends_the_prompt(vla, samples):
    prompt = samples[0][3]
    text = vla.tokenizer.decode(text_behind(prompt))
    assert text.startswith("<|vision_end|>Past: ") and prompt.text.endswith(text)


@pytest.mark.parametrize("name,field", [("vispruner", "tower_attention"), ("oracle", "coverage")])
def test_a_context_without_what_is_needed_is_refused(vla, pruners, samples, name, field):
    tokens, _, _, prompt = samples[0]
    with pytest.raises(ModelError, match=field):
        build_context(pruners[name], LanguageModel(vla), tokens, vla.grid, prompt)


@pytest.mark.parametrize("name", [name for name in PRUNERS if name not in ("random", "none")])
def test_the_same_sample_gives_the_same_choice(vla, pruners, samples, name):
    pruner, language = pruners[name], LanguageModel(vla)
    if isinstance(pruner, LayerPruner):
        pytest.skip("chooses inside of the model; covered by the batches")
    (context,) = contexts_of(pruner, vla, language, samples[:1])
    assert torch.equal(choose(pruner, context, KEEP), choose(pruner, context, KEEP))


@pytest.mark.parametrize("name", ["fastv", "cdpruner", "vispruner", "oracle"])
def test_the_node_refuses_pruners_that_need_more_than_tokens(vla, pruners, name):
    with pytest.raises(ModelError, match=f"pruner {name}: .*fastdrive evaluate"):
        Pipeline(vla, pruners[name], drop=0.5)
