"""Answers of action tokens: each token is a motion over one interval, and the motions are rolled out.

As AutoVLA's (arXiv 2506.13757): free text, then a fixed number of tokens ``<action_i>`` of a codebook.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from fastdrive_node.errors import AnswerError, ModelError
from fastdrive_node.families.spec import CodebookSpec
from fastdrive_node.families.vla import Vla
from fastdrive_node.types import Draft, Trajectory

TENSOR = "motions"
_MAX_MOTION = 100.0  # m over one interval


class CodebookAnswer:
    """The ``AnswerFormat`` of a codebook.

    Raises:
        ModelError: the file is missing or not a codebook, or the tokenizer does not know one of its tokens.
    """

    prefix_ids: tuple[int, ...] = ()

    def __init__(self, vla: Vla):
        spec = vla.spec.answer
        assert isinstance(spec, CodebookSpec)
        self.spec, self._tokenizer = spec, vla.tokenizer
        self.max_new_tokens, self.stop_ids = spec.max_new_tokens, vla.eos_ids
        self.motions = read_codebook(vla.path / spec.file)
        names = [spec.token.replace("{i}", str(index)) for index in range(len(self.motions))]
        ids = [self._tokenizer.convert_tokens_to_ids(name) for name in names]
        absent = (None, self._tokenizer.unk_token_id)
        unknown = [name for name, token in zip(names, ids, strict=True) if token in absent]
        if unknown:
            raise ModelError(
                f"{vla.path / 'tokenizer.json'}: has no token {unknown[0]}; vla.json's answer.token and the "
                f"{len(names)} motions of {spec.file} need it"
            )
        self._motion_of: dict[Any, int] = {token: index for index, token in enumerate(ids)}
        self.drafter = CodebookDrafter(spec, list(self._motion_of), min(vla.eos_ids))

    def text(self, ids: Sequence[int]) -> str:
        ids = list(ids)
        return str(self._tokenizer.decode(ids[:-1] if ids and ids[-1] in self.stop_ids else ids))

    def numbers(self, waypoints_m: np.ndarray) -> list[float]:
        """The motion, by its index, that comes nearest to each of the waypoints after those before it."""
        pose, chosen = np.zeros(3), []
        for target in np.asarray(waypoints_m, np.float64):
            cos, sin = math.cos(pose[2]), math.sin(pose[2])
            ahead = np.array([[cos, sin], [-sin, cos]]) @ (target - pose[:2])
            index = int(np.linalg.norm(self.motions[:, :2] - ahead, axis=1).argmin())
            forward, left, turn = self.motions[index].tolist()
            pose = pose + np.array([cos * forward - sin * left, sin * forward + cos * left, turn])
            chosen.append(float(index))
        return chosen

    def parse(self, ids: Sequence[int]) -> Trajectory:
        ids = list(ids)
        if ids and ids[-1] in self.stop_ids:
            ids.pop()
        first = next((place for place, token in enumerate(ids) if token in self._motion_of), len(ids))
        if first and not self.spec.free_text:
            raise AnswerError("answer: has text before its action tokens")
        actions = ids[first:]
        wrong = next((place for place, token in enumerate(actions) if token not in self._motion_of), None)
        if wrong is not None:
            raise AnswerError(f"answer: has other text after {wrong} of {self.spec.points} action tokens")
        if len(actions) != self.spec.points:
            raise AnswerError(f"answer: has {len(actions)} action tokens of {self.spec.points}")
        chosen = [self._motion_of[token] for token in actions]
        return roll_out(self.motions[chosen], self.spec.interval_s)


class CodebookDrafter:
    """The ``Drafter`` of action tokens; a number is the index of a motion.

    Args:
        actions: the token of each motion.
        end: an EOS token.
    """

    def __init__(self, spec: CodebookSpec, actions: Sequence[int], end: int):
        self._spec, self._actions, self._end = spec, list(actions), end
        self._motion_of = {token: index for index, token in enumerate(actions)}

    def write(self, known: Sequence[int], numbers: Sequence[float]) -> Draft:
        """See ``Drafter``. Free text is not drafted."""
        first = next((place for place, token in enumerate(known) if token in self._motion_of), len(known))
        if (known and first == len(known)) or len(known) - first > len(numbers):
            return Draft(tuple(known), ())
        rest = [self._actions[int(number)] for number in numbers[len(known) - first :]]
        spans = ((index, first + index, first + index + 1) for index in range(len(known) - first, len(numbers)))
        return Draft((*known, *rest, self._end), tuple(spans))

    def read(self, draft: Draft, predicted: Sequence[int], numbers: Sequence[float]) -> list[float]:
        """See ``Drafter``."""
        values = list(numbers)
        for index, place, _ in draft.spans:
            if place < len(predicted) and predicted[place] in self._motion_of:
                values[index] = float(self._motion_of[predicted[place]])
        return values


def roll_out(motions: np.ndarray, interval_s: float) -> Trajectory:
    """Motions [points, 3] (x, y in metres and turn in rad, each in the frame that the one before ends in)."""
    x = y = heading = 0.0
    points, headings = [], []
    for forward, left, turn in np.asarray(motions, np.float64).tolist():
        cos, sin = math.cos(heading), math.sin(heading)
        x, y, heading = x + cos * forward - sin * left, y + sin * forward + cos * left, heading + turn
        points.append((x, y))
        headings.append(math.remainder(heading, 2 * math.pi))
    return Trajectory(np.array(points), interval_s, np.array(headings))


def read_codebook(path: Path) -> np.ndarray:
    """The motions float32 [N, 3] of a safetensors file.

    Raises:
        ModelError: the file is missing, unreadable, or holds something else.
    """
    if not path.is_file():
        raise ModelError(f"{path}: missing; vla.json's answer.file names it")
    try:
        with safe_open(path, framework="pt") as stored:
            shape = stored.get_slice(TENSOR).get_shape()
            if len(shape) != 2 or shape[1] != 3 or not 1 <= shape[0] <= 65536:
                raise ModelError(f"{path}: {TENSOR}: has shape {shape}, expected [1 to 65536, 3]")
            motions = stored.get_tensor(TENSOR)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: no tensor {TENSOR!r} in it ({error}); see docs/vla_directory.md") from error
    if motions.dtype != torch.float32 or not bool((motions.abs() <= _MAX_MOTION).all()):  # not for NaN either
        raise ModelError(f"{path}: {TENSOR}: must be float32 and within {_MAX_MOTION:g} m or rad")
    return motions.numpy()
