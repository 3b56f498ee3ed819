"""Memory is told before it is taken, and what does not fit is refused."""

import logging

import pytest
import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.families import LANGUAGE, VISION, load_vla, loading
from fastdrive_node.families.weights import stored_parameters


def test_the_parameters_of_each_part_are_counted_without_loading(tiny_dir, tiny_vla):
    counts = stored_parameters(tiny_dir, tiny_vla.family)
    assert counts[VISION] == sum(weight.numel() for weight in tiny_vla.model.model.visual.parameters())
    total = {id(weight): weight.numel() for weight in tiny_vla.model.parameters()}
    assert counts[VISION] + counts[LANGUAGE] == sum(total.values())


def test_large_weights_are_told_before_they_are_read(tiny_dir, monkeypatch, caplog):
    monkeypatch.setattr(loading, "_TOLD_BYTES", 1000)
    with caplog.at_level(logging.WARNING):
        load_vla(tiny_dir, dtype=torch.bfloat16)
    assert "GB of weights as bfloat16 on cpu" in caplog.text and "GB are free" in caplog.text


def test_weights_that_do_not_fit_are_refused_before_they_are_read(tiny_dir, monkeypatch):
    monkeypatch.setattr(loading, "free_memory", lambda device: 1000)
    with pytest.raises(ModelError, match=r"but 0\.00 GB are free; free memory, use bfloat16"):
        load_vla(tiny_dir)
