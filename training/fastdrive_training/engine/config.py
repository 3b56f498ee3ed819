"""Training recipes: YAML files checked by pydantic, so that a misspelt key is an error and not a default."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from fastdrive_node.errors import FastDriveError

Recipe = TypeVar("Recipe")
SHIPPED = Path(__file__).parents[1] / "recipes"

if TYPE_CHECKING:  # type checkers do not follow a decorator that a call made
    from dataclasses import dataclass as recipe_class
else:
    recipe_class = dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
Count = Annotated[int, Field(ge=1)]
Steps = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=1 << 31)]


class RecipeError(FastDriveError):
    """A recipe that cannot be used; names the key and, once known, the file."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as text; a learning rate is a number."""


_FLOAT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


def load_recipe(source: str | Path) -> tuple[Path, dict[str, Any]]:
    """Read a recipe file, or a shipped recipe by its name. Raises RecipeError: not there, no YAML, no mapping."""
    path = Path(source)
    if not path.exists() and path.name == str(source) and (SHIPPED / f"{path.stem}.yaml").exists():
        path = SHIPPED / f"{path.stem}.yaml"
    try:
        content = yaml.load(path.read_text(), _Loader)
    except (FileNotFoundError, IsADirectoryError):
        shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
        raise RecipeError(f"{source}: no such recipe file; shipped recipes are {shipped}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: no valid YAML ({' '.join(str(error).split())})") from None
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
        target = recipe
        for group in groups:
            target = target.setdefault(group, {})
            if not isinstance(target, dict):
                raise RecipeError(f"--set {assignment}: {group} is no group of keys")
        try:
            target[last] = yaml.load(value, _Loader)
        except yaml.YAMLError:
            raise RecipeError(f"--set {assignment}: the value is no valid YAML") from None


def parse_recipe(kind: type[Recipe], mapping: dict[str, Any]) -> Recipe:
    """Build ``kind`` (a ``recipe_class``) from a mapping; a ``kind`` at the top level is skipped as a key.

    Types are strict: 3 passes for 3.0, but no text for a number and no number for a flag.

    Raises:
        RecipeError: an unknown or missing key, or a value of another type or out of range; one line with the key.
    """
    text = json.dumps({key: value for key, value in mapping.items() if key != "kind"}, default=str)
    try:
        return TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        raise RecipeError(_describe(kind, error.errors()[0])) from None


def recipe_schema(kind: type) -> dict[str, Any]:
    """The JSON schema of a recipe, for editors and other programs."""
    return TypeAdapter(kind).json_schema()


def _describe(kind: type, error: Any) -> str:
    """One line on a finding of pydantic."""
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).lstrip(".")
    if error["type"] in ("missing", "missing_argument"):
        return f"missing key {name}"
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        prefix = name.removesuffix(error["loc"][-1])
        known = [prefix + field for field in _keys(kind, error["loc"][:-1])]
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"unknown key {name}; {hint}known are {', '.join(known)}"
    if error["type"] == "value_error":  # of a class's own check, which names the key
        return ".".join(filter(None, [name, error["msg"].removeprefix("Value error, ")]))
    problem = error["msg"].replace("Input should", "must").replace("array", "list")
    return f"{name}: {problem}, is {error['input']!r}"


def _keys(kind: Any, groups: tuple[str | int, ...]) -> list[str]:
    """The keys of a group of a recipe."""
    for group in groups:
        kind = typing.get_args(kind)[0] if isinstance(group, int) else typing.get_type_hints(kind)[group]
        if type(None) in typing.get_args(kind):
            kind = typing.get_args(kind)[0]  # of an optional group
    return [field.name for field in dataclasses.fields(kind)]
