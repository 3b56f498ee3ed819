"""Training of ReconPruner on every family: its own layers in pruner and decoder, tokens of its own encoder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdrive_node.families import MODEL_TYPES, load_vla
from fastdrive_node.pruning.checkpoint import load_pruner
from fastdrive_training.engine.logging import read_log
from tests.families.checks import dataset_of, train_pruner
from tests.families.table import HEAD, row, short_training
from tests.families.tiny_vlas import build_family_vla

PAGE = Path(__file__).parents[3] / "docs" / "families.md"


@pytest.fixture(scope="module", params=MODEL_TYPES)
def vla_dir(request, tmp_path_factory):
    return build_family_vla(tmp_path_factory.mktemp("vla"), request.param)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return dataset_of(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def short_run(vla_dir, dataset, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """Folder and figures of a run on tokens of the moment; the other runs read them from the cache."""
    folder = tmp_path_factory.mktemp("short")
    return folder, short_training(vla_dir, dataset, folder)


def test_a_short_run_on_tokens_of_the_moment_writes_a_pruner_of_the_vla(vla_dir, short_run):
    figures = short_run[1]
    vla = load_vla(vla_dir)
    assert figures["encoder"] == vla.encoder_fingerprint
    load_pruner(figures["pruner"], vla)


def test_the_table_of_the_documentation_has_the_row_that_the_checks_give(vla_dir, short_run):
    folder, figures = short_run
    _, rows = PAGE.read_text().split("\n".join(HEAD) + "\n")
    *shown, end = rows.splitlines()[: len(MODEL_TYPES) + 1]
    place = MODEL_TYPES.index(load_vla(vla_dir, parts=frozenset()).family.model_type)
    assert shown[place] == row(folder, vla_dir, lambda: figures), "python -m tests.families.table prints it"
    assert end == "", "no other rows"


def test_losses_fall(vla_dir, dataset, tmp_path):
    schedule = {"decoder_pretrain_steps": 16, "steps": 2, "batch": 6, "lr": 3e-3, "log_every": 1, "warmup_steps": 2}
    train_pruner(vla_dir, dataset, tmp_path, schedule=schedule)
    losses = [row["total"] for row in read_log(tmp_path / "run") if "total" in row]
    assert all(map(math.isfinite, losses)) and sum(losses[11:16]) < 0.9 * sum(losses[:5])


def test_pruner_and_decoder_can_start_from_the_language_models_layers(vla_dir, dataset, tmp_path):
    schedule = {"decoder_pretrain_steps": 0, "steps": 1, "batch": 4, "lr": 1e-30, "weight_decay": 0.0}
    figures = train_pruner(vla_dir, dataset, tmp_path, schedule=schedule, pruner_init=1, decoder_init=0)
    vla = load_vla(vla_dir)
    trained = load_pruner(figures["pruner"], vla).layer.state_dict()
    for name, tensor in vla.model.model.language_model.layers[1].state_dict().items():
        assert torch.equal(trained[name], tensor)
