"""What the page says of the conditions is read from what ran."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from fastdrive_node.benchmark.conditions import (
    attention_answer,
    baseline,
    cache_answer,
    identities,
    load_warning,
    machine_load,
    mib_of,
    weights_mib,
)
from fastdrive_node.benchmark.implementations import HfGenerate
from fastdrive_node.benchmark.workload import noise_sample, workload
from fastdrive_node.engines.vision_engine import EngineVision
from fastdrive_node.families import load_vla
from fastdrive_node.planning.pipeline import Pipeline
from fastdrive_node.pruning.catalog import ScoreOptions
from fastdrive_node.pruning.score_pruner import RefinedPruner, ScorePruner
from tests.engines.engine_fixtures import small_engine
from tests.generation import untrained_pruner


@pytest.fixture
def vla(tiny_dir):
    """Of its own, for tests that change how it runs."""
    return load_vla(tiny_dir)


def found(vla):
    return baseline(HfGenerate(workload(vla, vla.torch_vision(), noise_sample(vla)), 4))


def test_transformers_runs_with_sdpa_and_its_cache(vla):
    told = found(vla)
    assert told["attention"] == {"vision encoder": ["sdpa"], "language model": ["sdpa"]}
    prompt = told["forward_tokens"][0]
    assert (told["forward_tokens"][1], told["forwards"]) == (1, 4) and told["cached_positions"] == prompt > 192
    assert attention_answer(told).startswith("yes: sdpa in the ")
    assert cache_answer(told).startswith(f"yes: generate ran {prompt} tokens, then at most 1 in each of 3 forwards")


def test_attention_that_writes_out_its_matrix_is_told(vla):
    vla.model.set_attn_implementation({"text_config": "eager"})
    told = found(vla)
    assert told["attention"] == {"vision encoder": ["sdpa"], "language model": ["eager"]}
    assert attention_answer(told).startswith("NO: ") and "eager in the language model" in attention_answer(told)


def test_generate_without_a_cache_is_told(vla):
    vla.model.generation_config.use_cache = False
    told = found(vla)
    assert told["forward_tokens"][1] > told["forward_tokens"][0] and cache_answer(told).startswith("NO: ")


def test_a_prefill_without_a_cache_is_told(vla):
    told = found(vla) | {"cached_positions": 0}
    assert cache_answer(told).startswith("NO: ") and "holds 0 positions" in cache_answer(told)


@pytest.mark.parametrize(("load", "idle"), [(0.0, True), (0.5, True), (0.51, False), (7.0, False)])
def test_a_machine_that_was_not_idle_is_warned_of(monkeypatch, load, idle):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    told = machine_load()
    assert told == {"one_minute": load, "cores": 2, "idle": idle}
    warning = load_warning(told)
    assert (warning is None) == idle
    assert idle or f"load {load:g} on 2 cores" in str(warning)


def test_weights_are_those_in_memory_and_shared_ones_count_once(vla):
    pruner = ScorePruner(untrained_pruner(vla))
    refined = RefinedPruner(pruner, ScoreOptions(), None, vla.spec.cameras)
    model, both = mib_of([vla.model]), weights_mib(Pipeline(vla, pruner))
    stored = sum(each.nbytes for each in vla.model.parameters()) / 2**20
    assert stored <= model < 1.01 * stored
    assert both == pytest.approx(model + mib_of([pruner.module])) and both > model
    assert weights_mib(Pipeline(vla, refined)) == both, "the pruner inside of another one counts"
    assert mib_of([vla.model, vla.model]) == model
    assert mib_of([torch.nn.Linear(4, 4, device="meta")]) == 0


def test_engines_are_named_with_their_runtime_and_their_files_count_as_weights(vla, tmp_path):
    engine = small_engine(tmp_path)
    runner = SimpleNamespace(name="onnxruntime 1.2.3 cpu", device=torch.device("cpu"))
    vision = EngineVision(engine.file, engine.manifest, runner, torch.device("cpu"))
    pipeline = Pipeline(vla)
    assert identities(pipeline) == {}
    before = weights_mib(pipeline)
    pipeline.vision = vision
    told = identities(pipeline)
    assert told["runtime"] == "onnxruntime 1.2.3 cpu" and told["engine"] == str(engine.file)
    assert told["engine_fingerprint"] == engine.manifest.files["vision.onnx"].sha256[: len(told["engine_fingerprint"])]
    assert weights_mib(pipeline) == pytest.approx(before + 600 / 2**20)
