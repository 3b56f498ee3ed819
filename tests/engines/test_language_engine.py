"""A language engine in the planner: answers and plans of torch, and what is refused with which message."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="onnx is not installed: pip install -e .[export]")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e .[export]")

from fastdrive_export.build import GraphOptions, build_language
from fastdrive_export.files import write_manifest
from fastdrive_node.engines.graph_info import LOGITS
from fastdrive_node.engines.language_engine import LanguageChoice, check_language_engine, open_language_engine
from fastdrive_node.engines.manifest import manifest_path, read_manifest
from fastdrive_node.engines.onnx_runner import _choose
from fastdrive_node.engines.vision_engine import EngineChoice, open_engine
from fastdrive_node.errors import ModelError
from fastdrive_node.families import Vla, load_vla, prune_prompt
from fastdrive_node.families.prompt import build_prompt
from fastdrive_node.families.qwen2_5_vl.language import TorchLanguage
from fastdrive_node.planning.loading import open_pipeline
from fastdrive_node.ros.parameters import Settings
from fastdrive_node.ros.planner_factory import load_planner
from fastdrive_node.types import CAMERAS, CameraFrame, Command, EgoHistory, FrameSet
from tests.engines.engine_fixtures import language_parity, sealed
from tests.engines.engine_toys import SIZES, make_toy
from tests.generation import generate, generate_batch, prefill, read_answers_as


@pytest.fixture(scope="module", params=["standard", "onnxruntime"])
def language_file(request, toy, tmp_path_factory) -> Path:
    """An fp32 engine of the ragged toy; tests must not change it."""
    folder = tmp_path_factory.mktemp("language")
    return build_language(toy.vla.path, folder, GraphOptions(operators=request.param))[0]


@pytest.fixture(scope="module")
def standard_file(toy, tmp_path_factory) -> Path:
    return build_language(toy.vla.path, tmp_path_factory.mktemp("standard"), GraphOptions(operators="standard"))[0]


@pytest.fixture
def copy(standard_file, tmp_path) -> Path:
    shutil.copy(manifest_path(standard_file), tmp_path)
    return Path(shutil.copy(standard_file, tmp_path))


@pytest.fixture(scope="module")
def engine(toy, language_file):
    return open_language_engine(LanguageChoice(language_file), toy.vla)


def kept(toy, count, seed):
    return torch.randperm(toy.vla.tokens, generator=torch.Generator().manual_seed(seed))[:count].sort().values


def test_answers_are_those_of_torch_at_every_budget_and_length(toy, engine, ego_history):
    torch_side, answers = TorchLanguage(toy.vla), set()
    for seed, (count, states, command) in enumerate(
        [(180, 5, Command.LEFT), (90, 1, Command.NONE), (45, 3, Command.STRAIGHT), (1, 2, Command.RIGHT)] * 3
    ):
        prompt = build_prompt(toy.vla, EgoHistory(ego_history.states[:states], 0.5), command)
        asked = (toy.vla, toy.tokens + 0.2 * seed, kept(toy, count, seed), prompt)
        answer = generate(engine, *asked)
        assert answer == generate(torch_side, *asked)
        answers.add(answer)
    assert len(answers) > 6, "the answers hardly depend on the question: the test compares nothing"


def test_an_answer_does_not_depend_on_the_one_before(toy, engine, ego_history):
    prompt = build_prompt(toy.vla, ego_history, Command.LEFT)
    first = generate(engine, toy.vla, toy.tokens, kept(toy, 60, 0), prompt)
    generate(engine, toy.vla, toy.tokens + 1, kept(toy, 150, 1), prompt)
    assert generate(engine, toy.vla, toy.tokens, kept(toy, 60, 0), prompt) == first


@torch.inference_mode()
def test_a_cache_that_was_set_back_forgets_and_is_refused_when_it_is_full(toy, engine, ego_history):
    prompt = prune_prompt(build_prompt(toy.vla, ego_history, Command.LEFT), kept(toy, 60, 0))
    seen = toy.tokens.flatten(0, 1)[kept(toy, 60, 0)]
    positions = (prompt.next_position + torch.arange(3)).expand(3, 1, -1)
    cos, sin = engine.position_inputs(positions)

    def step(cache, place, token):
        return engine.decode_step(torch.tensor([token]), (cos[:, place : place + 1], sin[:, place : place + 1]), cache)

    logits, cache = prefill(engine, [prompt], [seen], 3)
    first = logits.clone()
    fresh = step(cache, 0, 30)
    for place, token in ((1, 77), (2, 29)):
        step(cache, place, token)
    with pytest.raises(ModelError, match=f"1 more tokens behind {len(prompt) + 3} are too many"):
        step(cache, 2, 29)
    cache.used = len(prompt)
    assert torch.equal(step(cache, 0, 30), fresh)
    assert torch.equal(logits, first), "logits that were given are not written over"


@torch.inference_mode()
def test_two_prompts_of_other_lengths_are_decoded_side_by_side_and_what_was_in_memory_before_is_not_read(
    toy, engine, ego_history
):
    """Answers of 40 tokens, so that a cache in steps of 64 positions is crossed; a cache is full of NaN before."""
    ids, kinds = torch.randint(10, 90, (40,), generator=torch.Generator().manual_seed(3)), ((180, 0), (20, 1))
    asked = []
    for count, seed in kinds:
        prompt = prune_prompt(build_prompt(toy.vla, ego_history, Command.LEFT), kept(toy, count, seed))
        asked.append((prompt, toy.tokens.flatten(0, 1)[kept(toy, count, seed)]))

    def answers(language, spoil):
        states = []
        for prompt, seen in asked:
            logits, cache = prefill(language, [prompt], [seen], len(ids))
            if spoil and hasattr(cache, "capacity"):
                cache.keys[..., cache.used :, :] = cache.values[..., cache.used :, :] = torch.nan
            now = language.position_inputs((prompt.next_position + torch.arange(len(ids))).expand(3, 1, -1))
            states.append((cache, now, [logits]))
        for start in range(0, len(ids), 4):  # in turns
            for cache, now, rows in states:
                part = tuple(each[:, start : start + 4] for each in now)
                rows.append(language.extend(ids[None, start : start + 4], part, cache)[0])
        return [torch.cat(rows) for _, _, rows in states]

    for ours, theirs in zip(answers(engine, True), answers(TorchLanguage(toy.vla), False), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)


@torch.inference_mode()
def test_memory_of_runs_is_kept_for_few_lengths(toy, engine, ego_history, monkeypatch):
    monkeypatch.setattr(f"{type(engine).__module__}.MOST_PREFILLS", 2)
    before = {}
    for count in (50, 51, 52, 50):
        prompt = prune_prompt(build_prompt(toy.vla, ego_history, Command.LEFT), kept(toy, count, 0))
        logits, _ = prefill(engine, [prompt], [toy.tokens.flatten(0, 1)[kept(toy, count, 0)]], 3)
        assert torch.equal(before.setdefault(count, logits.clone()), logits)
        assert len(engine._prefills) <= 2
    assert [shown for _, shown, *_ in engine._prefills][-2:] == [52, 50]


def test_a_batch_is_left_to_torch(toy, engine, ego_history):
    prompts = [build_prompt(toy.vla, ego_history, command) for command in (Command.LEFT, Command.RIGHT)]
    with pytest.raises(ModelError, match="2 prompts at a time; it runs one, torch runs batches"):
        generate_batch(engine, toy.vla, [toy.tokens] * 2, [None] * 2, prompts)


def test_logits_that_are_not_finite_are_refused(toy, engine, ego_history):
    prompt = build_prompt(toy.vla, ego_history, Command.LEFT)
    with pytest.raises(ModelError, match="logits that are not finite; run `fastdrive export verify`"):
        generate(engine, toy.vla, toy.tokens * torch.nan, None, prompt)


def test_a_runtime_that_fails_is_a_typed_error(toy, language_file, ego_history):
    engine = open_language_engine(LanguageChoice(language_file), toy.vla)
    prompt = build_prompt(toy.vla, ego_history, Command.LEFT)
    prompt.input_ids[0] = 10**6  # no such token
    with pytest.raises(ModelError, match="onnxruntime: the engine failed"):
        generate(engine, toy.vla, toy.tokens, None, prompt)


def frame_set(seed: int) -> FrameSet:
    def image(camera: int) -> np.ndarray:
        return np.random.default_rng([seed, camera]).integers(0, 256, (90, 160, 3), dtype=np.uint8)

    return FrameSet(tuple(CameraFrame(name, 0, 0, lambda i=i: image(i)) for i, name in enumerate(CAMERAS)), t0_ns=seed)


@pytest.fixture
def answers_are_read_as_they_are(monkeypatch):
    """An untrained model writes no plans."""
    read_answers_as(monkeypatch)


@pytest.mark.usefixtures("answers_are_read_as_they_are")
@pytest.mark.parametrize("both", [False, True], ids=["language", "vision and language"])
def test_plans_equal_those_of_torch(toy, engine_file, language_file, ego_history, both):
    choice = EngineChoice("onnxruntime", engine_file) if both else None
    reference = open_pipeline(toy.vla.path, toy.pruner_file)
    pipeline = open_pipeline(
        toy.vla.path, toy.pruner_file, engine=choice, language_engine=LanguageChoice(language_file)
    )
    assert not list(pipeline.vla.model.model.language_model.layers), "torch's own weights are let go"
    texts = set()
    for drop in (0.0, 0.5, 0.75):
        reference.drop = pipeline.drop = drop
        for seed in range(3):
            ours, theirs = (each.plan(frame_set(seed), ego_history, Command.LEFT) for each in (pipeline, reference))
            assert ours.text == theirs.text
            texts.add(ours.text)
    assert len(texts) > 4


@torch.inference_mode()
def test_keys_values_and_steps_take_no_new_memory_after_the_first_plan(toy, engine, ego_history, monkeypatch):
    ids = torch.tensor([[30, 77, 29]])

    def begin(seed):
        indices = kept(toy, 60, seed)
        prompt = prune_prompt(build_prompt(toy.vla, ego_history, Command.LEFT), indices)
        _, cache = prefill(engine, [prompt], [toy.tokens.flatten(0, 1)[indices]], 3)
        positions = engine.position_inputs((prompt.next_position + torch.arange(3)).expand(3, 1, -1))
        return engine.extend(ids, positions, cache), cache

    logits, first = begin(0)
    given, address = logits.clone(), first.keys.data_ptr()
    _, second = begin(1)
    assert second.keys.data_ptr() != address, "the first cache is still held"
    assert torch.equal(logits, given), "logits that were given are not written over"
    del first, second
    allocated, bound = [], set(engine.runner._bindings)
    monkeypatch.setattr(engine._memory, "_allocate", allocated.append)
    again, _ = begin(0)
    assert torch.equal(again, given) and not allocated
    assert len(set(engine.runner._bindings) - bound) <= 1, "only a prefill is bound anew"


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_engines_of_both_parts_do_not_share_the_cores_with_idle_threads(toy, engine_file, language_file, two_threads):
    vision = EngineChoice("onnxruntime", engine_file)
    both = {"engine": vision, "language_engine": LanguageChoice(language_file)}
    for _ in range(2):  # the second as after an exchange
        pipeline = open_pipeline(toy.vla.path, toy.pruner_file, **both)
        assert (torch.get_num_threads(), pipeline.threads) == (1, 1)
        parts: list[Any] = [pipeline.vision, pipeline.generator.language]
        for part in parts:
            options = part.runner._session.get_session_options()
            assert options.intra_op_num_threads == 2
            assert options.get_session_config_entry("session.force_spinning_stop") == "1"
    assert open_pipeline(toy.vla.path, toy.pruner_file).threads == 2 == torch.get_num_threads()
    assert open_pipeline(toy.vla.path, toy.pruner_file, engine=vision).threads == 2


def test_the_node_runs_it_and_tells_what_runs(toy, language_file):
    settings = Settings(
        vla=str(toy.vla.path),
        pruner=str(toy.pruner_file),
        device="cpu",
        language_engine=str(language_file),
        onnx_provider="cpu",
    )
    identity = load_planner(settings).identity()
    assert str(language_file) in identity["language_engine"] and identity["language_runtime"].endswith("cpu")
    assert identity["language_parity"] == "not verified" and "engine" not in identity


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Vla:
    """A VLA of the same sizes with other weights."""
    return make_toy(tmp_path_factory.mktemp("other"), SIZES["ragged"], seed=1).vla


def test_the_tensorrt_provider_counts_as_cuda(toy, standard_file, monkeypatch):
    """It would build for minutes whenever a prompt has another length."""
    monkeypatch.setattr("fastdrive_node.engines.onnx_runner.onnxruntime.get_available_providers", lambda: [])
    with pytest.raises(ModelError, match="onnx_provider: 'cuda' is not in this onnxruntime"):
        open_language_engine(LanguageChoice(standard_file, "tensorrt"), toy.vla)


def test_onnxruntime_s_operators_are_refused_on_a_gpu(toy, tmp_path, monkeypatch):
    present = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("fastdrive_node.engines.onnx_runner.onnxruntime.get_available_providers", lambda: present)
    file = build_language(toy.vla.path, tmp_path)[0]
    reason = r"operators: onnxruntime's own, .* not with provider cuda; set onnx_provider to cpu, or build .*standard$"
    with pytest.raises(ModelError, match=reason):
        open_language_engine(LanguageChoice(file, "cuda"), toy.vla)


def test_without_a_choice_they_run_on_the_cpu_beside_a_gpu(caplog):
    with caplog.at_level("WARNING"):
        assert _choose("auto", torch.device("cuda"), True) == "cpu" == _choose("auto", torch.device("cpu"), True)
    assert [record.getMessage() for record in caplog.records if "--operators standard" in record.getMessage()] != []


def test_an_engine_of_other_weights_is_refused_with_the_command(copy, other):
    with pytest.raises(
        ModelError,
        match=r"language: the engine has [0-9a-f]{12}, but .* has [0-9a-f]{12}; build it with: fastdrive export build "
        r"--part language --vla .* --backend onnxruntime --out .* --precision fp32 --operators standard$",
    ):
        open_language_engine(LanguageChoice(copy), other)


def test_sizes_of_another_model_are_named(toy, copy, tmp_path):
    vla = load_vla(toy.vla.path)
    vla.config.text_config.num_key_value_heads = 1
    with pytest.raises(ModelError, match=r"kv_heads: the engine has 2, but .* has 1;"):
        check_language_engine(copy, vla)


def test_the_fingerprint_is_of_the_weights_and_of_what_the_graph_bakes_in(toy, toys, other):
    """The image size is no part of it: the language half of these two is the same."""
    assert toys["full"].vla.language_fingerprint == toys["ragged"].vla.language_fingerprint
    assert other.language_fingerprint != toy.vla.language_fingerprint != toy.vla.encoder_fingerprint
    vla = load_vla(toy.vla.path)
    vla.config.text_config.rms_norm_eps *= 2
    assert vla.language_fingerprint != toy.vla.language_fingerprint


def test_the_two_kinds_of_engines_are_told_apart(toy, engine_file, language_file):
    with pytest.raises(ModelError, match="part: it is a vision engine, but a language engine is needed"):
        open_language_engine(LanguageChoice(engine_file), toy.vla)
    with pytest.raises(ModelError, match=r"part: it is a language engine, but a vision .*language_engine"):
        open_engine(EngineChoice("onnxruntime", language_file), toy.vla)


def change(file, **values):
    content = json.loads(manifest_path(file).read_text())
    for name, value in values.items():
        *parents, last = name.split("__")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
    manifest_path(file).write_text(sealed(content))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"graph__part": "speech"}, "graph"),
        ({"graph__part": "vision"}, "graph"),
        ({"graph__layers": 0}, r"graph\.layers: 0: must be greater"),
        ({"graph__layers": 2}, "inputs: they are not those of the manifest's graph"),
        ({"graph__kv_heads": 3}, r"graph\.kv_heads: 3 do not divide [24] heads"),
        ({"graph__fp32_mlp": [9]}, "graph.fp32_mlp: layer 9 of 3"),
        ({"graph__precision": "fp16"}, "inputs: they are not those of the manifest's graph"),
        ({"outputs__logits__shape": [2, "new"]}, "outputs: they are not those"),
        ({"kind": "tensorrt"}, "target: missing for kind tensorrt"),
        ({"graph__opset": 17}, "opset: the graph says 18, its manifest 17"),
        ({"graph__operators": "cuda"}, r"graph\.operators: 'cuda'"),
        ({"graph__operators": "onnxruntime"}, "inputs: they are not those of the manifest's graph"),
        ({"graph__operators": "onnxruntime", "graph__opset": 17}, "operators: onnxruntime in opset 17 and fp32"),
        ({"graph__operators": "onnxruntime", "graph__head_dim": 8}, "operators: onnxruntime with head_dim 8"),
    ],
)
def test_a_wrong_field_is_named(toy, copy, values, reason):
    change(copy, **values)
    with pytest.raises(ModelError, match=reason):
        open_language_engine(LanguageChoice(copy), toy.vla)


def test_an_engine_that_failed_its_comparison_is_refused(toy, copy):
    manifest = read_manifest(copy)
    parity = language_parity(passed=False, cosine=0.14)
    write_manifest(copy, manifest.model_copy(update={"parity": parity}))
    assert read_manifest(copy).parity == parity
    with pytest.raises(ModelError, match=r"found a cosine of 0\.1400"):
        open_language_engine(LanguageChoice(copy), toy.vla)


def test_half_types_keep_their_cache_in_them(toy, tmp_path, ego_history):
    file, manifest = build_language(toy.vla.path, tmp_path, GraphOptions("fp16"))
    engine = open_language_engine(LanguageChoice(file), toy.vla)
    assert manifest.graph.outputs()[LOGITS].dtype == "float32"
    prompt = prune_prompt(build_prompt(toy.vla, ego_history, Command.LEFT), None)
    logits, cache = prefill(engine, [prompt], [toy.tokens.flatten(0, 1)], 2)
    assert cache.keys.dtype == cache.values.dtype == torch.float16 and logits.dtype == torch.float32


@torch.inference_mode()
def test_several_tokens_at_once_give_what_single_tokens_give(toy, engine, ego_history):
    prompt = prune_prompt(build_prompt(toy.vla, ego_history, Command.LEFT), kept(toy, 60, 0))
    seen = toy.tokens.flatten(0, 1)[kept(toy, 60, 0)]
    positions = (prompt.next_position + torch.arange(5)).expand(3, 1, -1)
    cos, sin = engine.position_inputs(positions)
    ids = [30, 77, 29, 12, 5]
    _, cache = prefill(engine, [prompt], [seen], 5)
    single = [
        engine.decode_step(torch.tensor([token]), (cos[:, place : place + 1], sin[:, place : place + 1]), cache)
        for place, token in enumerate(ids)
    ]
    cache.used = len(prompt) + 2  # the first two stay
    several = engine.extend(torch.tensor([ids[2:]]), (cos[:, 2:], sin[:, 2:]), cache)
    assert cache.used == len(prompt) + 5
    torch.testing.assert_close(several[0], torch.cat(single[2:]), atol=1e-4, rtol=0)
    with pytest.raises(ModelError, match="1 more tokens behind"):
        engine.extend(torch.tensor([[1]]), (cos[:, :1], sin[:, :1]), cache)
