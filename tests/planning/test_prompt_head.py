"""The constant head of a VLA's prompts is run once, and the answers stay those of whole prompts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.families import Vla, build_prompt, constant_head, load_vla, prune_prompt
from fastdrive_node.families.qwen2_5_vl.cuda_graphs import GraphedLanguage
from fastdrive_node.families.qwen2_5_vl.language import TorchLanguage
from fastdrive_node.planning.generator import Generator
from fastdrive_node.planning.loading import open_pipeline
from fastdrive_node.pruning.baselines.fastv import FastV
from fastdrive_node.pruning.baselines.simple import NoPruner
from fastdrive_node.pruning.pruner import LEAST_HEAD, PromptHead
from fastdrive_node.replay.bag import Recording
from fastdrive_node.replay.samples import planning_samples
from fastdrive_node.types import CAMERAS, Command, EgoHistory
from tests.families.checks import scene_of, some_kept
from tests.generation import EXAMPLE, text_first


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return text_first(tmp_path_factory.mktemp("text_first") / "vla")


@pytest.fixture(scope="module")
def vla(folder) -> Vla:
    return load_vla(folder)


@pytest.fixture(scope="module")
def samples():
    return planning_samples(Recording.open("samples/city", None, CAMERAS), 4, 0.5, limit=6)


class Counted(TorchLanguage):
    """Writes down how many positions of each prompt are run."""

    def __init__(self, vla):
        super().__init__(vla)
        self.run: list[tuple[int, int]] = []  # prompts, positions

    def prefill(self, ids, *inputs, **options):
        self.run.append(tuple(ids.shape))
        return super().prefill(ids, *inputs, **options)


def prefill(generator, history, seed=0, keep=96, pruner=None, command=Command.LEFT):
    _, visual, _ = scene_of(generator.vla, history, seed)
    prompt = build_prompt(generator.vla, history, command)
    kept = torch.arange(visual.total) if pruner else some_kept(generator.vla, keep, seed)
    return generator.prefill(pruner or NoPruner(), [prompt], [visual], [kept], keep)


def test_a_head_with_logits_that_are_not_finite_is_not_kept(vla, ego_history, monkeypatch):
    generator = Generator(vla, keep_head=True)
    run = TorchLanguage.forward
    monkeypatch.setattr(TorchLanguage, "forward", lambda self, *a, **k: run(self, *a, **k) * float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        prefill(generator, ego_history)
    monkeypatch.undo()
    assert torch.isfinite(prefill(generator, ego_history).logits).all() and generator.head is not None


def test_the_head_is_what_no_state_and_no_command_changes(vla, ego_history):
    head = constant_head(vla)
    assert vla.tokenizer.decode(head.input_ids) == f"<|im_start|>user\n{EXAMPLE}CAM_FRONT<|vision_start|>"
    assert len(head.visual) == 0 and len(head) >= LEAST_HEAD
    for command in Command:
        for count in (1, 5):
            prompt = build_prompt(vla, EgoHistory(ego_history.states[:count]), command)
            assert torch.equal(prompt.input_ids[: len(head)], head.input_ids)
            assert torch.equal(prompt.position_ids[:, : len(head)], head.position_ids)


@pytest.mark.parametrize(
    ("text", "head"),
    [
        (f"{EXAMPLE}Past: {{history}}. {{images}}", f"{EXAMPLE}Past: ["),
        (f"{EXAMPLE}. Command: {{command}}. {{images}}", f"{EXAMPLE}. Command: "),
        (f"{EXAMPLE}, yaw rate: {{yaw_rate}}. {{images}}", f"{EXAMPLE}, yaw rate: "),
    ],
)
def test_the_head_ends_where_the_state_begins(vla, text, head):
    assert vla.tokenizer.decode(constant_head(replace(vla, template=text)).input_ids) == head


@torch.inference_mode()
def test_logits_are_those_of_whole_prompts_and_the_head_is_run_once(vla, ego_history):
    language = Counted(vla)
    kept_head, whole = Generator(vla, language, keep_head=True), Generator(vla, TorchLanguage(vla))
    head, lengths = len(constant_head(vla)), []
    for seed, (count, keep) in enumerate([(5, 192), (1, 96), (5, 48), (2, 1)]):
        history = EgoHistory(ego_history.states[:count])
        ours, theirs = (prefill(each, history, seed, keep) for each in (kept_head, whole))
        torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-4, rtol=0)
        ids = whole.decode(theirs)[0].ids
        forced = (each.forced_logits(state, ids) for each, state in ((kept_head, ours), (whole, theirs)))
        torch.testing.assert_close(*forced, atol=1e-4, rtol=0)
        lengths.append((1, len(ours.prompts[0]) - head))
    assert language.run == [(1, head), *lengths]


@torch.inference_mode()
def test_the_head_stays_as_it_is_from_plan_to_plan(vla, ego_history):
    generator = Generator(vla, keep_head=True)
    first = prefill(generator, ego_history)
    logits, answer = first.logits.clone(), generator.decode(first)[0]
    for seed in range(1, 4):
        generator.decode(prefill(generator, ego_history, seed))
    again = prefill(generator, ego_history)
    assert torch.equal(again.logits, logits) and generator.decode(again)[0] == answer


@pytest.mark.parametrize("drop", [0.0, 0.5, 0.75])
@pytest.mark.parametrize("drafts", [True, False])
def test_plans_of_the_sample_drive_are_those_of_whole_prompts(folder, samples, drop, drafts):
    pipeline, whole = (open_pipeline(folder, drop=drop, drafts=drafts) for _ in range(2))
    whole.generator.keep_head = False
    answers = set()
    for sample in samples:
        given = sample.frames, sample.history, sample.command
        outputs = [each.plan(*given).output for each in (pipeline, whole)]
        assert outputs[0].answer_ids == outputs[1].answer_ids and outputs[0].forwards == outputs[1].forwards
        answers.add(outputs[0].answer_ids)
    assert pipeline.generator.head is not None and whole.generator.head is None and len(answers) > 2


@torch.inference_mode()
@pytest.mark.parametrize(("place", "shared"), [(LEAST_HEAD, LEAST_HEAD), (LEAST_HEAD - 1, 0), (None, 0)])
def test_a_prompt_that_parts_from_the_head_uses_what_it_has_in_common(vla, ego_history, place, shared):
    """None: at every position, by its position ids."""
    _, visual, prompt = scene_of(vla, ego_history)
    if place is None:
        prompt = replace(prompt, position_ids=prompt.position_ids + 1)
    else:
        prompt.input_ids[place] += 1
    language = Counted(vla)
    inputs = NoPruner(), [prompt], [visual], [torch.arange(visual.total)], visual.total
    ours, theirs = (Generator(vla, each, keep_head=keep) for each, keep in ((language, True), (None, False)))
    assert ours.head.shared(prune_prompt(prompt)) == shared
    torch.testing.assert_close(ours.prefill(*inputs).logits, theirs.prefill(*inputs).logits, atol=1e-4, rtol=0)
    assert language.run[1:] == [(1, len(prompt) - shared)]


def test_something_is_left_to_run_where_a_prompt_is_its_head(vla):
    head = constant_head(vla)
    assert PromptHead(head, None).shared(head) == len(head) - 1


@torch.inference_mode()
def test_pruners_inside_of_the_language_model_and_batches_run_whole_prompts(vla, ego_history):
    language = Counted(vla)
    generator, whole = Generator(vla, language, keep_head=True), Generator(vla)
    ours, theirs = (prefill(each, ego_history, pruner=FastV()) for each in (generator, whole))
    assert torch.equal(ours.logits, theirs.logits)
    _, visual, prompt = scene_of(vla, ego_history)
    every = torch.arange(visual.total)
    generator.prefill(NoPruner(), [prompt] * 2, [visual] * 2, [every] * 2, len(every))
    assert language.run == [(2, len(prompt))]


def test_a_short_head_is_not_kept_and_prompts_with_graphs_run_whole(vla):
    assert len(constant_head(open_pipeline().vla)) < LEAST_HEAD
    assert open_pipeline().generator.head is None
    assert Generator(vla, GraphedLanguage(vla), keep_head=True).head is None
    assert Generator(vla).head is None, "weights may change where nobody says that they do not"


@torch.inference_mode()
def test_a_graphed_language_model_that_is_given_a_head_runs_behind_it(vla, ego_history):
    head = Generator(vla, keep_head=True).head
    _, visual, prompt = scene_of(vla, ego_history)
    every = torch.arange(visual.total)
    inputs = [prompt], [visual], [every], len(every), 20
    logits = [
        NoPruner().prefill(each, *inputs, head=given).logits
        for each, given in ((GraphedLanguage(vla), head), (TorchLanguage(vla), None))
    ]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=0)
