"""Generated files: the shipped parameter file, the table in docs/node.md, and the JSON schemas in ``config/``.

``python -m fastdrive_node.ros.parameter_files`` writes them in a checkout; a test compares them.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from fastdrive_node.families.spec import VlaSpec
from fastdrive_node.files import write_atomically
from fastdrive_node.ros.parameters import PARAMETERS, SCHEMA_FILE, ParameterFile

CONFIG_FILE, DOCUMENT = "config/fastdrive.yaml", "docs/node.md"
TABLE_MARKS = ("<!-- parameters: written by fastdrive_node.ros.parameter_files -->\n", "<!-- end of parameters -->")


SCHEMAS = {SCHEMA_FILE: ParameterFile, "config/vla.schema.json": VlaSpec}


def schema_text(kind: Any) -> str:
    """The JSON schema of a model as a file's content."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **TypeAdapter(kind).json_schema()}
    return json.dumps(schema, indent=2) + "\n"


def yaml_text() -> str:
    """The content of ``config/fastdrive.yaml``: every parameter with its default."""
    lines = [
        "# Parameters of fastdrive_node with their defaults; names that are not here are refused. Written by",
        "# `python -m fastdrive_node.ros.parameter_files`. Editors that know JSON schemas read the next line.",
        "# yaml-language-server: $schema=fastdrive.schema.json",
        "/**:",
        "  ros__parameters:",
    ]
    for name, schema in PARAMETERS.items():
        if "section" in schema:
            lines += ["", f"    # --- {schema['section']}"]
        notes = [_values(schema), "" if "readOnly" in schema else "may change while running"]
        text = f"{schema['description']} ({'; '.join(filter(None, notes))})".removesuffix(" ()")
        lines += textwrap.wrap(text, 112, initial_indent="    # ", subsequent_indent="    #   ")
        lines.append(f"    {name}: {json.dumps(schema['default'])}")
    return "\n".join(lines) + "\n"


def table_text() -> str:
    """The parameter table of docs/node.md, a Markdown table a section."""
    lines = []
    for name, schema in PARAMETERS.items():
        if "section" in schema:
            lines += ["", f"**{schema['section']}**", "", "| parameter | default | values | |", "|---|---|---|---|"]
        live = "" if "readOnly" in schema else " *"
        default = json.dumps(schema["default"])
        lines.append(f"| `{name}`{live} | `{default}` | {_values(schema)} | {schema['description']} |")
    return "\n".join(lines[1:]) + "\n"


def _values(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(schema["enum"])
    if "minimum" in schema:
        return f"{schema['minimum']:g} to {schema['maximum']:g}"
    return "true, false" if schema["type"] == "boolean" else ""


def file_texts(root: Path) -> dict[str, str]:
    """What the files of a checkout should contain, by path."""
    document = (root / DOCUMENT).read_text(encoding="utf-8")
    begin, end = document.index(TABLE_MARKS[0]) + len(TABLE_MARKS[0]), document.index(TABLE_MARKS[1])
    return {
        CONFIG_FILE: yaml_text(),
        **{file: schema_text(kind) for file, kind in SCHEMAS.items()},
        DOCUMENT: document[:begin] + table_text() + document[end:],
    }


if __name__ == "__main__":
    checkout = Path(__file__).resolve().parents[2]
    for name, text in file_texts(checkout).items():
        with write_atomically(checkout / name) as partial:
            partial.write_text(text, encoding="utf-8")
