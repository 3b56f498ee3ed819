"""Prompts and steps of fixed addresses, run without graphs on a CPU: they give what the eager ones give."""

import numpy as np
import pytest
import torch

from fastdrive_node.families.qwen2_5_vl.cuda_graphs import LENGTHS, PREFILLS, RECENT, GraphedLanguage, padded_length
from fastdrive_node.families.qwen2_5_vl.kv_cache import KvCache
from fastdrive_node.families.qwen2_5_vl.language import TorchLanguage
from fastdrive_node.families.tokens import VisualTokens
from fastdrive_node.planning.drafts import ReplayedDrafter
from fastdrive_node.planning.generator import Generator
from fastdrive_node.planning.loading import open_pipeline
from fastdrive_node.pruning.baselines.fastv import FastV
from fastdrive_node.pruning.baselines.simple import NoPruner
from tests.families.checks import scene_of
from tests.families.qwen2_5_vl.replayed import ReplayedLanguage


@pytest.fixture(scope="module")
def vla():
    return open_pipeline(drop=0.5).vla


@pytest.fixture(scope="module", params=[GraphedLanguage, ReplayedLanguage])
def generators(vla, request):
    return Generator(vla, TorchLanguage(vla)), Generator(vla, request.param(vla))


@pytest.fixture
def graphed(vla):
    return ReplayedLanguage(vla)


NO_IMAGE, TOKENS = [torch.arange(0)], [VisualTokens(torch.zeros(0, 1), torch.arange(0), (1, 1, 1))]


def text_prompt(language, count, last=1, seed=0):
    """Prefill of random ids without an image."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(30, 200, (1, count), generator=generator)
    inputs = language.position_inputs(torch.arange(count).expand(3, 1, -1))
    return language.prefill(ids, NO_IMAGE, TOKENS, inputs, 20, last)


def prefill(generator, history, seed, pruner=None, keep=None):
    _, visual, prompt = scene_of(generator.vla, history, seed)
    pruner, every = pruner or NoPruner(), torch.arange(visual.total)
    return generator.prefill(pruner, [prompt], [visual], [every], keep or visual.total)


@torch.inference_mode()
def test_answers_are_those_of_the_eager_steps(generators, ego_history):
    eager, graphed = generators
    answers = [eager.decode(prefill(eager, ego_history, seed))[0] for seed in range(4)]
    assert [graphed.decode(prefill(graphed, ego_history, seed))[0] for seed in range(4)] == answers
    for seed, answer in enumerate(answers):
        drafter = ReplayedDrafter(answer.ids, [3, 9, 20], 0)
        assert graphed.decode_drafted(prefill(graphed, ego_history, seed), drafter, ()).ids == answer.ids
    assert len({answer.ids for answer in answers}) > 1


@torch.inference_mode()
@pytest.mark.parametrize("drop", [0.0, 0.75])
def test_a_draft_that_runs_with_the_pruned_prompt_gives_the_plain_answer(generators, ego_history, drop):
    eager, graphed = generators
    for seed in range(3):
        _, visual, prompt = scene_of(eager.vla, ego_history, seed)
        kept = torch.arange(visual.total)[:: round(1 / (1 - drop))]
        inputs = NoPruner(), [prompt], [visual], [kept], len(kept)
        (plain,) = eager.decode(eager.prefill(*inputs))
        likely = graphed.answer.numbers(np.zeros((6, 2)))
        state = graphed.prefill(*inputs, likely)
        (drafted,) = graphed.decode(state, likely)
        assert state.draft_logits is not None and drafted.ids == plain.ids and drafted.forwards < plain.forwards


@torch.inference_mode()
def test_answers_in_turns_do_not_mix(generators, ego_history):
    """Two prompts take turns on the one static cache, token by token."""
    eager, graphed = generators
    states = [prefill(graphed, ego_history, seed) for seed in (0, 1)]
    for state, other in zip(states, [prefill(eager, ego_history, seed) for seed in (0, 1)], strict=True):
        torch.testing.assert_close(state.logits, other.logits)
    ids, positions = torch.tensor([30]), [graphed._answer_positions(state) for state in states]
    references = [prefill(eager, ego_history, seed) for seed in (0, 1)]
    for place in range(4):
        for state, reference, inputs in zip(states, references, positions, strict=True):
            now = tuple(part[:, place : place + 1] for part in inputs)
            ours = graphed.language.decode_step(ids, now, state.cache).clone()
            torch.testing.assert_close(ours, eager.language.decode_step(ids, now, reference.cache), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_logits_of_a_step_stay_when_the_next_is_run(generators, ego_history):
    logits = [each.forced_logits(prefill(each, ego_history, 0), (30, 31, 32, 33)) for each in generators]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_pruners_inside_of_the_language_model_take_the_eager_steps(generators, ego_history):
    answers = [each.decode(prefill(each, ego_history, 0, FastV(), 96))[0] for each in generators]
    assert answers[0] == answers[1]


@torch.inference_mode()
def test_more_tokens_than_any_graph_has_run_eagerly(generators, ego_history):
    count = LENGTHS[-1] + 1
    logits = []
    for each in generators:
        state = prefill(each, ego_history, 0)
        cache = each.language.cache(1, len(state.prompts[0]) + count)
        for ours, theirs in zip((*cache.keys, *cache.values), (*state.cache.keys, *state.cache.values), strict=True):
            ours[:, :, : state.cache.used] = theirs[:, :, : state.cache.used]
        cache.used = state.cache.used
        places = (state.prompts[0].next_position + torch.arange(count)).expand(3, 1, -1)
        logits.append(each.language.extend(torch.full((1, count), 30), each.language.position_inputs(places), cache))
    torch.testing.assert_close(*logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("tokens", "padded"),
    [(100, 112), (511, 512), (513, 528), (600, 608), (1014, 1024), (1025, 1056), (1500, 1504), (3451, 3456)],
)
def test_padding_is_small_against_a_prompt(tokens, padded):
    assert padded_length(tokens) == padded_length(padded) == padded


@torch.inference_mode()
def test_prompts_of_one_padded_length_use_one_graph_and_give_the_eager_logits_and_cache(vla, graphed):
    eager = TorchLanguage(vla)
    for count, last in [(97, 1), (112, 1), (104, 1), (97, 9), (110, 30)]:
        (logits, cache), (wanted, reference) = (text_prompt(each, count, last, count) for each in (graphed, eager))
        assert logits.shape == wanted.shape and cache.used == reference.used == count
        torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)
        for ours, theirs in zip((*cache.keys, *cache.values), (*reference.keys, *reference.values), strict=True):
            torch.testing.assert_close(ours[:, :, :count], theirs[:, :, :count], atol=1e-4, rtol=1e-4)
        places = graphed.position_inputs((count + torch.arange(3)).expand(3, 1, -1))
        steps = [
            each.extend(torch.tensor([[40, 41, 42]]), places, held)
            for each, held in ((graphed, cache), (eager, reference))
        ]
        torch.testing.assert_close(*steps, atol=1e-4, rtol=1e-4)
    assert graphed.captured == 3  # the prompt, the prompt with a draft, and the step


@torch.inference_mode()
def test_a_prompt_keeps_its_cache_and_logits_when_the_next_one_is_run(vla, graphed):
    eager, token = TorchLanguage(vla), torch.tensor([40])
    held = [(text_prompt(graphed, 90, seed=seed), text_prompt(eager, 90, seed=seed)) for seed in (0, 1)]
    assert graphed._bound() is held[1][0][1]
    now = graphed.position_inputs(torch.full((3, 1, 1), 90))
    for (logits, cache), (wanted, reference) in held:
        torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)
        steps = graphed.decode_step(token, now, cache), eager.decode_step(token, now, reference)
        torch.testing.assert_close(*steps, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_decoding_starts_on_the_cache_of_the_prefill_without_a_copy(graphed, monkeypatch):
    copies = []
    monkeypatch.setattr(KvCache, "copy_from", lambda *given: copies.append(given))
    for seed in range(3):
        _, cache = text_prompt(graphed, 90, seed=seed)
        graphed.decode_step(torch.tensor([40]), graphed.position_inputs(torch.full((3, 1, 1), 90)), cache)
        del cache  # else the next prompt leaves it a copy
    assert copies == []


@torch.inference_mode()
def test_a_longer_prompt_than_all_before_gets_a_larger_cache(vla, graphed):
    eager = TorchLanguage(vla)
    for seed, count in enumerate((60, 700, 60)):
        (logits, cache), (wanted, reference) = (text_prompt(each, count, seed=seed) for each in (graphed, eager))
        torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)
        now = graphed.position_inputs(torch.full((3, 1, 1), count))
        steps = (
            each.decode_step(torch.tensor([40]), now, held) for each, held in ((graphed, cache), (eager, reference))
        )
        torch.testing.assert_close(*steps, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_values_that_are_not_finite_do_not_reach_the_next_prompt(graphed, monkeypatch):
    good, _ = text_prompt(graphed, 90)
    with monkeypatch.context() as patch:
        patch.setattr(graphed, "embed", lambda ids: torch.full((*ids.shape, graphed.config.hidden_size), torch.nan))
        assert text_prompt(graphed, 140)[0].isnan().all() and text_prompt(graphed, 96)[0].isnan().all()
    logits, cache = text_prompt(graphed, 90)
    assert torch.equal(logits, good)
    step = graphed.decode_step(torch.tensor([40]), graphed.position_inputs(torch.full((3, 1, 1), 90)), cache)
    assert step.isfinite().all()


@torch.inference_mode()
def test_few_graphs_of_prompts_are_held_and_a_length_in_use_keeps_its_own(graphed):
    lengths = [32 * (1 + number) for number in range(PREFILLS + 1)]
    for length in lengths * 2:
        text_prompt(graphed, length)
    assert graphed.captured == PREFILLS and [key[0] for key in graphed._prompts] == lengths[:-1]
    for _ in range(RECENT):
        text_prompt(graphed, lengths[-1])
    assert graphed.captured == PREFILLS + 1
    assert [key[0] for key in graphed._prompts] == lengths[1:]
    text_prompt(graphed, 200)
    assert graphed.captured == PREFILLS + 1  # a length that may not come again


@torch.inference_mode()
def test_batches_run_as_before(vla, graphed):
    ids, places = torch.randint(30, 200, (2, 50)), torch.arange(50).expand(3, 2, -1)
    logits = [
        each.prefill(ids, NO_IMAGE * 2, TOKENS * 2, each.position_inputs(places), 5)[0]
        for each in (TorchLanguage(vla), graphed)
    ]
    assert torch.equal(*logits) and graphed.captured == 0


def test_outside_of_inference_mode_calls_run_eagerly_also_on_a_cache_of_before(vla, graphed):
    eager, token = TorchLanguage(vla), torch.tensor([[40]])
    now = graphed.position_inputs(torch.full((3, 1, 1), 90))
    with torch.no_grad():
        assert torch.equal(text_prompt(graphed, 90)[0], text_prompt(eager, 90)[0])
        assert graphed.captured == 0
        with torch.inference_mode():
            _, cache = text_prompt(graphed, 90)
        wanted = eager.extend(token, now, text_prompt(eager, 90)[1])
        torch.testing.assert_close(graphed.extend(token, now, cache), wanted, atol=1e-4, rtol=1e-4)
    assert graphed.captured == 1 and cache.used == 91


def out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")


def broken_capture():
    """The end of a failed capture raises an error of its own."""
    try:
        out_of_memory()
    finally:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


def no_memory_for_the_graph():
    raise RuntimeError("CUDA error: out of memory")


@torch.inference_mode()
@pytest.mark.parametrize("fails", [out_of_memory, broken_capture, no_memory_for_the_graph])
def test_what_memory_has_no_graph_for_runs_without_one_from_then_on(vla, graphed, monkeypatch, caplog, fails):
    eager, token, attempts = TorchLanguage(vla), torch.tensor([40]), []
    now = graphed.position_inputs(torch.full((3, 1, 1), 90))
    text_prompt(graphed, 200)
    with monkeypatch.context() as patch:
        patch.setattr(graphed, "_capture", lambda run: (attempts.append(run), fails()))
        for seed in range(3):
            (logits, cache), (wanted, reference) = (text_prompt(each, 90, seed=seed) for each in (graphed, eager))
            torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)
            steps = graphed.decode_step(token, now, cache), eager.decode_step(token, now, reference)
            torch.testing.assert_close(*steps, atol=1e-4, rtol=1e-4)
    assert len(attempts) == 2  # of the prompt and of the step
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "a prompt of 96 tokens" in caplog.text and "steps of length 1:" in caplog.text
    assert graphed._prompts == graphed._steps == {} and graphed._pool is None  # graphs keep memory that a run may need
    for count in (200, 90, 200):
        text_prompt(graphed, count)
    assert graphed.captured == 2 and [key[0] for key in graphed._prompts] == [208]


@torch.inference_mode()
def test_another_error_in_a_capture_is_raised(graphed, monkeypatch):
    def fails(run):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(graphed, "_capture", fails)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        text_prompt(graphed, 90)


@torch.inference_mode()
@pytest.mark.parametrize(("count", "grouped"), [(1, 0), (2, 1)])
def test_a_single_token_keeps_the_groups_of_heads_and_several_are_rows_of_one_head(vla, monkeypatch, count, grouped):
    language, calls = GraphedLanguage(vla), []
    rows_of_one_head = language._mix_grouped
    monkeypatch.setattr(language, "_mix_grouped", lambda *inputs: calls.append(1) or rows_of_one_head(*inputs))
    _, cache = text_prompt(language, 20)
    ids = torch.full((1, count), 40)
    language.extend(ids, language.position_inputs(torch.arange(20, 20 + count).expand(3, 1, -1)), cache)
    assert len(calls) == grouped * language.layers
