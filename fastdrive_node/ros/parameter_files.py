"""Parameter files: read and checked. And generated files: the shipped one, the table in docs/node.md, JSON schemas.

``python -m fastdrive_node.ros.parameter_files`` writes them in a checkout; a test compares them.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, RootModel, StringConstraints, TypeAdapter, ValidationError

from fastdrive_node.errors import InputError
from fastdrive_node.families.spec import VlaSpec
from fastdrive_node.files import write_atomically
from fastdrive_node.ros.parameters import PARAMETERS, Settings, reason_of, unknown
from fastdrive_node.validation import read_bytes, read_yaml

CONFIG_FILE, DOCUMENT = "config/fastdrive.yaml", "docs/node.md"
TABLE_MARKS = ("<!-- parameters: written by fastdrive_node.ros.parameter_files -->\n", "<!-- end of parameters -->")
_WORD = r"(\*{1,2}|[A-Za-z_][A-Za-z0-9_]*)"  # of a node's name: * is one word, ** any number of them
_NODE_NAME = rf"^/?({_WORD}/)*{_WORD}$"
SCHEMA_FILE = "config/fastdrive.schema.json"


class _FileValues(Settings):
    use_sim_time: bool = Field(False, description="take the time from /clock")
    start_type_description_service: bool = Field(True, description="serve the types of the topics")
    qos_overrides: dict = Field({}, description="QoS of the inputs, by topic, as in every ROS 2 node that allows it")


class _FileSection(BaseModel):
    model_config = ConfigDict(extra="forbid")

    ros__parameters: _FileValues


class ParameterFile(RootModel):
    """A ROS 2 parameter file: names of nodes, or patterns of them, with values."""

    model_config = ConfigDict(title="Parameters of fastdrive_node")

    root: Annotated[dict[Annotated[str, StringConstraints(pattern=_NODE_NAME)], _FileSection], Field(min_length=1)]


def check_parameter_file(path: str | Path, node: str = "fastdrive") -> dict[str, object]:
    """Read a ROS 2 parameter file and check it.

    Args:
        node: its name with its namespace, like /car/fastdrive; sections of other nodes count nothing, as in rcl.

    Returns:
        The values of this node's parameters, those of later sections over those of earlier ones.

    Raises:
        InputError: it cannot be read, has no section of the node, or a name or value is wrong; the text names it.
    """
    path = Path(path)
    try:
        content = read_yaml(read_bytes(path).decode())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as YAML ({' '.join(str(error).split())[:160]})") from error
    try:
        every = ParameterFile.model_validate(content).root
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        if first["type"] == "extra_forbidden" and len(first["loc"]) == 3:  # section, ros__parameters, name
            name = str(first["loc"][-1])
            raise InputError(f"{path}: {where.removesuffix(name)}{unknown(name)}") from error
        given = "" if isinstance(first["input"], dict) else f" {first['input']!r:.80}:"
        raise InputError(f"{path}: {where}:{given} {reason_of(error)}; {SCHEMA_FILE} has the parameters") from error
    node = f"/{node.strip('/')}"
    sections = [each.ros__parameters for name, each in every.items() if _is_of(name, node)]
    if not sections:
        raise InputError(f"{path}: {', '.join(every)}: no section of the node {node}; name it /**, or {node}")
    given = {name: getattr(values, name) for values in sections for name in values.model_fields_set}
    return {name: value for name, value in given.items() if name in PARAMETERS}


def _is_of(section: str, node: str) -> bool:
    """Whether the name of a section is that of a node, or a pattern of it."""
    words = {"**": r"(/\w+)*", "*": r"/\w+"}
    return bool(re.fullmatch("".join(words.get(word, f"/{word}") for word in section.strip("/").split("/")), node))


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
