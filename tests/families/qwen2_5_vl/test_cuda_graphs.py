"""The steps of fixed addresses, run without graphs on a CPU: they give what the eager steps give."""

import pytest
import torch

from fastdrive_node.families.qwen2_5_vl.cuda_graphs import LENGTHS, GraphedLanguage
from fastdrive_node.families.qwen2_5_vl.language import TorchLanguage
from fastdrive_node.planning.drafts import ReplayedDrafter
from fastdrive_node.planning.generator import Generator
from fastdrive_node.planning.loading import open_pipeline
from fastdrive_node.pruning.baselines.fastv import FastV
from fastdrive_node.pruning.baselines.simple import NoPruner
from tests.families.checks import scene_of


@pytest.fixture(scope="module")
def vla():
    return open_pipeline(drop=0.5).vla


@pytest.fixture(scope="module")
def sides(vla):
    return Generator(vla, TorchLanguage(vla)), Generator(vla, GraphedLanguage(vla))


def prefill(generator, history, seed, pruner=None, keep=None):
    _, visual, prompt = scene_of(generator.vla, history, seed)
    pruner, every = pruner or NoPruner(), torch.arange(visual.total)
    return generator.prefill(pruner, [prompt], [visual], [every], keep or visual.total)


@torch.inference_mode()
def test_answers_are_those_of_the_eager_steps(sides, ego_history):
    eager, graphed = sides
    answers = [eager.decode(prefill(eager, ego_history, seed))[0] for seed in range(4)]
    assert [graphed.decode(prefill(graphed, ego_history, seed))[0] for seed in range(4)] == answers
    for seed, answer in enumerate(answers):
        drafter = ReplayedDrafter(answer.ids, [3, 9, 20], 0)
        assert graphed.decode_drafted(prefill(graphed, ego_history, seed), drafter, ()).ids == answer.ids
    assert len({answer.ids for answer in answers}) > 1


@torch.inference_mode()
def test_answers_in_turns_do_not_mix(sides, ego_history):
    """Two prompts share the one static cache, token by token."""
    eager, graphed = sides
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
def test_pruners_inside_of_the_language_model_take_the_eager_steps(sides, ego_history):
    eager, graphed = sides
    answers = [side.decode(prefill(side, ego_history, 0, FastV(), 96))[0] for side in (eager, graphed)]
    assert answers[0] == answers[1]


@torch.inference_mode()
def test_more_tokens_than_any_graph_has_run_eagerly(sides, ego_history):
    eager, graphed = sides
    count = LENGTHS[-1] + 1
    logits = []
    for side in (eager, graphed):
        state = prefill(side, ego_history, 0)
        cache = side.language.cache(1, len(state.prompts[0]) + count)
        for ours, theirs in zip((*cache.keys, *cache.values), (*state.cache.keys, *state.cache.values), strict=True):
            ours[:, :, : state.cache.used] = theirs[:, :, : state.cache.used]
        cache.used = state.cache.used
        places = (state.prompts[0].next_position + torch.arange(count)).expand(3, 1, -1)
        logits.append(side.language.extend(torch.full((1, count), 30), side.language.position_inputs(places), cache))
    torch.testing.assert_close(*logits, atol=1e-4, rtol=0)
