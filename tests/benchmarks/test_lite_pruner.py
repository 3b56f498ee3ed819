"""What lite pruners cost and how they compare: the two studies on small inputs."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.studies import lite_pruner, pruner_cost
from benchmarks.studies.pruner_memory import SIZES
from fastdrive_node.pruning.checkpoint import save_pruner
from fastdrive_node.pruning.recon_pruner import ReconPruner
from tests.benchmarks.test_paired_runs import _run
from tests.generation import lite_pruner as untrained_lite
from tests.training.tiny_nuscenes import write_dataset


def test_costs_are_counted_against_the_prefill_that_is_shortened(tmp_path, capsys) -> None:
    pruner_cost.main(["--runs", "0", "--json", str(tmp_path / "cost.json")])
    report = json.loads((tmp_path / "cost.json").read_text())
    rows = {row["pruner"]: row for row in report["counted"]["3B"]["rows"]}
    assert rows["full"]["parameters"] == 77_081_089
    layer = 2 * 77_076_992 * 3249 + 2 * 3249**2 * 2048  # weights of the matrix products, and half of the attention
    assert rows["full"]["share"] == pytest.approx((layer + 2 * 3249**2 * 2048) / (36 * layer), rel=0.001)
    assert report["counted"]["3B"]["limit"] == pytest.approx(4.25, abs=0.01)
    assert rows["lite 512"]["share"] < 0.007 and rows["lite 512"]["speedup"] > 4.1
    out = capsys.readouterr().out
    assert out.strip() == pruner_cost.table(report) and "| none | 4.25x | 4.15x |" in out


def test_times_are_those_of_whole_prefills(monkeypatch) -> None:
    monkeypatch.setattr(pruner_cost, "WIDTHS", (32,))
    monkeypatch.setattr(pruner_cost, "SIDE", 8)
    monkeypatch.setattr(pruner_cost, "TOKENS", 64)
    found = pruner_cost.time_layers(SIZES["toy"], 4, 2, torch.float32)
    full, lite = found["rows"]
    assert (full["pruner"], lite["pruner"]) == ("full", "lite 32")
    assert full["share"] == pytest.approx(full["ms"] / found["prefill_ms"])
    assert lite["speedup"] == pytest.approx(found["prefill_ms"] / (found["pruned_ms"] + lite["ms"]))


def test_a_layer_of_the_language_model_sees_earlier_tokens_only() -> None:
    torch.manual_seed(0)
    layer, tokens = pruner_cost.causal_layer(SIZES["toy"], "cpu"), torch.randn(1, 6, 128)
    changed = tokens.clone()
    changed[:, -1] += 1
    with torch.no_grad():
        before, after = (layer(each, (1, 6), False) for each in (tokens, changed))
    torch.testing.assert_close(before[:, :-1], after[:, :-1])


def test_scores_and_plans_of_lite_pruners_are_set_against_the_full_one(tmp_path, tiny_dir, tiny_vla, capsys) -> None:
    torch.manual_seed(0)
    full = ReconPruner(tiny_vla.family, tiny_vla.config.text_config)
    files = [tmp_path / f"{name}.safetensors" for name in ("full", "a", "b")]
    for file, pruner in zip(files, (full, untrained_lite(tiny_vla), untrained_lite(tiny_vla)), strict=True):
        save_pruner(file, pruner, tiny_vla.encoder_fingerprint)
    key = ("reconpruner", 0.5, 0)
    runs = [
        _run(tmp_path / "run0", {key: [1.0, 1.0, 2.0, None], ("none", 0.0, 0): [0.5] * 4}),
        _run(tmp_path / "run1", {key: [1.1, 1.1, 2.1, 1.0]}),
        _run(tmp_path / "run2", {key: [0.9, 1.1, 1.9, None]}),
    ]
    data = write_dataset(tmp_path / "d", scenes=1, keyframes=2)
    arguments = [str(data), "--vla", str(tiny_dir), "--pruners", *map(str, files), "--runs", *map(str, runs)]
    arguments[1:1] = ["--fit", str(data)]
    lite_pruner.main([*arguments, "--json", str(tmp_path / "lite.json")])
    found = json.loads((tmp_path / "lite.json").read_text())
    assert [row["pruner"] for row in found["scores"]] == ["full", "lite 0", "lite 1", "linear"]
    assert len({row["auroc"] for row in found["scores"][:3]}) == 3
    same = [row["overlap"]["0.5"] for row in found["scores"]]
    assert same[0] == 1 and max(same[1:3]) < same[3]  # the linear one was fitted to the full one, the others are random
    pairs = {row["pruner"]: row for row in found["comparisons"] if row["figure"] == "l2_avg_to_t"}
    assert pairs["lite 0"]["difference"] == pytest.approx(0.1) and pairs["lite 0"]["samples"] == 3
    assert pairs["lite, mean"]["difference"] == pytest.approx((0.0 + 0.1 + 0.0) / 3, abs=1e-6)
    assert "| full | 1.333 (1) |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        lite_pruner.main(arguments[:-1])


def test_runs_of_other_samples_are_refused(tmp_path) -> None:
    runs = [_run(tmp_path / name, {("reconpruner", 0.5, 0): [1.0]}, first) for first, name in enumerate("ab")]
    with pytest.raises(ValueError, match="different samples"):
        lite_pruner.plans(runs)
