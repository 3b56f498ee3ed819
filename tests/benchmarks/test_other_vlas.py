"""The table of decision 0007 is written from the committed figures."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_decision_shows_the_table_of_the_json_files():
    spec = importlib.util.spec_from_file_location("other_vlas", ROOT / "benchmarks" / "studies" / "other_vlas.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "decisions" / "0007-what-the-open-loop-table-depends-on.md").read_text()
    assert module.table() in page
