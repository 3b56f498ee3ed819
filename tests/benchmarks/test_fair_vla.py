"""The VLA that the open-loop table is checked with has another's tower, and nothing else of it."""

from __future__ import annotations

import torch

from benchmarks.studies import fair_vla
from fastdrive_node.families import load_vla
from fastdrive_training.vla.tiny_model import build_tiny_vla


def test_only_the_tower_is_that_of_the_source(tmp_path, capsys):
    given = build_tiny_vla(tmp_path / "source", seed=0)
    fair_vla.main(["--vla", str(given), "--out", str(tmp_path / "run"), "--seed", "77"])
    source, made = load_vla(given), load_vla(tmp_path / "run" / "vla")
    assert made.encoder_fingerprint == source.encoder_fingerprint
    assert not torch.equal(made.model.lm_head.weight, source.model.lm_head.weight)
    heads = torch.load(tmp_path / "run" / "heads.pt", weights_only=True)
    assert set(heads) == {"waypoints", "ahead"}
