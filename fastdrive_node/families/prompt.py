"""The prompt: what the vehicle knows, as the text and positions that the VLA was trained with."""

from __future__ import annotations

import math
import re

import torch

from fastdrive_node.errors import EgoStateError, ModelError
from fastdrive_node.families.numbers import NumberFormat
from fastdrive_node.families.tokens import Prompt
from fastdrive_node.families.vla import Vla
from fastdrive_node.types import Command, EgoHistory, EgoState

_CACHED_FORMS = 64
_MARKER = re.compile(r"\{([a-z_]+)\}")
_TEMPLATE_MARKERS = frozenset({"images", "history", "speed", "accel", "yaw_rate", "command"})
_ITEM_MARKERS = frozenset({"t", "x", "y", "speed", "accel", "yaw_rate"})


def build_prompt(vla: Vla, history: EgoHistory, command: Command = Command.NONE) -> Prompt:
    """Write and tokenise the prompt.

    Raises:
        EgoStateError: no ego state, a value that is no number or does not fit its form, or a history whose interval
            does not meet the VLA's steps.
    """
    text = prompt_text(vla, history, command)
    input_ids = torch.tensor(vla.encode_text(text))
    visual = (input_ids == vla.image_token_id).nonzero().flatten()
    if len(visual) != vla.tokens:
        raise ModelError(
            f"{vla.path / vla.spec.prompt}: gives {len(visual)} image tokens for the {vla.tokens} of "
            f"{len(vla.spec.cameras)} cameras; only {{images}} may hold image tokens"
        )
    position_ids, next_position = full_positions(vla, input_ids)
    return Prompt(text, input_ids, position_ids, visual, next_position)


def full_positions(vla: Vla, input_ids: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Position ids [P, L] of a full sequence by the model's own rule, and the one that follows.

    They depend on the positions of the image tokens, not on the text, so prompts of one form share one computation.
    """
    key = (input_ids == vla.image_token_id).numpy().tobytes()
    cache = vla.position_cache
    if key not in cache:
        if len(cache) >= _CACHED_FORMS:
            cache.clear()
        cache[key] = vla.family.position_ids(vla, input_ids)
    return cache[key]


def prompt_text(vla: Vla, history: EgoHistory, command: Command = Command.NONE) -> str:
    """The prompt's text, image placeholders expanded. Raises as ``build_prompt``."""
    if not history.states:
        raise EgoStateError("ego history: empty; the current ego state is needed for a plan")
    spec, now = vla.spec, history.now
    values = {
        "images": _images(vla),
        "history": spec.history.separator.join(_history_item(vla, history, step) for step in spec.history.steps),
        "speed": _write(spec.numbers.speed, now.speed_mps, "speed_mps"),
        "accel": _write(spec.numbers.accel, now.accel_mps2, "accel_mps2"),
        "yaw_rate": _write(spec.numbers.yaw_rate, now.yaw_rate_radps, "yaw_rate_radps"),
        "command": spec.commands.get(command.value, command.value),
    }
    return _fill(vla.template, values)


def _images(vla: Vla) -> str:
    image = vla.family.image_text(vla.grid[0] * vla.grid[1])
    return "".join(_fill(vla.spec.camera_item, {"camera": name, "image": image}) for name in vla.spec.cameras)


def _history_item(vla: Vla, history: EgoHistory, step: int) -> str:
    """One past state in the current ego frame, or the marks of an unknown one."""
    spec, numbers = vla.spec.history, vla.spec.numbers
    forms = {
        "x": numbers.position,
        "y": numbers.position,
        "speed": numbers.speed,
        "accel": numbers.accel,
        "yaw_rate": numbers.yaw_rate,
    }
    values = {"t": numbers.time.write(step * spec.interval_s)}
    past = _past_state(history, step * spec.interval_s)
    if past is None:
        values |= {name: form.unknown(spec.missing) for name, form in forms.items()}
        return _fill(spec.item, values)
    x, y = in_ego_frame(past, history.now)
    known = {"x": x, "y": y, "speed": past.speed_mps, "accel": past.accel_mps2, "yaw_rate": past.yaw_rate_radps}
    values |= {name: _write(forms[name], value, f"history {name}") for name, value in known.items()}
    return _fill(spec.item, values)


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


def _write(form: NumberFormat, value: float, name: str) -> str:
    try:
        return form.write(value)
    except ValueError as error:
        raise EgoStateError(f"ego state: {name}: {error}") from error


def _fill(template: str, values: dict[str, str]) -> str:
    """Replace the markers; nothing else in a template means anything."""
    return _MARKER.sub(lambda marker: values.get(marker[1], marker[0]), template)


def check_prompt(vla: Vla) -> None:
    """Check that the tokenizer can write the VLA's prompts without loss.

    Raises:
        ModelError: a marker is unknown or missing, or the tokenizer does not know part of the text.
    """
    spec, file = vla.spec, vla.path / vla.spec.prompt
    _check_markers(str(file), vla.template, _TEMPLATE_MARKERS, {"images"})
    _check_markers("vla.json: camera_item", spec.camera_item, frozenset({"camera", "image"}), {"image"})
    _check_markers("vla.json: history.item", spec.history.item, _ITEM_MARKERS, set())
    moving = EgoState(0, -1.0, 1.0, 0.0, 2.0, 3.0, 0.4)
    long = EgoHistory((moving,) * (max(spec.history.steps, default=0) + 1), spec.history.interval_s)
    for history in (long, EgoHistory((moving,), spec.history.interval_s)):
        for command in Command:
            vla.check_text(build_prompt(vla, history, command).text, str(file))


def _check_markers(where: str, template: str, known: frozenset[str], required: set[str]) -> None:
    found = set(_MARKER.findall(template))
    if found - known:
        raise ModelError(f"{where}: unknown marker {{{min(found - known)}}}; known are {', '.join(sorted(known))}")
    if required - found:
        raise ModelError(f"{where}: the marker {{{min(required - found)}}} is missing")
