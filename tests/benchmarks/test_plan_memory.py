"""benchmarks/studies/plan_memory.py: what it counts without allocating anything is there, and the recipes say it."""

import json
import re

import pytest
import torch

from benchmarks import RESULTS, ROOT
from benchmarks.studies import plan_memory as memory
from fastdrive_training.engine.config import load_recipe

TOY = memory.SIZES["toy"]


def _kept(batch: int, at_once: int, device: str) -> memory.KeptTensors:
    step = memory.CountedStep.of(TOY, batch, torch.device(device))
    kept = step.kept()
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
        step.loss(step.scores(), at_once).backward()
    return kept


def test_what_autograd_keeps_at_one_time_is_counted_as_on_the_cpu() -> None:
    meta, real = (_kept(3, 1, device) for device in ("meta", "cpu"))
    assert meta.all.most == pytest.approx(real.all.most, rel=0.25)
    assert meta.fused.most < 0.8 * meta.all.most  # without the attention matrices
    assert meta.all.now == meta.fused.now == 0  # all of it is free again


def test_one_pass_is_counted_for_all_passes_of_a_step() -> None:
    whole = _kept(4, 1, "meta")
    counted = memory.count_step(TOY, 4, 1)
    assert counted["kept_gib"] == pytest.approx(whole.fused.most / memory.GIB, rel=0.02)
    assert memory.count_step(TOY, 4, 4)["kept_gib"] > 2 * counted["kept_gib"]
    assert memory.count_step(TOY, 4, 4)["step_tflop"] == pytest.approx(counted["step_tflop"], rel=0.01)


@pytest.mark.parametrize("size", ["3B", "7B"])
def test_recipes_have_the_committed_memory_and_hours_of_their_batches(size) -> None:
    path, content = load_recipe(f"distil_{size.lower()}_plan")
    rows = json.loads((RESULTS / "plan_memory.json").read_text())["rows"]
    batches = content["batch"], content["teacher_batch"]
    row = next(row for row in rows if row["size"] == size and (row["batch"], row["teacher_batch"]) == batches)
    assert (content["keyframes"], content["steps"]) == (memory.KEYFRAMES, memory.STEPS)
    text = re.sub(r"\s*\n# ", " ", path.read_text())
    found = re.search(
        r"about (\d+) GiB on paper, attention matrices included, and about (\d+\.\d) hours of an H100", text
    )
    assert found is not None
    assert found.groups() == (f"{row['memory_with_matrices_gib']:.0f}", f"{row['gpu_hours']['H100']:.1f}")


def test_the_page_has_the_committed_memory_with_attention_matrices() -> None:
    rows = json.loads((RESULTS / "plan_memory.json").read_text())["rows"]
    of = {(row["size"], row["teacher_batch"]): f"{row['memory_with_matrices_gib']:.0f}" for row in rows}
    page = (ROOT / "docs/training_the_pruner.md").read_text()
    assert f"needs {of['3B', 1]} GiB at 3B and {of['7B', 1]} GiB at 7B on paper" in page
    assert f"would need {of['3B', 16]} and {of['7B', 16]} GiB" in page
