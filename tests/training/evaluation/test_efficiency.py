"""Operations and memory of a row, counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from fastdrive_node.families.qwen2_5_vl.language import TorchLanguage
from fastdrive_training.data.nuscenes.keyframes import KeyframeDataset
from fastdrive_training.data.token_cache import FeatureStore
from fastdrive_training.evaluation import OpenLoopSettings, efficiency
from fastdrive_training.evaluation.answers import Answerer, make_rows
from fastdrive_training.evaluation.efficiency import PeakMemory, count_flops, measure
from fastdrive_training.evaluation.samples import surroundings
from fastdrive_training.evaluation.seen_images import SeenImages, SeenStore
from tests.families.qwen2_5_vl.replayed import ReplayedLanguage
from tests.training.tiny_nuscenes import write_dataset

MB = 1 << 20


def test_attention_counts_its_two_products_for_every_head_of_the_query():
    query, key = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 7, 8)
    value = torch.randn(2, 2, 7, 8)
    flops = count_flops(lambda: scaled_dot_product_attention(query, key, value, enable_gqa=True))
    assert flops == 2 * 2 * 4 * 5 * 7 * (8 + 8)
    with torch.inference_mode():
        assert count_flops(lambda: query.flatten() @ torch.randn(320, 3)) == 2 * 320 * 3


def test_peak_memory_is_what_lives_at_once():
    kept = torch.zeros(MB // 4)
    with PeakMemory() as memory:
        first = torch.zeros(MB // 4)  # 1 MiB
        second = torch.cat([first, kept])  # 2 MiB more
        del first
        third = second.view(2, -1) + 1  # 2 MiB more, of which the view is none
        del second
        third.add_(kept[0])  # in place
    assert memory.peak == 4 * MB
    with PeakMemory() as memory:
        for _ in range(10):
            torch.zeros(MB // 4)
    assert memory.peak <= 2 * MB


@pytest.fixture(scope="module")
def sample(tiny_vla, tmp_path_factory):
    dataset = KeyframeDataset(write_dataset(tmp_path_factory.mktemp("data") / "d", scenes=1, keyframes=8))
    answerer = Answerer(tiny_vla)
    features = FeatureStore(dataset, tiny_vla, None, attention=False)
    (seen,) = SeenStore(dataset, tiny_vla, features).load([0])
    assert isinstance(seen, SeenImages)
    around = surroundings(dataset[0])
    return answerer, answerer.sample(dataset[0], dataset[0], seen, around, coverage=False)


def _prefill_by_hand(vla, length: int) -> int:
    """Multiply-adds of a prefill of ``length`` positions, times two."""
    config = vla.model.config.text_config
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    side = width // heads
    projections = width * (heads + 2 * groups) * side + heads * side * width
    attention = 2 * heads * side * length**2
    feed_forward = 3 * width * inner
    positions = (layers - 1) * length + 1  # of the last layer only the last position goes through the feed-forward
    total = layers * (length * projections + attention) + positions * feed_forward + width * config.vocab_size
    return 2 * total


def _rows(vla, *pruners):
    return make_rows(vla, OpenLoopSettings(pruners=pruners, drops=(0.75,)))


@pytest.fixture(scope="module")
def measured(sample, tiny_vla) -> list[dict]:
    """The columns of ``none`` and of ``uniform`` at a drop of 0.75, of one sample."""
    answerer, one = sample
    return measure(answerer, _rows(tiny_vla, "none", "uniform"), [one])


def test_flops_of_a_prefill_equal_a_hand_count(sample, tiny_vla, measured):
    _, one = sample
    for figures, tokens in zip(measured, (192, 48), strict=True):
        length = len(one.prompt) - 192 + tokens
        assert figures["flops"] == pytest.approx(_prefill_by_hand(tiny_vla, length), rel=0.01)


def test_flops_of_a_decode_step_equal_a_hand_count(sample, tiny_vla, measured):
    _, one = sample
    figures = measured[0]
    config = tiny_vla.model.config.text_config
    steps = (
        tiny_vla.spec.answer.max_new_tokens
    )  # an untrained model never stops; the first token comes with the prefill
    middle = len(one.prompt) + steps / 2
    weights = sum(layer.numel() for layer in TorchLanguage(tiny_vla)._text.layers.parameters() if layer.ndim == 2)
    step = 2 * (weights + config.hidden_size * config.vocab_size)
    step += 4 * config.num_hidden_layers * config.hidden_size * middle
    assert figures["decode_flops_per_token"] == pytest.approx(step * (steps - 1) / steps, rel=0.02)


def test_operations_of_cuda_graphs_are_counted(sample, tiny_vla, measured):
    """A counter does not see what a graph's replay runs."""
    _, one = sample
    graphed = Answerer(tiny_vla)
    graphed.generator.language = language = ReplayedLanguage(tiny_vla)
    rows = _rows(tiny_vla, "none", "uniform")
    for figures, plain in zip(measure(graphed, rows, [one], timing=False), measured, strict=True):
        names = ("flops", "decode_flops_per_token")
        assert [figures[name] for name in names] == [plain[name] for name in names]
    assert language.captured > 0  # the decode that is not counted


def test_pruned_prompt_takes_less_memory(tiny_vla, measured):
    whole, pruned = measured
    weights = sum(tensor.nbytes for tensor in tiny_vla.model.parameters()) / 1e6
    assert weights < pruned["peak_memory_mb"] < whole["peak_memory_mb"]


def test_nothing_is_measured_without_a_sample(sample, tiny_vla):
    assert set(measure(sample[0], _rows(tiny_vla, "none"), [])[0].values()) == {None}


def test_rows_take_turns_on_each_sample(sample, tiny_vla, monkeypatch):
    answerer, one = sample
    rows, timed = _rows(tiny_vla, "none", "uniform", "divprune"), []
    monkeypatch.setattr(efficiency._Counter, "count", lambda *_: {"flops": 7, "peak_memory_mb": 0.5})

    def times(_, row, sample):
        timed.append(row.key.pruner)
        return {"prefill_ms": float(len(timed))}

    monkeypatch.setattr(efficiency, "_times", times)
    figures = measure(answerer, rows, [one, one])
    assert timed == ["none", "uniform", "divprune", "uniform", "divprune", "none"]
    assert [row["prefill_ms"] for row in figures] == [3.5, 3.0, 4.0]
    assert [(row["flops"], row["peak_memory_mb"]) for row in figures] == [(7, 0.5)] * 3


def test_a_decode_is_counted_once_for_rows_with_as_many_tokens(sample, tiny_vla, monkeypatch):
    """FastV keeps as many as the others, but not in its first layers."""
    answerer, one = sample
    rows, counted = _rows(tiny_vla, "none", "uniform", "random", "fastv"), []
    each = [measure(answerer, [row], [one], timing=False)[0] for row in rows]
    monkeypatch.setattr(efficiency, "count_flops", lambda work: counted.append(work.__name__) or count_flops(work))
    assert measure(answerer, rows, [one, one], timing=False) == each
    assert counted.count("before_decode") == 8 and counted.count("decode") == 3


def test_progress_is_shown_while_operations_are_counted(sample, tiny_vla, capsys):
    measure(sample[0], _rows(tiny_vla, "none"), [sample[1]], timing=False, progress=True)
    shown = capsys.readouterr().err
    assert "counting" in shown and "1/1" in shown
