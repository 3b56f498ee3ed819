"""``vla.json``: what a VLA directory states beside its Hugging Face files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import jsonschema

from fastdrive_node.errors import ModelError
from fastdrive_node.families.numbers import NumberFormat

SPEC_FILE = "vla.json"
FRAME = "x_forward_y_left"


_PLAIN = NumberFormat(decimals=2)
_SECOND = NumberFormat(decimals=1)


@dataclass(frozen=True)
class HistorySpec:
    """How past ego states stand in the prompt."""

    steps: tuple[int, ...]  # in the order of the text; step k is t0 - k * interval
    interval_s: float
    item: str = "[{x}, {y}]"  # markers: {t} seconds before t0, {x} {y} metres, {speed} m/s, {accel} m/s2, {yaw_rate}
    separator: str = ", "
    missing: str = "?"  # stands for each character of an unknown number


@dataclass(frozen=True)
class NumberSpec:
    """Forms of the numbers in the prompt."""

    position: NumberFormat = _PLAIN  # m
    speed: NumberFormat = _PLAIN  # m/s
    accel: NumberFormat = _PLAIN  # m/s2
    yaw_rate: NumberFormat = _PLAIN  # rad/s
    time: NumberFormat = _SECOND  # s


@dataclass(frozen=True)
class AnswerSpec:
    """The grammar of the answer: preamble, points ``[x, y]`` joined by ``, ``, closing."""

    preamble: str
    points: int
    interval_s: float
    closing: str
    max_new_tokens: int
    number: NumberFormat = _PLAIN  # m


@dataclass(frozen=True)
class VlaSpec:
    """A VLA's cameras, image size, prompt and answer; see ``SCHEMA`` for the file's form."""

    cameras: tuple[str, ...]
    image_size: tuple[int, int]  # height, width in px
    prompt_file: str
    history: HistorySpec
    answer: AnswerSpec
    numbers: NumberSpec = NumberSpec()
    camera_item: str = "{camera}: {image}"
    commands: dict[str, str] = field(default_factory=dict)  # command -> words in the prompt; itself where not given
    frame: str = FRAME


_TEXT = {"type": "string", "maxLength": 2000}
_SECONDS = {"type": "number", "exclusiveMinimum": 0, "maximum": 10}
_NUMBER = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "decimals": {"type": "integer", "minimum": 0, "maximum": 6},
        "integer_digits": {"type": "integer", "minimum": 0, "maximum": 6},
    },
}
_SIDE = {"type": "integer", "minimum": 1, "maximum": 8192}

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["format", "cameras", "image_size", "prompt", "history", "answer", "frame"],
    "properties": {
        "format": {"const": 1},
        "cameras": {
            "type": "array",
            "items": {"type": "string", "pattern": "^[A-Za-z0-9_]{1,64}$"},
            "minItems": 1,
            "maxItems": 32,
            "uniqueItems": True,
        },
        "image_size": {
            "type": "object",
            "additionalProperties": False,
            "required": ["width", "height"],
            "properties": {"width": _SIDE, "height": _SIDE},
        },
        "prompt": {"type": "string", "pattern": r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}$"},
        "camera_item": _TEXT,
        "commands": {
            "type": "object",
            "additionalProperties": False,
            "properties": {name: _TEXT for name in ("left", "straight", "right", "none")},
        },
        "history": {
            "type": "object",
            "additionalProperties": False,
            "required": ["steps", "interval_s"],
            "properties": {
                "steps": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 100}, "maxItems": 20},
                "interval_s": _SECONDS,
                "item": _TEXT,
                "separator": _TEXT,
                "missing": {"type": "string", "minLength": 1, "maxLength": 40},
            },
        },
        "numbers": {
            "type": "object",
            "additionalProperties": False,
            "properties": {name: _NUMBER for name in ("position", "speed", "accel", "yaw_rate", "time")},
        },
        "answer": {
            "type": "object",
            "additionalProperties": False,
            "required": ["preamble", "points", "interval_s", "closing", "max_new_tokens"],
            "properties": {
                "preamble": _TEXT,
                "points": {"type": "integer", "minimum": 1, "maximum": 100},
                "interval_s": _SECONDS,
                "closing": {**_TEXT, "minLength": 1},
                "max_new_tokens": {"type": "integer", "minimum": 1, "maximum": 4096},
                "number": _NUMBER,
            },
        },
        "frame": {"const": FRAME},
    },
}


def load_spec(vla_dir: Path) -> VlaSpec:
    """Read and check ``vla.json``.

    Raises:
        ModelError: the file is missing, no JSON, or a field is missing or wrong; the text names it.
    """
    path = vla_dir / SPEC_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse_constant)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: missing; a VLA directory needs it (see docs/vla_directory.md)") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not readable as JSON ({error})") from error
    problem = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(SCHEMA).iter_errors(data))
    if problem is not None:
        raise ModelError(f"{path}: {problem.json_path.removeprefix('$.')}: {problem.message[:200]}; correct this field")
    return _parse(data)


def refuse_constant(name: str) -> float:
    """For ``json.loads``: NaN and infinity are no JSON, though Python reads them."""
    raise ValueError(f"{name} is not a JSON number")


def spec_json(spec: VlaSpec) -> dict:
    """The content of ``vla.json`` for a spec."""
    return {
        "format": 1,
        "cameras": list(spec.cameras),
        "image_size": {"width": spec.image_size[1], "height": spec.image_size[0]},
        "prompt": spec.prompt_file,
        "camera_item": spec.camera_item,
        "commands": dict(spec.commands),
        "history": {**vars(spec.history), "steps": list(spec.history.steps)},
        "numbers": {name: vars(form) for name, form in vars(spec.numbers).items()},
        "answer": {**vars(spec.answer), "number": vars(spec.answer.number)},
        "frame": spec.frame,
    }


def _parse(data: dict) -> VlaSpec:
    answer = dict(data["answer"])
    if "number" in answer:
        answer["number"] = NumberFormat(**answer["number"])
    history = {**data["history"], "steps": tuple(data["history"]["steps"])}
    numbers = {name: NumberFormat(**form) for name, form in data.get("numbers", {}).items()}
    optional = {name: data[name] for name in ("camera_item", "commands") if name in data}
    return VlaSpec(
        cameras=tuple(data["cameras"]),
        image_size=(data["image_size"]["height"], data["image_size"]["width"]),
        prompt_file=data["prompt"],
        history=HistorySpec(**history),
        answer=AnswerSpec(**answer),
        numbers=NumberSpec(**numbers),
        **optional,
    )
