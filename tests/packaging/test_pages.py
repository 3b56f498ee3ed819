"""Pages name files and commands that exist, and the page of VLA directories every field of ``vla.json``."""

from __future__ import annotations

import json
import re
import shlex
from typing import get_args

import pytest

from fastdrive_node.cli import build_parser
from fastdrive_node.families.prompt import ITEM_MARKERS, TEMPLATE_MARKERS
from fastdrive_node.families.spec import PairKind
from fastdrive_node.families.templates import TEMPLATES
from fastdrive_node.pruning.catalog import NAMES
from tests.packaging.source_imports import ROOT

PAGES = (
    *(
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "QUALITY_DECLARATION.md",
        "models/tiny/README.md",
        "models/tiny_drive/README.md",
        "models/tiny_wide/README.md",
    ),
    *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.md"))),
)
FOLDERS = "fastdrive_node|training|export|ros2_ws|launch|config|models|samples|benchmarks|docs|tests"


@pytest.mark.parametrize("page", PAGES)
def test_every_path_in_a_page_exists(page):
    named = set(re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", (ROOT / page).read_text()))
    assert {path for path in named if not (ROOT / path).exists()} == set()


def _commands(text: str) -> list[list[str]]:
    """The arguments of each ``fastdrive`` line in the page's shell examples."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("fastdrive ")]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_in_a_page_is_parsed(page):
    for arguments in _commands((ROOT / page).read_text()):
        try:
            build_parser().parse_args(arguments)
        except SystemExit:
            pytest.fail(f"fastdrive {shlex.join(arguments)}")


def _fields(schema: dict, definitions: dict) -> set[str]:
    found: set[str] = set()
    for name, part in schema.get("properties", {}).items():
        found |= {name, *_fields(part, definitions)}
    for part in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        found |= _fields(part, definitions)
    if "$ref" in schema:
        found |= _fields(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return found


def test_the_page_of_vla_directories_names_everything_that_may_be_written():
    page = (ROOT / "docs" / "vla_directory.md").read_text()
    schema = json.loads((ROOT / "config" / "vla.schema.json").read_text())
    fields = _fields(schema, schema["$defs"])
    assert {"cameras", "skip_until", "steering_ratio", "decimals", "style"} <= fields
    words = set(re.findall(r"\w+", page))
    assert fields - words == set()
    quoted = set(re.findall(r"`([^`]*)`", page))
    assert {*get_args(PairKind), *TEMPLATES} - quoted == set()
    assert {f"{{{marker}}}" for marker in ITEM_MARKERS | TEMPLATE_MARKERS} - quoted == set()


def test_the_page_of_pruners_has_a_row_of_every_name():
    rows = [line for line in (ROOT / "docs/pruners.md").read_text().splitlines() if line.startswith("| `")]
    found = [name for row in rows for name in re.findall(r"`([\w-]+)`", row.split("|")[1])]
    table = [f"reconpruner{name}" if name.startswith("-") else name for name in found]  # `-even50` is of one row
    assert sorted(set(NAMES) - set(table)) == []
