"""Every pruner through the same functions, from tokens to an answer."""

import dataclasses

import numpy as np
import pytest
import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.families import VisualTokens, load_vla
from fastdrive_node.families.prompt import build_prompt
from fastdrive_node.families.qwen2_5_vl.language import TorchLanguage
from fastdrive_node.planning.generator import Generator
from fastdrive_node.planning.pipeline import Pipeline
from fastdrive_node.pruning.catalog import PRUNERS
from fastdrive_node.pruning.checkpoint import save_pruner
from fastdrive_node.pruning.layer_pruning import text_attention
from fastdrive_node.pruning.pruner import ContextField
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.pruning.registry import make_pruner
from fastdrive_node.types import CameraFrame, Command, EgoHistory, FrameSet
from fastdrive_training.vla.tiny_model import TinySize, build_tiny_vla
from tests.generation import (
    choose,
    generate,
    prefill_chosen,
    read_answers_as,
    vary_answers,
    write_geometry,
    write_packer,
)

KEEP = 48
SIZE = TinySize(tower_depth=2, full_attention_blocks=(1,), layers=3)  # some pruners act before the third layer


@pytest.fixture(scope="module")
def vla(tmp_path_factory):
    vla = load_vla(write_packer(write_geometry(build_tiny_vla(tmp_path_factory.mktemp("vla"), 7, SIZE))))
    vary_answers(vla, 7)
    return vla


@pytest.fixture(scope="module")
def pruners(vla, tmp_path_factory):
    file = tmp_path_factory.mktemp("pruner") / "pruner.safetensors"
    save_pruner(file, ReconPruner(vla.family, vla.config.text_config), vla.encoder_fingerprint)
    return {name: make_pruner(name, vla, file) for name in PRUNERS}


@pytest.fixture(scope="module")
def samples(vla, ego_history):
    """Tokens, tower attention, coverage and prompt of three samples."""
    generator, vision = np.random.default_rng(0), vla.torch_vision()
    found = []
    for command in (Command.LEFT, Command.NONE, Command.RIGHT):
        images = generator.integers(0, 256, (6, 112, 224, 3), dtype=np.uint8)
        with torch.inference_mode():
            tokens, attention = vision.encode_with_attention(vision.preprocess(images))
        coverage = torch.from_numpy(generator.random((6, 32), dtype=np.float32))
        found.append((tokens, attention, coverage, build_prompt(vla, ego_history, command)))
    return found


def contexts_of(pruner, vla, samples):
    return [
        Generator(vla).context(pruner, VisualTokens.from_raster(tokens, vla.grid, attention), prompt, coverage)
        for tokens, attention, coverage, prompt in samples
    ]


def answers_of(pruner, vla, contexts, prompts, keep):
    return [(each.answer, each.kept) for each in Generator(vla).generate(pruner, contexts, prompts, keep)]


@pytest.mark.parametrize("name", PRUNERS)
def test_each_pruner_answers_with_as_many_tokens_as_asked(vla, pruners, samples, name):
    pruner = pruners[name]
    contexts = contexts_of(pruner, vla, samples)
    prompts = [sample[3] for sample in samples]
    done = prefill_chosen(TorchLanguage(vla), pruner, contexts, prompts, KEEP, 1)
    count = {"none": 192, "sparsevlm": 12, "sparsevlm-unmerged": 12}.get(name, KEEP)  # a quarter of K: a shallow model
    assert done.tokens_by_layer[-1] == count and done.logits.isfinite().all()
    for kept in done.kept:
        assert kept.device.type == "cpu" and kept.dtype == torch.int64
        assert len(kept) == count and bool((kept.diff() > 0).all()) and int(kept[0]) >= 0 and int(kept[-1]) < 192


@pytest.mark.parametrize("name", sorted({*PRUNERS} - {"random"}))
def test_a_batch_gives_the_answers_of_one_by_one(vla, pruners, samples, name):
    pruner = pruners[name]
    contexts, prompts = contexts_of(pruner, vla, samples), [sample[3] for sample in samples]
    together = answers_of(pruner, vla, contexts, prompts, KEEP)
    for row, (answer, kept) in enumerate(together):
        ((alone, chosen),) = answers_of(pruner, vla, [contexts[row]], [prompts[row]], KEEP)
        assert alone == answer and torch.equal(chosen, kept)
    assert len({answer.ids for answer, _ in together}) == 3


@pytest.mark.parametrize("name", [name for name in PRUNERS if name not in ("random", "none", "tokenpacker")])
def test_pruners_that_see_all_tokens_give_the_unpruned_answer(vla, pruners, samples, name):
    pruner = pruners[name]
    contexts = contexts_of(pruner, vla, samples[:1])
    ((answer, kept),) = answers_of(pruner, vla, contexts, [samples[0][3]], 192)
    assert kept.tolist() == list(range(192))
    assert answer == generate(None, vla, samples[0][0], None, samples[0][3])


def test_pruners_differ_from_each_other(vla, pruners, samples):
    language = TorchLanguage(vla)
    chosen = {}
    for name, pruner in pruners.items():
        contexts = contexts_of(pruner, vla, samples[:1])
        chosen[name] = prefill_chosen(language, pruner, contexts, [samples[0][3]], KEEP, 1).kept[0].tolist()
    assert chosen.pop("tokenpacker") == chosen["matryoshka"]  # the same places, other tokens
    assert len({tuple(kept) for kept in chosen.values()}) == len(PRUNERS) - 1


def test_prompts_of_different_length_are_answered_in_their_order(vla, pruners, samples, ego_history):
    pruner = pruners["fastv"]
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
    contexts = contexts_of(pruner, vla, samples)
    together = answers_of(pruner, vla, contexts, prompts, KEEP)
    alone = [
        answers_of(pruner, vla, [context], [prompt], KEEP)[0] for context, prompt in zip(contexts, prompts, strict=True)
    ]
    assert [answer for answer, _ in together] == [answer for answer, _ in alone]


def test_a_context_holds_what_is_needed_and_no_more(vla, pruners, samples):
    generator = Generator(vla)
    tokens, attention, coverage, prompt = samples[0]
    visual = VisualTokens.from_raster(tokens, vla.grid, attention)
    for pruner in pruners.values():
        context = generator.context(pruner, visual, prompt, coverage)
        assert {need for need in ContextField if getattr(context, need.value) is not None} == set(pruner.needs)
    cdpruner = generator.context(pruners["cdpruner"], visual, prompt)
    assert torch.equal(cdpruner.text, generator.language.embed(prompt.input_ids[int(prompt.visual[-1]) + 1 :]))
    oracle = generator.context(pruners["oracle"], visual, prompt, coverage=coverage)
    assert torch.equal(oracle.text_attention, text_attention(generator.language, prompt, visual))


def test_the_text_after_the_images_ends_the_prompt(vla, samples):
    prompt = samples[0][3]
    text = vla.tokenizer.decode(prompt.text_after_images)
    assert text.startswith("<|vision_end|>Past: ") and prompt.text.endswith(text)


@pytest.mark.parametrize("name,field", [("vispruner", "tower_attention"), ("oracle", "coverage")])
def test_a_context_without_what_is_needed_is_refused(vla, pruners, samples, name, field):
    tokens, _, _, prompt = samples[0]
    with pytest.raises(ModelError, match=field):
        Generator(vla).context(pruners[name], VisualTokens.from_raster(tokens, vla.grid), prompt)


@pytest.mark.parametrize("name", [name for name in PRUNERS if name not in ("random", "none")])
def test_the_same_sample_gives_the_same_choice(vla, pruners, samples, name):
    pruner = pruners[name]
    if pruner.acts_inside:
        pytest.skip("chooses inside of the model; covered by the batches")
    (context,) = contexts_of(pruner, vla, samples[:1])
    assert torch.equal(choose(pruner, context, KEEP), choose(pruner, context, KEEP))


def test_the_pipeline_refuses_the_oracle(vla, pruners):
    with pytest.raises(ModelError, match=r"pruner oracle: .*fastdrive evaluate"):
        Pipeline(vla, pruners["oracle"])


@pytest.mark.parametrize("name", [name for name in PRUNERS if name != "oracle"])
def test_the_pipeline_runs_every_pruner_that_needs_no_ground_truth(vla, pruners, ego_history, name, monkeypatch):
    read_answers_as(monkeypatch)
    images = np.random.default_rng(0).integers(0, 256, (6, 112, 224, 3), dtype=np.uint8)
    frames = tuple(
        CameraFrame(camera, 0, 0, lambda image=image: image)
        for camera, image in zip(vla.spec.cameras, images, strict=True)
    )
    pipeline = Pipeline(vla, pruners[name], 0.0 if name == "none" else 0.75)
    pipeline.warm_up()
    plan = pipeline.plan(FrameSet(frames, 0), ego_history, Command.LEFT)
    assert plan.kept.kept == {"none": 192, "sparsevlm": 12, "sparsevlm-unmerged": 12}.get(name, 48)
