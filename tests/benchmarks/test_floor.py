"""Operations and bytes of the stages, against counts by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fastdrive_node.benchmark import floor as module
from fastdrive_node.benchmark.floor import Floor, Speeds, Work, count_operations, measured_speeds
from fastdrive_node.benchmark.implementations import FastDrive
from fastdrive_node.benchmark.workload import noise_sample, workload
from fastdrive_node.families import load_vla
from fastdrive_node.families.spec import default_vla_dir


@pytest.fixture(scope="module")
def vla():
    return load_vla(default_vla_dir())


def test_a_stage_takes_at_least_the_longer_of_its_operations_and_its_bytes():
    speeds = Speeds(flop_per_s=1e9, bytes_per_s=2e9)
    arithmetic = speeds.row(Work(3e6, 2e6, attention_flop=1e6), ours=6.0, transformers=None)
    assert arithmetic["least_ms"] == 3.0 and arithmetic["measured_ms"] == {"ours": 6.0}
    assert (arithmetic["gflop"], arithmetic["attention_gflop"], arithmetic["gbytes"]) == (0.003, 0.001, 0.002)
    assert speeds.row(Work(1e6, 8e6))["least_ms"] == 4.0


def test_the_language_model_s_work_is_that_of_its_layers(vla):
    text = vla.config.text_config
    width, inner, heads, kv = text.hidden_size, text.intermediate_size, text.num_attention_heads, 2
    keys = width * kv // heads
    weights = text.num_hidden_layers * (2 * width * width + 2 * width * keys + 3 * width * inner)
    head, layers = text.vocab_size * width, text.num_hidden_layers
    work = Floor(vla).prefill(100, 28)
    assert work.attention_flop == layers * 2 * 2 * width * 100 * 100 / 2, "scores and values, half of each"
    assert work.flop == 2 * weights * 100 + 2 * head * 28 + work.attention_flop
    assert work.read_bytes == 4 * (weights + head)
    step = Floor(vla).decode(100)
    assert step.flop == 2 * (weights + head) + layers * 2 * 2 * width * 100 and step.read_bytes == work.read_bytes


def test_the_encoder_s_work_is_of_all_images_with_attention_within_windows(vla):
    ours = FastDrive(workload(vla, vla.torch_vision(), noise_sample(vla)), 4)
    with torch.inference_mode():
        work = Floor(vla).encode(ours)
    vision = vla.config.vision_config
    patches, windows = 6 * 8 * 16, 64  # a window of 112 px has 8 x 8 patches, and each image two of them
    full = len(vision.fullatt_block_indexes)
    seen = full * 128 + (vision.depth - full) * windows
    assert work.attention_flop == 4 * vision.hidden_size * patches * seen
    blocks = sum(
        each.numel() for name, each in vla.model.named_parameters() if ".visual.blocks." in name and each.ndim == 2
    )
    assert work.flop - work.attention_flop > 2 * blocks * patches
    assert work.read_bytes == sum(each.nbytes for each in vla.model.model.visual.parameters())


def test_operations_of_products_and_of_attention_are_told_apart():
    query = torch.randn(1, 2, 5, 4)
    attend = torch.nn.functional.scaled_dot_product_attention
    with torch.inference_mode():
        products, attention = count_operations(lambda: attend(query, query, query).flatten() @ torch.randn(40, 3))
    assert (products, attention) == (2 * 40 * 3, 2 * 2 * 5 * 5 * 8)


def test_speeds_are_of_the_best_call_and_copies_go_between_memory_that_was_written(monkeypatch):
    written, order = set(), []

    class Buffer:
        def fill_(self, value):
            written.add(id(self))

        def copy_(self, source):
            assert {id(self), id(source)} <= written
            order.append((buffers.index(source), buffers.index(self)))

    buffers = []
    clock = iter(range(10_000))
    ticks = SimpleNamespace(perf_counter=lambda: next(clock) ** 2)  # each call takes longer than the one before
    monkeypatch.setattr(module, "time", ticks)
    monkeypatch.setattr(module.torch, "zeros", lambda *_, **__: buffers.append(Buffer()) or buffers[-1])
    monkeypatch.setattr(module.torch, "mm", lambda *_, **__: None)
    speeds = measured_speeds(SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32))
    assert set(order) == {(0, 1), (1, 2), (2, 3), (3, 0)}
    assert speeds.flop_per_s == 2 * 512**3 / 5, "the second call is the first that counts: from 2 ** 2 to 3 ** 2"
    assert speeds.bytes_per_s > 0
