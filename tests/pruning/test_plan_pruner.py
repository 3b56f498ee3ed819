"""The pruner by the plan on the kept tokens, as it ships with models/tiny_wide."""

from __future__ import annotations

import pytest
import torch

from benchmarks import ROOT
from fastdrive_node.families import load_vla
from fastdrive_node.families.fingerprint import pruner_fingerprint
from fastdrive_node.planning.identity import Identity
from fastdrive_node.planning.loading import open_pipeline, own_file
from fastdrive_node.pruning.catalog import FILES
from fastdrive_node.pruning.registry import make_pruner
from fastdrive_training.evaluation.settings import OpenLoopSettings

NAME, WIDE = "reconpruner-plan", ROOT / "models/tiny_wide"


@pytest.fixture(scope="module")
def vla():
    return load_vla(WIDE)


def test_both_shipped_pruners_belong_to_the_tower_and_one_knows_the_cameras(vla):
    full = make_pruner("reconpruner", vla, WIDE / "reconpruner.safetensors")
    plan = make_pruner(NAME, vla)
    assert (plan.name, len(vla.spec.cameras), vla.grid) == (NAME, 6, (6, 12))
    assert not full.module.cameras and plan.module.cameras == vla.spec.cameras
    with torch.inference_mode():
        tokens = torch.randn(6, 72, vla.width, generator=torch.Generator().manual_seed(0))
        scores = [each.module(tokens, vla.grid).flatten() for each in (full, plan)]
    chosen = [set(each.topk(108).indices.tolist()) for each in scores]
    assert len(chosen[0] & chosen[1]) < 100  # they are not the same file


def test_its_scores_on_pooled_cells_come_from_its_own_file_whatever_file_is_named(vla):
    named = WIDE / "reconpruner.safetensors"
    pooled, plan = make_pruner(f"{NAME}-pooled", vla, named), make_pruner(NAME, vla)
    assert pooled.options.pooled and pooled.name == f"{NAME}-pooled"
    assert torch.equal(pooled.base.module.camera_bias, plan.module.camera_bias)
    assert own_file(WIDE, f"{NAME}-pooled") == WIDE / FILES[NAME]
    own = OpenLoopSettings(pruners=("none", f"{NAME}-pooled"))
    assert not own.reads_pruner and OpenLoopSettings(pruners=("reconpruner-pooled",)).reads_pruner
    pipeline = open_pipeline(WIDE, f"{NAME}-pooled", 0.75)
    assert Identity(pipeline, f"{NAME}-pooled")()["pruner_fingerprint"] == pruner_fingerprint(WIDE / FILES[NAME])[:12]


def test_the_node_s_pipeline_takes_its_name():
    pipeline = open_pipeline(WIDE, NAME, 0.75)
    values = Identity(pipeline, NAME)()
    assert values["pruner"] == f"reconpruner {NAME}"
    assert values["pruner_fingerprint"] == pruner_fingerprint(WIDE / FILES[NAME])[:12]
