"""Prompts and answers of known VLAs, and the making of a VLA directory from a checkpoint as it is on the Hub.

Impromptu-VLA: arXiv 2505.23757; prompts, ego status and answers as its data generation writes them (commit 7dc90bd):
``pipeline_ego_status.py`` and ``pipeline_planning.py`` (mode x-y) for nuScenes, ``q7_waymo.py`` for the Waymo form.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from fastdrive_node.errors import InputError, ModelError
from fastdrive_node.families.numbers import NumberFormat
from fastdrive_node.families.spec import (
    SPEC_FILE,
    AnswerSpec,
    HistorySpec,
    NumberSpec,
    VlaSpec,
    load_spec,
    spec_json,
    text_answer,
)
from fastdrive_node.files import package_share_file, write_atomically

PROMPT_FILE = "prompt.txt"
_TINY = "models/tiny"
_LINKED = ("*.json", "*.safetensors", "merges.txt", "*.jinja", "*.model")
_CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{content}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
_TASK = (
    " Your task is to do your best to predict future waypoints for the vehicle over the next {steps} timesteps, given "
    "the vehicle's intent inferred from the images."
)
_AXES = "Positive x means forward direction while positive y means leftwards."
_ONE_VIEW = (
    "You are an autonomous driving agent. You have access to a front view camera image of a vehicle {image:CAM_FRONT}."
)
_VIEWS = "You are an autonomous driving agent. You have access to multi-view camera images of a vehicle: "
_FRONT = "(1) front view (which you should focus on with the most attention) {image:CAM_FRONT}, "
_SIX_VIEWS = (
    f"{_VIEWS}{_FRONT}(2) front right view {{image:CAM_FRONT_RIGHT}}, (3) front left view {{image:CAM_FRONT_LEFT}}, "
    "(4) back view {image:CAM_BACK}, (5) back left view {image:CAM_BACK_LEFT}, and (6) back right view "
    "{image:CAM_BACK_RIGHT}."
)
_THREE_VIEWS = (
    f"{_VIEWS}{_FRONT}(2) front right view {{image:CAM_FRONT_RIGHT}}, and (3) front left view {{image:CAM_FRONT_LEFT}}."
)
_STATUS = (
    "Provided are the previous ego vehicle {status} recorded over the last {{history_seconds}} seconds (at 0.5-second "
    f"intervals). This includes the x and y coordinates of the ego vehicle. {_AXES} The data is presented in the "
    "format [x, y]:"
)
_ANSWER = (
    "Predicted future movement details for the next {seconds} seconds (sampled at 0.5-second intervals), including BEV "
    f"location in x and y directions (in meters). {_AXES} The output is formatted as [x, y]: "
)
_SHORTEST = NumberFormat(decimals=2, style="shortest")
_TIME = NumberFormat(decimals=1, style="shortest")
_NUSCENES_LIDAR_M = 0.94  # LIDAR_TOP ahead of nuScenes' ego frame
# Steering wheel angle, which nuScenes records, by that of the front wheels. Assumed: usual for a compact car; no source
# for the recording Renault Zoe is known.
NUSCENES_STEERING_RATIO = 15.0


@dataclass(frozen=True)
class Template:
    """What is written beside a checkpoint; ``image_size`` of the spec is set by ``init_vla``."""

    spec: VlaSpec
    prompt: str
    camera_size: tuple[int, int]  # height, width in px
    max_pixels: int


def _nuscenes(cameras: tuple[str, ...], views: str) -> Template:
    content = f"{views}{_TASK.format(steps=3)}{_STATUS.format(status='status')}{{history}}\n"
    history = HistorySpec(
        steps=(6, 5, 4, 3, 2, 1, 0),
        interval_s=0.5,
        item="(t-{t}s) [{x}, {y}], Acceleration: X {ax}, Y {ay} m/s^2, Velocity: X {vx}, Steering angle: {steer} "
        "(positive: left turn, negative: right turn)",
        missing=None,
        steering_ratio=NUSCENES_STEERING_RATIO,
    )
    answer = AnswerSpec(f"<PLANNING>{_ANSWER.format(seconds=3)}", 6, 0.5, "</PLANNING>", 200, _SHORTEST)
    numbers = NumberSpec(_SHORTEST, _SHORTEST, _SHORTEST, _SHORTEST, _SHORTEST, _TIME)
    return _template(cameras, history, answer, numbers, content, _NUSCENES_LIDAR_M, (900, 1600))


def _waymo() -> Template:
    cameras = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT")
    motion = "Acceleration: X {ax}, Y {ay} m/s^2, Velocity: X {vx}, Y {vy} m/s"
    status = _STATUS.format(status="statuses")
    # The last state is at the origin, and written otherwise than the others.
    content = f"{_THREE_VIEWS}{_TASK.format(steps=10)} {status}\n{{history}}(t-0.0s) [0.0, 0.0], {motion}\n"
    history = HistorySpec((3, 2, 1), 0.5, f"(t-{{t}}s) [{{x}}, {{y}}], {motion}, ", "", None)
    answer = AnswerSpec(_ANSWER.format(seconds=5), 10, 0.5, "", 300)
    return _template(cameras, history, answer, NumberSpec(time=_TIME), content, 0.0, (1280, 1920))


def _template(
    cameras: tuple[str, ...],
    history: HistorySpec,
    answer: AnswerSpec,
    numbers: NumberSpec,
    content: str,
    origin_m: float,
    camera_size: tuple[int, int],
) -> Template:
    spec = VlaSpec(
        format=1,
        cameras=cameras,
        image_size=(28, 28),  # of a camera's size, when a directory is made
        prompt=PROMPT_FILE,
        history=history,
        answer=answer,
        frame="x_forward_y_left",
        numbers=numbers,
        origin_m=origin_m,
    )
    return Template(spec, _CHAT.replace("{content}", content), camera_size, 262144)


def _tiny() -> Template:
    folder = package_share_file(f"{_TINY}/{SPEC_FILE}").parent
    spec = load_spec(folder)
    spec = replace(spec, answer=replace(text_answer(spec), max_new_tokens=128))  # other tokenizers need more tokens
    return Template(spec, (folder / spec.prompt).read_text(encoding="utf-8"), (900, 1600), 25088)


TEMPLATES = {
    "impromptu-1v": lambda: _nuscenes(("CAM_FRONT",), _ONE_VIEW),
    "impromptu-6v": lambda: _nuscenes(
        ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT"), _SIX_VIEWS
    ),
    "impromptu-waymo": _waymo,
    "tiny": _tiny,
}


def image_size(camera: tuple[int, int], max_pixels: int, multiple: int) -> tuple[int, int]:
    """The size that a VLA reads a camera's images in: at most ``max_pixels``, then the nearest multiples.

    As the trainer of Impromptu-VLA does: the image is scaled down where it has more pixels, sides rounded down, and
    the processor rounds each side to a multiple, which may give slightly more than ``max_pixels`` again.

    Args:
        camera: (height, width) in px.
        multiple: of the sides, in px.
    """
    scale = min(1.0, math.sqrt(max_pixels / (camera[0] * camera[1])))
    height, width = (max(multiple, round(int(side * scale) / multiple) * multiple) for side in camera)
    return height, width


def init_vla(
    source: Path,
    out: Path,
    template: str,
    multiple: int,
    camera_size: tuple[int, int] | None = None,
    max_pixels: int | None = None,
    preamble_in_prompt: bool = False,
) -> VlaSpec:
    """Write ``vla.json`` and ``prompt.txt`` to ``out``, beside links to the files of a checkpoint.

    Args:
        template: a name of ``TEMPLATES``.
        multiple: pixels of one visual token (``VlaFamily.pixels_per_token``).
        camera_size, max_pixels: None for the template's.
        preamble_in_prompt: give the model the constant beginning of its answer.

    Raises:
        InputError: ``out`` has a ``vla.json`` or another file of a name that is needed.
        ModelError: ``source`` holds no checkpoint.
    """
    if not list(source.glob("*.safetensors")):
        raise ModelError(f"{source}: no *.safetensors file; give the folder of a checkpoint as it is on the Hub")
    if (out / SPEC_FILE).is_symlink() or (out / SPEC_FILE).exists():
        raise InputError(f"{out / SPEC_FILE}: is there already; give another folder, or delete it")
    chosen = TEMPLATES[template]()
    size = image_size(camera_size or chosen.camera_size, max_pixels or chosen.max_pixels, multiple)
    if max(size) > 8192:
        raise InputError(f"--camera-size, --max-pixels: give images of {size[1]}x{size[0]} px; sides are at most 8192")
    answer = replace(text_answer(chosen.spec), preamble_in_prompt=preamble_in_prompt)
    spec = replace(chosen.spec, image_size=size, answer=answer, prompt=PROMPT_FILE)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if out.resolve() != source.resolve():
            _link_files(source, out)
        for name, text in ((PROMPT_FILE, chosen.prompt), (SPEC_FILE, json.dumps(spec_json(spec), indent=2) + "\n")):
            with write_atomically(out / name) as partial:
                partial.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); give another folder") from error
    return spec


def _link_files(source: Path, out: Path) -> None:
    for pattern in _LINKED:
        for file in sorted(source.glob(pattern)):
            link = out / file.name
            if link.is_symlink() and link.resolve() == file.resolve():
                continue
            if link.exists() or link.is_symlink():
                raise InputError(f"{link}: is there already; give an empty folder")
            link.symlink_to(file.resolve())
