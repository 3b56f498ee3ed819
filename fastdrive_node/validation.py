"""Checked reading of JSON from outside, by pydantic: unknown fields, wrong types and NaN are refused."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fastdrive_node.errors import ModelError

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
Parsed = TypeVar("Parsed")


def parse_json(adapter: TypeAdapter[Parsed], text: str | bytes, where: str | Path, fix: str = "") -> Parsed:
    """Read JSON from outside into a checked value.

    Args:
        where: the file, for the error; ``fix`` says what to do.

    Raises:
        ModelError: not JSON, or a field is missing or wrong; one line that names the first such field.
    """
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            fault = f"not readable as JSON ({first['msg'].removeprefix('Invalid JSON: ')})"
        else:
            fault = first_fault(error)
        raise ModelError(f"{where}: {fault}" + (f"; {fix}" if fix else "")) from None


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
