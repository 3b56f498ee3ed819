"""Pages name files that exist."""

from __future__ import annotations

import re

import pytest

from tests.packaging.source_imports import ROOT

PAGES = (
    *("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "models/tiny/README.md"),
    *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.md"))),
)
FOLDERS = "fastdrive_node|training|export|ros2_ws|launch|config|models|samples|benchmarks|docs|tests"


@pytest.mark.parametrize("page", PAGES)
def test_every_path_in_a_page_exists(page):
    named = set(re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", (ROOT / page).read_text()))
    assert {path for path in named if not (ROOT / path).exists()} == set()
