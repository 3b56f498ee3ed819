"""The model card of models/tiny says what the committed results say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tiny_card():
    spec = importlib.util.spec_from_file_location("tiny_card", ROOT / "benchmarks" / "studies" / "tiny_card.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_card_holds_the_committed_figures(tiny_card) -> None:
    card = tiny_card.CARD.read_text(encoding="utf-8")
    assert tiny_card.complete(card) == card


def test_a_card_without_its_marks_is_not_written(tiny_card) -> None:
    with pytest.raises(ValueError, match="not found"):
        tiny_card.filled("# models/tiny", "figures", "text")
