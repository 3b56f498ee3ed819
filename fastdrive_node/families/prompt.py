"""The prompt: what the vehicle knows, as the text and positions that the VLA was trained with."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence, Set

import torch

from fastdrive_node.errors import EgoStateError, ModelError
from fastdrive_node.families.spec import SPEC_FILE, image_markers
from fastdrive_node.families.tokens import Prompt, PrunedPrompt
from fastdrive_node.families.vla import Vla
from fastdrive_node.types import Command, EgoHistory, EgoState

_CACHED_FORMS = 64
_MARKER = re.compile(r"\{(image:[A-Za-z0-9_]+(?:@-[0-9.]+)?|[a-z_]+)\}")
_BRACES = re.compile(r"\{([^{}\n]{0,60})\}")  # what looks like a marker: an unknown one would reach the model as text
# Numbers of one ego state, in the VLA's frame: the attribute of ``NumberSpec`` that gives their form.
_FORMS = {
    "x": "position",
    "y": "position",
    "ax": "accel",
    "ay": "accel",
    "accel": "accel",
    "vx": "speed",
    "vy": "speed",
    "speed": "speed",
    "yaw_rate": "yaw_rate",
    "steer": "steer",
}
ITEM_MARKERS = frozenset({"t", *_FORMS})  # {t}: seconds before t0
TEMPLATE_MARKERS = frozenset({"images", "history", "history_seconds", "command", *_FORMS}) - {"x", "y"}
_MIN_SPEED_MPS = 0.5  # below it steering cannot be derived from the motion


def build_prompt(
    vla: Vla,
    history: EgoHistory,
    command: Command = Command.NONE,
    suffix: Sequence[int] = (),
    present: Sequence[int] | None = None,
) -> Prompt:
    """Write and tokenise the prompt.

    Args:
        suffix: token ids that follow the text: the beginning of the answer, where the VLA is given it.
        present: which of ``Vla.images`` are there; None for all.

    Raises:
        EgoStateError: no ego state, a value that is no number or does not fit its form, or a history whose interval
            does not meet the VLA's steps.
    """
    text = prompt_text(vla, history, command, present)
    input_ids = torch.tensor([*vla.encode_text(text), *suffix])
    visual = vla.family.visual_positions(vla, input_ids)
    grids = vla.image_grids(present)
    tokens = sum(rows * columns for rows, columns in grids)
    if len(visual) != tokens:
        raise ModelError(
            f"{vla.path / vla.spec.prompt}: gives {len(visual)} image tokens for the {tokens} of {len(grids)} images; "
            "only image markers may hold image tokens"
        )
    position_ids, next_position = full_positions(vla, input_ids, grids)
    return Prompt(text, input_ids, position_ids, visual, next_position, derived_markers(vla, history))


def full_positions(
    vla: Vla, input_ids: torch.Tensor, grids: Sequence[tuple[int, int]] | None = None
) -> tuple[torch.Tensor, int]:
    """Position ids [P, L] of a full sequence by the model's own rule, and the one that follows.

    Args:
        grids: token rows and columns of the images in it; None for all of the VLA's.

    They depend on the positions of the image tokens, not on the text, so prompts of one form share one computation.
    """
    grids = tuple(vla.image_grids() if grids is None else grids)
    key = (input_ids == vla.image_token_id).numpy().tobytes(), grids
    cache = vla.position_cache
    if key not in cache:
        if len(cache) >= _CACHED_FORMS:
            cache.clear()
        cache[key] = vla.family.position_ids(vla, input_ids, grids)
    return cache[key]


def prompt_text(
    vla: Vla, history: EgoHistory, command: Command = Command.NONE, present: Sequence[int] | None = None
) -> str:
    """The prompt's text, image placeholders expanded. Raises as ``build_prompt``."""
    if not history.states:
        raise EgoStateError("ego history: empty; the current ego state is needed for a plan")
    spec = vla.spec
    past = {step: _past_state(history, step * spec.history.interval_s) for step in spec.history.steps}
    known = [step for step, state in past.items() if state is not None]
    written = known if spec.history.missing is None else list(past)
    values = {
        **_images(vla, present),
        "history": spec.history.separator.join(_history_item(vla, history, step, past[step]) for step in written),
        "history_seconds": spec.numbers.time.write(max(known, default=0) * spec.history.interval_s),
        "command": spec.commands.get(command.value, command.value),
        **_numbers(vla, history, history.now, "ego state"),
    }
    return _fill(vla.template, values)


def _images(vla: Vla, present: Sequence[int] | None) -> dict[str, str]:
    """The text of each image's marker, empty where the image is not there, and of all of them together."""
    texts = [vla.family.image_text(rows * columns) for rows, columns in vla.grids]  # of each camera's image
    found = [vla.images[place] for place in (range(len(vla.images)) if present is None else present)]
    items = [
        _fill(vla.spec.camera_item, {"camera": vla.spec.cameras[camera], "image": texts[camera]}) for camera, _ in found
    ]
    markers = {name: texts[place[0]] if place in found else "" for name, place in image_markers(vla.spec).items()}
    return {"images": "".join(items), **markers}


def _history_item(vla: Vla, history: EgoHistory, step: int, state: EgoState | None) -> str:
    """One state in the current frame, or the marks of an unknown one."""
    spec, numbers = vla.spec.history, vla.spec.numbers
    values = {"t": numbers.time.write(step * spec.interval_s)}
    if state is not None:
        return _fill(spec.item, values | _numbers(vla, history, state, "ego state: history"))
    forms = {name: getattr(numbers, form) for name, form in _FORMS.items()}
    return _fill(spec.item, values | {name: form.unknown(spec.missing or "") for name, form in forms.items()})


def _numbers(vla: Vla, history: EgoHistory, state: EgoState, name: str) -> dict[str, str]:
    """The text of each number of a state that the template or the history's item holds."""
    used = set(_MARKER.findall(vla.template)) | set(_MARKER.findall(vla.spec.history.item))
    x, y = _position(vla, state, history.now)
    vy, ay, steer = _derived(state, history.wheel_base_m, vla.spec.origin_m)
    values = {
        "speed": state.speed_mps,  # first: where it is wrong, so is what follows from it
        "vx": state.speed_mps,
        "x": x,
        "y": y,
        "ax": state.accel_mps2,
        "ay": ay,
        "accel": state.accel_mps2,
        "vy": vy,
        "yaw_rate": state.yaw_rate_radps,
        "steer": steer * vla.spec.history.steering_ratio,
    }
    texts = {}
    for marker, value in values.items():
        if marker not in used:
            continue
        try:
            texts[marker] = getattr(vla.spec.numbers, _FORMS[marker]).write(value)
        except ValueError as error:
            raise EgoStateError(f"{name}: {_NAMES.get(marker, marker)}: {error}") from error
    return texts


_NAMES = {"speed": "speed_mps", "accel": "accel_mps2", "yaw_rate": "yaw_rate_radps"}  # of the fields, for errors


def _derived(state: EgoState, wheel_base_m: float, origin_m: float) -> tuple[float, float, float]:
    """Speed and acceleration to the left, and steering angle: as told, else those of a vehicle without side slip."""
    rate, speed = state.yaw_rate_radps, state.speed_mps
    steer = math.atan(wheel_base_m * rate / speed) if abs(speed) >= _MIN_SPEED_MPS else 0.0
    return (
        rate * origin_m if state.speed_y_mps is None else state.speed_y_mps,
        rate * speed if state.accel_y_mps2 is None else state.accel_y_mps2,
        steer if state.steer_rad is None else state.steer_rad,
    )


def derived_markers(vla: Vla, history: EgoHistory) -> tuple[str, ...]:
    """Markers of the VLA's prompt whose values no sensor gives for at least one state of the history."""
    used = set(_MARKER.findall(vla.template)) | set(_MARKER.findall(vla.spec.history.item))
    states = history.states
    missing = {
        "ax": not all(state.accel_measured for state in states),
        "ay": any(state.accel_y_mps2 is None for state in states),
        "vy": any(state.speed_y_mps is None for state in states),
        "steer": any(state.steer_rad is None for state in states),
    }
    return tuple(marker for marker, absent in missing.items() if absent and marker in used)


def _position(vla: Vla, state: EgoState, ego: EgoState) -> tuple[float, float]:
    """Place of the VLA's point of the vehicle at ``state``, in the VLA's frame at ``ego``, in metres."""
    x, y = in_ego_frame(state, ego)
    turned, ahead = state.yaw_rad - ego.yaw_rad, vla.spec.origin_m
    x, y = x + ahead * (math.cos(turned) - 1), y + ahead * math.sin(turned)
    return (x, y) if vla.spec.frame == "x_forward_y_left" else (-y, x)


def _past_state(history: EgoHistory, seconds: float) -> EgoState | None:
    place = seconds / history.interval_s
    index = round(place)
    if abs(place - index) > 1e-3:
        raise EgoStateError(
            f"ego history: its interval of {history.interval_s} s does not meet t0 - {seconds} s; sample it at the "
            "interval of the VLA's vla.json"
        )
    return history.states[index] if index < len(history.states) else None


def in_ego_frame(state: EgoState, ego: EgoState) -> tuple[float, float]:
    """Position of ``state`` in the frame of ``ego`` (x forward, y left), metres."""
    dx, dy = state.x_m - ego.x_m, state.y_m - ego.y_m
    cos, sin = math.cos(ego.yaw_rad), math.sin(ego.yaw_rad)
    return cos * dx + sin * dy, cos * dy - sin * dx


def _fill(template: str, values: dict[str, str]) -> str:
    """Replace the markers; nothing else in a template means anything."""
    return _MARKER.sub(lambda marker: values.get(marker[1], marker[0]), template)


def constant_head(vla: Vla) -> PrunedPrompt:
    """The text that the VLA's prompts begin with, before the first image, whatever the vehicle does.

    It is what prompts of unlike states have in common. Another prompt may part from it earlier: compare them.
    """
    first, *others = _examples(vla)
    count = int(first.visual[0])
    for other in others:
        count = int((first.input_ids[:count] == other.input_ids[:count]).long().cumprod(0).sum())
    return PrunedPrompt(first.input_ids[:count], first.position_ids[:, :count], torch.arange(0), count)


def _examples(vla: Vla) -> list[Prompt]:
    """Prompts of two unlike states, with all of the past and without, and of all commands."""
    states = EgoState(0, -1.0, 1.0, 0.0, 2.0, 3.0, 0.4), EgoState(0, 1.0, -1.0, 0.0, 1.0, -2.0, -0.1)
    steps = max(vla.spec.history.steps, default=0) + 1
    histories = [EgoHistory((state,) * count, vla.spec.history.interval_s) for state in states for count in (steps, 1)]
    return [build_prompt(vla, history, command) for history in histories for command in Command]


def check_prompt(vla: Vla) -> None:
    """Check that the tokenizer can write the VLA's prompts without loss.

    Raises:
        ModelError: a marker is unknown or missing, or the tokenizer does not know part of the text.
    """
    spec, file = vla.spec, vla.path / vla.spec.prompt
    images = [name for name in _MARKER.findall(vla.template) if name.startswith("image")]
    wanted = list(image_markers(spec))
    if images != ["images"] and (sorted(images) != sorted(wanted) if spec.frames else images != wanted):
        order = "in any order" if spec.frames else "in this order"
        raise ModelError(
            f"{file}: its image markers are {', '.join(images) or 'missing'}; give {{images}}, or each of these once, "
            f"{order}: {', '.join(f'{{{name}}}' for name in wanted)}"
        )
    _check_markers(str(file), vla.template, TEMPLATE_MARKERS | set(images), set())
    file_of_spec = vla.path / SPEC_FILE
    _check_markers(f"{file_of_spec}: camera_item", spec.camera_item, frozenset({"camera", "image"}), {"image"})
    _check_markers(f"{file_of_spec}: history.item", spec.history.item, ITEM_MARKERS, set())
    for prompt in _examples(vla):
        vla.check_text(prompt.text, str(file))


def _check_markers(where: str, template: str, known: Set[str], required: set[str]) -> None:
    found = set(_BRACES.findall(template))
    if found - known:
        raise ModelError(f"{where}: unknown marker {{{min(found - known)}}}; known are {', '.join(sorted(known))}")
    if required - found:
        raise ModelError(f"{where}: the marker {{{min(required - found)}}} is missing")
