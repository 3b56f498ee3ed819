"""Training recipes: YAML files checked against dataclasses, so that a misspelt key is an error and not a default."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fastdrive_node.errors import FastDriveError

Recipe = TypeVar("Recipe")
SHIPPED = Path(__file__).parents[1] / "recipes"


class RecipeError(FastDriveError):
    """A recipe that cannot be used; names the key and, once known, the file."""


def load_recipe(source: str | Path) -> tuple[Path, dict[str, Any]]:
    """Read a recipe file, or a shipped recipe by its name. Raises RecipeError: not there, no YAML, no mapping."""
    path = Path(source)
    if not path.exists() and path.name == str(source) and (SHIPPED / f"{path.stem}.yaml").exists():
        path = SHIPPED / f"{path.stem}.yaml"
    try:
        content = yaml.safe_load(path.read_text())
    except (FileNotFoundError, IsADirectoryError):
        shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
        raise RecipeError(f"{source}: no such recipe file; shipped recipes are {shipped}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: no valid YAML ({error})") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys, not {type(content).__name__}")
    return path, content


def set_keys(recipe: dict[str, Any], assignments: list[str]) -> None:
    """Apply ``key=value`` or ``group.key=value`` (values are YAML) to ``recipe`` in place. Raises RecipeError."""
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not key or not equals:
            raise RecipeError(f"--set {assignment}: write it as key=value")
        *groups, last = key.split(".")
        place = recipe
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise RecipeError(f"--set {assignment}: {group} is no group of keys")
        try:
            place[last] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise RecipeError(f"--set {assignment}: the value is no valid YAML") from None


def parse_recipe(kind: type[Recipe], mapping: dict[str, Any], prefix: str = "") -> Recipe:
    """Build the dataclass ``kind`` from a mapping, nested dataclasses included; ``kind`` itself is skipped as a key.

    Fields may be bool, int, float (an int passes; "1e-3" too, for YAML reads that as text), str, tuples of these,
    ``X | None`` and dataclasses. Raises RecipeError for an unknown key, a missing key, or a value of another type;
    ValueError of a dataclass's own ``__post_init__`` becomes a RecipeError.
    """
    if not isinstance(mapping, dict):
        raise RecipeError(f"{prefix.rstrip('.')}: must be a group of keys, not {mapping!r}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    values = {key: value for key, value in mapping.items() if prefix or key != "kind"}
    for key in values:
        if key not in fields:
            raise RecipeError(f"unknown key {prefix}{key}; known are {', '.join(prefix + name for name in fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise RecipeError(f"missing key {prefix}{name}")
    parsed = {key: _convert(hints[key], value, prefix + key) for key, value in values.items()}
    try:
        return kind(**parsed)
    except ValueError as error:
        raise RecipeError(f"{prefix}{error}") from None


def _convert(hint: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return parse_recipe(hint, value, f"{key}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(option for option in arguments if option is not type(None)), value, key)
    if origin is tuple:
        if not isinstance(value, list):
            raise RecipeError(f"{key}: must be a list, is {value!r}")
        return tuple(_convert(arguments[0], item, f"{key}[{index}]") for index, item in enumerate(value))
    if hint is float:
        return _number(value, key)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise RecipeError(f"{key}: must be {hint.__name__}, is {value!r}")
    return value


def _number(value: Any, key: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RecipeError(f"{key}: must be a finite number, is {value!r}")
    return number
