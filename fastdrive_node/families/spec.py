"""``vla.json``: what a VLA directory states beside its Hugging Face files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PlainSerializer, Tag, TypeAdapter, WithJsonSchema
from pydantic.dataclasses import dataclass
from pydantic.functional_validators import BeforeValidator, model_validator

from fastdrive_node.errors import InputError, ModelError
from fastdrive_node.families.numbers import NumberFormat
from fastdrive_node.files import package_share_file
from fastdrive_node.validation import STRICT, parse_json, read_bytes

SPEC_FILE = "vla.json"
REQUIRED = {"config.json": "the model's configuration", "tokenizer.json": "the tokenizer"}  # beside the prompt
SHIPPED_VLA = "models/tiny"
TINY = "tiny"  # its name as a parameter
FRAME = "x_forward_y_left"

Text = Annotated[str, Field(max_length=2000)]
Seconds = Annotated[float, Field(ge=0.01, le=10)]
PairKind = Literal["xy", "dxdy", "distance_heading", "distance_turn", "distance_curvature", "polar", "speed_curvature"]
FrameName = Literal["x_forward_y_left", "x_right_y_forward"]
CameraName = Annotated[str, Field(pattern="^[A-Za-z0-9_]{1,64}$")]
Side = Annotated[int, Field(ge=1, le=8192)]


@dataclass(frozen=True, config=STRICT)
class HistorySpec:
    """How past ego states are written in the prompt."""

    steps: Annotated[tuple[Annotated[int, Field(ge=0, le=100)], ...], Field(max_length=20)]  # k: t0 - k * interval
    interval_s: Seconds
    item: Text = "[{x}, {y}]"  # its markers are ``prompt.ITEM_MARKERS``
    separator: Text = ", "
    # for each character of an unknown number; None leaves the items of unknown states out
    missing: Annotated[str, Field(min_length=1, max_length=40)] | None = "?"
    steering_ratio: Annotated[float, Field(gt=0, le=50)] = 1.0  # written steering angle by that of the front wheels

    @model_validator(mode="after")
    def _each_step_once(self) -> HistorySpec:
        if len(set(self.steps)) < len(self.steps):
            raise ValueError(f"steps: {list(self.steps)}: a step is there twice; remove one")
        return self


@dataclass(frozen=True, config=STRICT)
class NumberSpec:
    """Forms of the numbers in the prompt."""

    position: NumberFormat = NumberFormat(decimals=2)  # m
    speed: NumberFormat = NumberFormat(decimals=2)  # m/s
    accel: NumberFormat = NumberFormat(decimals=2)  # m/s2
    yaw_rate: NumberFormat = NumberFormat(decimals=2)  # rad/s
    steer: NumberFormat = NumberFormat(decimals=2)  # rad
    time: NumberFormat = NumberFormat(decimals=1)  # s


@dataclass(frozen=True, config=STRICT)
class AnswerSpec:
    """The grammar of the answer: preamble, pairs ``[a, b]`` joined by ``, ``, closing."""

    preamble: Text
    points: Annotated[int, Field(ge=1, le=100)]
    interval_s: Seconds
    closing: Text
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)]
    number: NumberFormat = NumberFormat(decimals=2)  # of both values of a pair
    kind: Literal["text"] = "text"
    pairs: PairKind = "xy"  # see ``planning.pairs``
    skip_until: Text = ""  # text before its first occurrence is free, and no part of the answer
    preamble_in_prompt: bool = False  # the model is given the answer's constant beginning

    @model_validator(mode="after")
    def _consistent(self) -> AnswerSpec:
        if self.skip_until and not (self.preamble + "[").startswith(self.skip_until):
            raise ValueError("skip_until: must be the beginning of preamble")
        if self.skip_until and self.preamble_in_prompt:
            raise ValueError("preamble_in_prompt: leaves no place for the free text that skip_until allows")
        return self


@dataclass(frozen=True, config=STRICT)
class CodebookSpec:
    """An answer of action tokens; see ``planning.codebook``."""

    kind: Literal["codebook"]
    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}\.safetensors$")]  # float32 motions [N, 3]
    points: Annotated[int, Field(ge=1, le=100)]  # tokens
    interval_s: Seconds  # of one motion
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)]
    token: Annotated[str, Field(pattern=r"^[^{}]*\{i\}[^{}]*$", max_length=40)] = "<action_{i}>"
    free_text: bool = True  # before the action tokens


def _answer_kind(value: Any) -> str:
    """In brackets, which ``validation.first_fault`` leaves out of a field's name."""
    return f"[{value.get('kind', 'text') if isinstance(value, dict) else getattr(value, 'kind', 'text')}]"


def _size(value: Any) -> Any:
    """{"width": W, "height": H} -> (H, W)."""
    if not isinstance(value, dict):
        return value
    if set(value) != {"width", "height"}:
        raise ValueError("give width and height, in px")
    return (value["height"], value["width"])


ImageSize = Annotated[
    tuple[Side, Side],
    BeforeValidator(_size),
    PlainSerializer(lambda size: {"width": size[1], "height": size[0]}),
    WithJsonSchema(
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["width", "height"],
            "properties": {name: {"type": "integer", "minimum": 1, "maximum": 8192} for name in ("width", "height")},
        }
    ),
]


@dataclass(frozen=True, config=STRICT)
class FramesSpec:
    """Images of each camera that the VLA reads: at t0 and at steps of ``interval_s`` before it."""

    count: Annotated[int, Field(ge=2, le=16)]  # that of t0 included
    interval_s: Seconds
    tolerance_s: Annotated[float, Field(gt=0, le=1)] = 0.1  # between a wanted time and an image's
    missing: Literal["refuse", "leave_out"] = "refuse"  # what is done without a past image

    @model_validator(mode="after")
    def _one_set_serves_one_time(self) -> FramesSpec:
        if self.tolerance_s > self.interval_s / 2:
            raise ValueError("tolerance_s: must be at most half of interval_s, else one image serves as two")
        return self

    @property
    def span_ns(self) -> int:
        """Time from the oldest image to t0, tolerance included."""
        return round(((self.count - 1) * self.interval_s + self.tolerance_s) * 1e9)


@dataclass(frozen=True, config=STRICT)
class VlaSpec:
    """A VLA's cameras, image size, prompt and answer: the content of ``vla.json``."""

    format: Literal[1]
    cameras: Annotated[tuple[CameraName, ...], Field(min_length=1, max_length=32)]
    image_size: ImageSize  # height, width in px
    prompt: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}$")]  # file of the prompt template
    history: HistorySpec
    answer: Annotated[
        Annotated[AnswerSpec, Tag("[text]")] | Annotated[CodebookSpec, Tag("[codebook]")], Discriminator(_answer_kind)
    ]
    frame: FrameName
    numbers: NumberSpec = Field(default_factory=NumberSpec)
    camera_item: Text = "{camera}: {image}"
    commands: dict[Literal["left", "straight", "right", "none"], Text] = Field(
        default_factory=dict
    )  # text in the prompt
    frames: FramesSpec | None = None  # None: only the image of t0
    image_sizes: dict[CameraName, ImageSize] = Field(default_factory=dict)  # of cameras with another size
    origin_m: Annotated[float, Field(ge=-5, le=10)] = 0.0  # of the positions' point, ahead of the rear axle

    @model_validator(mode="after")
    def _distinct(self) -> VlaSpec:
        if len(set(self.cameras)) != len(self.cameras):
            raise ValueError("cameras: a name is there twice")
        return self

    @model_validator(mode="after")
    def _sizes_of_cameras(self) -> VlaSpec:
        for name in self.image_sizes:
            if name not in self.cameras:
                raise ValueError(f"image_sizes.{name}: is no camera of this VLA; use {', '.join(self.cameras)}")
        if self.image_sizes and len(set(self.sizes)) == 1:
            raise ValueError("image_sizes: all cameras have one size; give it as image_size alone")
        return self

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width in px of the images of each camera."""
        return self.sizes_of(self.cameras)

    def sizes_of(self, cameras: Sequence[str]) -> tuple[tuple[int, int], ...]:
        """As ``sizes``, of any cameras; one that is none of the VLA's has ``image_size``."""
        return tuple(self.image_sizes.get(name, self.image_size) for name in cameras)

    @property
    def size_by_camera(self) -> dict[str, tuple[int, int]]:
        return dict(zip(self.cameras, self.sizes, strict=True))


def image_markers(spec: VlaSpec) -> dict[str, tuple[int, int]]:
    """Markers of single images in a prompt template: name -> (camera's index, steps before t0), oldest first."""
    steps = range(spec.frames.count - 1, -1, -1) if spec.frames else (0,)
    interval_s = spec.frames.interval_s if spec.frames else 0.0
    return {
        f"image:{name}@-{step * interval_s:g}" if step else f"image:{name}": (index, step)
        for index, name in enumerate(spec.cameras)
        for step in steps
    }


def text_answer(spec: VlaSpec, where: object = SPEC_FILE) -> AnswerSpec:
    """The text grammar of a spec. Raises ModelError for another kind of answer, which ``where`` has."""
    if not isinstance(spec.answer, AnswerSpec):
        raise ModelError(f"{where}: answer.kind: {spec.answer.kind!r} is no text; this needs an answer of kind text")
    return spec.answer


_SPEC = TypeAdapter(VlaSpec)


def default_vla_dir() -> Path:
    """The shipped tiny VLA: ``models/tiny`` of a checkout, or ``share/fastdrive_node/models/tiny`` of an installation.

    Raises:
        ModelError: neither is there.
    """
    try:
        return package_share_file(f"{SHIPPED_VLA}/{SPEC_FILE}").parent
    except InputError as error:
        raise ModelError(f"the shipped VLA is not installed ({error}); or give a VLA directory with --vla") from error


def chosen_vla_dir(name: str) -> Path:
    """The VLA directory that the parameter ``vla`` names; ``tiny`` is the shipped one.

    Raises:
        InputError: the name is empty. The toy model must be asked for, so that no vehicle runs it by mistake.
        ModelError: the shipped one is not there.
    """
    if not name:
        raise InputError(f"vla: no VLA directory is given; {TINY} is the shipped toy model")
    return default_vla_dir() if name == TINY else Path(name)


def load_spec(vla_dir: Path) -> VlaSpec:
    """Read and check ``vla.json``.

    Raises:
        ModelError: the file is missing, no JSON, or a field is missing or wrong; the text names it.
    """
    if not vla_dir.is_dir():
        raise ModelError(f"{vla_dir}: no such VLA directory")
    path = vla_dir / SPEC_FILE
    try:
        text = read_bytes(path)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: missing; write it with `fastdrive vla init` (docs/vla_directory.md)") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable ({error})") from error
    return parse_json(_SPEC, text, path, "correct this field")


def required_file(vla_dir: Path, name: str) -> Path:
    """A file of a VLA directory. Raises ModelError where it is missing; the text says what it is for."""
    if not (vla_dir / name).is_file():
        purpose = REQUIRED.get(name, f"the prompt template that {SPEC_FILE} names")
        raise ModelError(f"{vla_dir / name}: missing; a VLA directory needs it ({purpose})")
    return vla_dir / name


def spec_json(spec: VlaSpec) -> dict:
    """The content of ``vla.json`` for a spec."""
    return _SPEC.dump_python(spec, mode="json")
