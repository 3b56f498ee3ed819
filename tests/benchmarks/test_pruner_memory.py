"""benchmarks/studies/pruner_memory.py: what it counts without allocating is what there is."""

import json

import pytest
import torch

from benchmarks.studies import pruner_memory as memory
from fastdrive_node.families import load_vla
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_training.pruner.decoder import ReconDecoder
from fastdrive_training.vla.tiny_model import build_tiny_vla
from tests.generation import QWEN


def _count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_toy_size_is_that_of_the_tiny_vla(tmp_path):
    tiny_vla = load_vla(build_tiny_vla(tmp_path, seed=0))
    counted = memory.count(memory.SIZES["toy"])
    config = tiny_vla.config.text_config
    assert counted["parameters"] == {
        "tower": _count(tiny_vla.model.model.visual),
        "pruner": _count(ReconPruner(QWEN, config)),
        "decoder": _count(ReconDecoder(QWEN, config, 2, 28)),
    }
    assert counted["tokens"] * 6 == tiny_vla.tokens


def test_what_autograd_keeps_is_counted_as_on_the_cpu():
    size = memory.SIZES["toy"]
    text = size.config().text_config
    real = [ReconPruner(QWEN, text), ReconDecoder(QWEN, text, size.decoder_layers, memory.CELL_PX)]
    expected = [memory.training_step(size, *real, images, "cpu").saved_bytes for images in (1, 2)]
    _, *meta = memory.modules(size)
    found = [memory.training_step(size, *meta, images).saved_bytes for images in (1, 2)]
    assert found[1] - found[0] == pytest.approx(expected[1] - expected[0], rel=0.25)


def test_3b_pruner_has_the_papers_size_and_the_estimate_adds_up(tmp_path):
    memory.main(["--sizes", "toy,3B", "--batch", "8", "--json", str(tmp_path / "m.json")])
    report = json.loads((tmp_path / "m.json").read_text())
    row = report["sizes"]["3B"]
    assert 0.065e9 < row["parameters"]["pruner"] < 0.085e9  # 0.07 B
    assert row["estimate"]["disk_gb_cached_features"] == pytest.approx(240942 * 336 * 2048 * 2 / 1e9)
    live = row["train_tflop_an_image"] + row["tower_tflop_an_image"]
    hours = row["estimate"]["gpus"]["A100"]["gpu_hours_live"]
    assert hours == pytest.approx(2_409_420 * live / (312 * 0.4) / 3600)
    assert row["estimate"]["gpus"]["A100"]["gpu_hours_cached"] < hours
    trained = row["parameters"]["pruner"] + row["parameters"]["decoder"]
    assert row["state_gib"] == pytest.approx(16 * trained / 2**30)
    assert report["sizes"]["toy"]["estimate"]["gpus"] == {}
    assert (tmp_path / "m.md").read_text().count("\n") == 4


def test_the_flops_are_those_of_the_layers():
    """Six FLOPs a parameter and token (forward and backward), over both branches; the rest is the losses'."""
    size = memory.SIZES["3B"]
    _, pruner, decoder = memory.modules(size)
    with torch.device("meta"):
        flops = memory.training_step(size, pruner, decoder, 1).flops
    expected = 6 * size.tokens * (2 * _count(decoder) + _count(pruner))
    assert flops == pytest.approx(expected, rel=0.1)
