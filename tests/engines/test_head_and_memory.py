"""Engines of both kinds behind the constant head of a prompt, and the memory of their plans."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("onnx", reason="onnx is not installed: pip install -e .[export]")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e .[export]")

from fastdrive_export.build import GraphOptions, build_language, build_onnx
from fastdrive_node.engines.language_cache import CacheMemory
from fastdrive_node.engines.language_engine import LanguageChoice, open_language_engine
from fastdrive_node.engines.onnx_runner import OnnxRunner
from fastdrive_node.engines.vision_engine import EngineChoice
from fastdrive_node.families import build_prompt, constant_head
from fastdrive_node.families.qwen2_5_vl.language import TorchLanguage
from fastdrive_node.planning.generator import Generator
from fastdrive_node.planning.loading import open_pipeline
from fastdrive_node.pruning.baselines.simple import NoPruner
from fastdrive_node.replay.bag import Recording
from fastdrive_node.replay.samples import planning_samples
from fastdrive_node.types import CAMERAS, Command, EgoHistory
from tests.families.checks import scene_of, some_kept
from tests.generation import EXAMPLE, text_first


@pytest.fixture(scope="module")
def vla(toy):
    return replace(toy.vla, template=toy.vla.template.replace("{images}", f"{EXAMPLE}{{images}}"))


@pytest.fixture(scope="module", params=["standard", "onnxruntime"])
def engine(request, toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    file, _ = build_language(toy.vla.path, folder, GraphOptions(operators=request.param))
    return open_language_engine(LanguageChoice(file), toy.vla)


def prefill(generator, history, seed, keep, draft=None):
    _, visual, _ = scene_of(generator.vla, history, seed)
    prompt = build_prompt(generator.vla, history, Command.LEFT)
    kept = some_kept(generator.vla, keep, seed)
    return generator.prefill(NoPruner(), [prompt], [visual], [kept], keep, draft)


@torch.inference_mode()
def test_logits_and_answers_behind_the_head_are_those_of_whole_prompts(vla, engine, ego_history):
    by_head, whole = Generator(vla, engine, keep_head=True), Generator(vla, engine)
    by_torch, answers = Generator(vla, TorchLanguage(vla)), set()
    for seed, (states, keep) in enumerate([(5, 180), (1, 90), (5, 45), (3, 1)]):
        history = EgoHistory(ego_history.states[:states])
        ours, *others = (prefill(each, history, seed, keep) for each in (by_head, whole, by_torch))
        answer = by_head.decode(ours)[0]
        answers.add(answer.ids)
        for each, state in zip((whole, by_torch), others, strict=True):
            torch.testing.assert_close(ours.logits, state.logits, atol=2e-4, rtol=0)
            assert each.decode(state)[0] == answer
        draft = by_head.answer.numbers([[2.0 * point, 0.0] for point in range(1, 7)])
        drafted = by_head.decode(prefill(by_head, history, seed, keep, draft), draft)[0]
        assert drafted.ids == answer.ids
    assert by_head.head is not None and len(answers) > 2


@torch.inference_mode()
def test_only_what_is_behind_the_head_is_run(vla, engine, ego_history, monkeypatch):
    lengths = []
    execute = engine.runner.execute
    monkeypatch.setattr(
        engine.runner, "execute", lambda pointers, sizes: lengths.append(sizes["new"]) or execute(pointers, sizes)
    )
    generator, head = Generator(vla, engine, keep_head=True), len(constant_head(vla))
    states, logits = [], []
    for seed in range(3):
        states.append(prefill(generator, ego_history, seed, 90))
        logits.append(states[-1].logits.clone())
    assert lengths == [head] + [len(state.prompts[0]) - head for state in states]
    again = [prefill(generator, ego_history, seed, 90).logits for seed in range(3)]
    assert all(map(torch.equal, again, logits)), "the head stays as it is"
    assert all(torch.equal(state.logits, own) for state, own in zip(states, logits, strict=True)), "they are not shared"


@torch.inference_mode()
def test_a_prompt_that_parts_from_the_head_uses_what_it_has_in_common(vla, engine, ego_history):
    _, visual, prompt = scene_of(vla, ego_history)
    prompt.input_ids[20] += 1
    inputs = NoPruner(), [prompt], [visual], [torch.arange(visual.total)], visual.total
    ours, theirs = (Generator(vla, each, keep_head=keep) for each, keep in ((engine, True), (None, False)))
    torch.testing.assert_close(ours.prefill(*inputs).logits, theirs.prefill(*inputs).logits, atol=2e-4, rtol=0)
    assert ours.head.cache.used == 20


@torch.inference_mode()
def test_prompts_of_one_length_behind_different_parts_of_the_head_are_not_mixed(vla, engine, ego_history):
    ours, theirs = Generator(vla, engine, keep_head=True), Generator(vla)
    for parts, cut in ((20, 0), (16, 4), (20, 0)):  # as many tokens behind what they have in common with the head
        _, visual, prompt = scene_of(vla, ego_history)
        prompt.input_ids[parts] += 1
        length = len(prompt) - cut
        prompt = replace(prompt, input_ids=prompt.input_ids[:length], position_ids=prompt.position_ids[:, :length])
        inputs = NoPruner(), [prompt], [visual], [torch.arange(visual.total)], visual.total
        torch.testing.assert_close(ours.prefill(*inputs).logits, theirs.prefill(*inputs).logits, atol=2e-4, rtol=0)
        assert ours.head.cache.used == parts


@torch.inference_mode()
def test_the_memory_of_a_few_lengths_is_kept_and_the_oldest_goes(engine):
    memory = CacheMemory(engine.info, torch.float32, torch.device("cpu"))
    make = memory.fused_cache if engine.info.fused else memory.cache
    for length in range(64, 64 * 11, 64):
        make(length)
    assert list(memory._free) == list(range(64 * 3, 64 * 11, 64))


@pytest.mark.parametrize("operators", ["standard", "onnxruntime"])
@pytest.mark.parametrize("head", [False, True], ids=["images first", "text first"])
def test_plans_after_the_first_take_no_cache_and_bind_no_buffer(tmp_path, monkeypatch, operators, head):
    """models/tiny with engines of both parts, frame sets of the sample drive again and again."""
    made: list[str] = []
    for owner, name in ((CacheMemory, "_allocate"), (OnnxRunner, "_bind")):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda self, *a, real=real, name=name: made.append(name) or real(self, *a))
    folder = text_first(tmp_path / "vla", EXAMPLE if head else "")
    options = GraphOptions(operators=operators)
    vision = build_onnx(folder, folder / "reconpruner.safetensors", tmp_path, options)[0]
    language = build_language(folder, tmp_path, options)[0]
    pipeline = open_pipeline(
        folder, drop=0.5, engine=EngineChoice("onnxruntime", vision), language_engine=LanguageChoice(language)
    )
    samples = planning_samples(Recording.open("samples/city", None, CAMERAS), 4, 0.5, limit=2)
    first = [pipeline.plan(each.frames, each.history, each.command) for each in samples]
    assert set(made) == {"_allocate", "_bind"} and (pipeline.generator.head is not None) == head
    made.clear()
    for _ in range(3):
        again = [pipeline.plan(each.frames, each.history, each.command) for each in samples]
        assert [plan.text for plan in again] == [plan.text for plan in first]
    assert made == []
