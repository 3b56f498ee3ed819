"""Checked reading of JSON and YAML: unknown fields, keys that are there twice, wrong types, NaN and absurd sizes are
refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from fastdrive_node.errors import ModelError

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
Parsed = TypeVar("Parsed")
MAX_BYTES = 16 * 1024 * 1024  # of a JSON or YAML file; the largest known, a weight index, has 0.5 MB
MAX_NODES = 1_000_000  # of a YAML document, each alias counted as what it stands for


def read_bytes(path: str | Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The content of a small file from outside; no more than ``max_bytes`` are ever read.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger.
    """
    with open(path, "rb") as stream:
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"larger than {max_bytes} bytes")
    return content


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file whose fields the caller checks.

    Raises:
        OSError: it cannot be read.
        ValueError: too large, not JSON, nested too deep, or not an object.
    """
    try:
        content = json.loads(read_bytes(path))
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def parse_json(adapter: TypeAdapter[Parsed], text: str | bytes, where: str | Path, fix: str = "") -> Parsed:
    """Read JSON from outside into a checked value.

    Args:
        where: the file, for the error; ``fix`` says what to do.

    Raises:
        ModelError: not JSON, or a field is missing, wrong or there twice; one line that names the first such field.
    """
    try:
        parsed = adapter.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            fault = f"not readable as JSON ({first['msg'].removeprefix('Invalid JSON: ')})"
        else:
            fault = first_fault(error)
        raise ModelError(f"{where}: {fault}" + (f"; {fix}" if fix else "")) from None
    try:  # pydantic's parser takes the last of two equal keys
        json.loads(text, object_pairs_hook=_unique)
    except ValueError as error:
        raise ModelError(f"{where}: {error}" + (f"; {fix}" if fix else "")) from None
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:80]}: is there twice; remove one")
    return content


class _UniqueLoader(yaml.SafeLoader):
    """PyYAML's safe loader takes the last of two equal keys; this one refuses them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.YAMLError(f"{key.value[:80]}: is there twice, in line {key.start_mark.line + 1}")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """The value of a YAML document from outside.

    Raises:
        ValueError: not YAML, nested too deep, a key is there twice, or aliases make it absurdly large; one line.
    """
    loader = _UniqueLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded(node, {}) > MAX_NODES:
            raise ValueError(f"more than {MAX_NODES} values")
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())[:160]) from error
    except RecursionError:
        raise ValueError("nested too deep") from None
    finally:
        loader.dispose()


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """Values below a node. Aliases share nodes, and nine lines of nine aliases each would print as 10^9 values."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if (count := known.get(id(node))) is not None:
        if count == 0:
            raise ValueError("an alias within its own anchor")
        return count
    known[id(node)] = 0
    parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
    known[id(node)] = count = 1 + sum(_expanded(part, known) for part in parts)
    return count


def first_fault(error: ValidationError) -> str:
    """The first fault that pydantic found, in one line: ``graph.width: -1: must be greater than 0``.

    The text of a model validator starts with a field of that model, such as ``max_keep: 193 of 192 tokens``.
    """
    fault = error.errors(include_url=False)[0]
    where = ".".join(str(each) for each in fault["loc"] if not str(each).startswith("["))
    value, reason = fault["input"], fault["msg"]
    if fault["type"] == "value_error":
        return f"{where}{'.' if where else ''}{reason.removeprefix('Value error, ')}"[:400]
    if fault["type"] == "union_tag_invalid":  # its tags are in brackets, see above
        given, known = (str(fault.get("ctx", {}).get(key, "")) for key in ("tag", "expected_tags"))
        return f"{where}.kind: {given.strip('[]')!r}: use {known.translate(str.maketrans('', '', '[]'))}"
    missing = fault["type"] in ("missing", "missing_argument")
    shown = "" if missing else f"{' '.join(repr(value).split())[:80]}: "
    return " ".join(f"{where[:100]}{': ' if where else ''}{shown}{plain_reason(fault['type'], reason)}".split())


def plain_reason(kind: str, message: str) -> str:
    """What is wrong, in the words of a reader who knows the file and not pydantic."""
    if kind in ("missing", "missing_argument"):
        return "is missing"
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return "is no field here"
    return re.sub("^(Input|List|Tuple|String|Dictionary) should", "must", message).replace("array", "list")


def refuse_constant(name: str) -> float:
    """For ``json.loads``: NaN and infinity are no JSON, though Python reads them."""
    raise ValueError(f"{name} is not a JSON number")
