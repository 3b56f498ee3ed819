"""Checked reading of JSON and YAML: unknown fields, keys that are there twice, wrong types and NaN are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from fastdrive_node.errors import ModelError

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
Parsed = TypeVar("Parsed")


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
        ValueError: not YAML, nested too deep, or a key is there twice; one line.
    """
    try:
        return yaml.load(text, _UniqueLoader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())[:160]) from error
    except RecursionError:
        raise ValueError("nested too deep") from None


def first_fault(error: ValidationError) -> str:
    """The first fault that pydantic found, in one line: ``graph.width: -1: Input should be greater than 0``.

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
    shown = "" if fault["type"] == "missing" else f"{' '.join(repr(value).split())[:80]}: "
    return " ".join(f"{where[:100]}{': ' if where else ''}{shown}{reason}".split())


def refuse_constant(name: str) -> float:
    """For ``json.loads``: NaN and infinity are no JSON, though Python reads them."""
    raise ValueError(f"{name} is not a JSON number")
