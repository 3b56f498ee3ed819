"""What an answer means. The text grammar: a fixed preamble, points ``[x, y]``, a closing.

Anything that does not follow the format is refused, never repaired.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

from fastdrive_node.errors import AnswerError, ModelError
from fastdrive_node.families import Vla
from fastdrive_node.families.spec import AnswerSpec
from fastdrive_node.types import Trajectory

_EXCERPT = 80


class AnswerFormat(Protocol):
    """How a VLA writes a trajectory."""

    @property
    def max_new_tokens(self) -> int: ...

    @property
    def stop_ids(self) -> frozenset[int]:
        """An answer ends with one of them, or with ``max_new_tokens``."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """Generated ids as text, without the EOS token."""
        ...

    def parse(self, ids: Sequence[int]) -> Trajectory:
        """The trajectory that generated ids state.

        Raises:
            AnswerError: they do not follow the format; the reason says where.
        """
        ...


class TextAnswer:
    """The ``AnswerFormat`` of ``vla.json``'s text grammar.

    Raises:
        ModelError: the tokenizer cannot write an answer, or not within ``max_new_tokens``.
    """

    def __init__(self, vla: Vla):
        self.spec, self._tokenizer = vla.spec.answer, vla.tokenizer
        self.max_new_tokens = self.spec.max_new_tokens
        example = example_answer(self.spec)
        vla.check_text(example, "vla.json: answer")
        needed = len(vla.encode_text(example))
        if needed > self.max_new_tokens:
            raise ModelError(
                f"{vla.path}: vla.json: answer.max_new_tokens: {self.max_new_tokens} is too few; a short answer "
                f"already has {needed} tokens"
            )
        closing = vla.encode_text(self.spec.closing)
        ends = frozenset(closing) if len(closing) == 1 else frozenset()  # the closing tag, where it is one token
        self.stop_ids = vla.eos_ids | ends
        self._silent = self.stop_ids - ends  # EOS ids that are no part of the text

    def text(self, ids: Sequence[int]) -> str:
        ids = list(ids)
        return str(self._tokenizer.decode(ids[:-1] if ids and ids[-1] in self._silent else ids))

    def parse(self, ids: Sequence[int]) -> Trajectory:
        return Trajectory(parse_answer(self.text(ids), self.spec), self.spec.interval_s)


def format_answer(waypoints_m: np.ndarray, spec: AnswerSpec) -> str:
    """The answer text of a trajectory, as a VLA is trained to give it.

    Args:
        waypoints_m: [points, 2], x forward, y left, metres.

    Raises:
        ValueError: another number of points, or a coordinate that is not finite or does not fit the form.
    """
    waypoints_m = np.asarray(waypoints_m, dtype=np.float64)
    if waypoints_m.shape != (spec.points, 2):
        raise ValueError(f"waypoints: expected shape ({spec.points}, 2), got {waypoints_m.shape}")
    points = (f"[{spec.number.write(x)}, {spec.number.write(y)}]" for x, y in waypoints_m)
    return f"{spec.preamble}{', '.join(points)}{spec.closing}"


def example_answer(spec: AnswerSpec) -> str:
    """An answer whose points are all the origin."""
    return format_answer(np.zeros((spec.points, 2)), spec)


def parse_answer(text: str, spec: AnswerSpec) -> np.ndarray:
    """The trajectory that a text states: float64 [points, 2] in metres.

    The whole text must follow the grammar, with exactly the number form that the VLA's spec states.

    Raises:
        AnswerError: it does not; the reason says where.
    """
    whole, point = _grammar(spec)
    if whole.fullmatch(text) is None:
        raise AnswerError(f"answer: {_reason(text, spec, point)}: {_excerpt(text)}")
    body = text[len(spec.preamble) : len(text) - len(spec.closing)]
    return np.array([[float(x), float(y)] for x, y in point.findall(body)], dtype=np.float64)


@lru_cache(maxsize=16)
def _grammar(spec: AnswerSpec) -> tuple[re.Pattern[str], re.Pattern[str]]:
    number = spec.number.pattern
    point = rf"\[({number}), ({number})\]"
    more = rf"(?:, {point}){{{spec.points - 1}}}"
    whole = re.escape(spec.preamble) + point + more + re.escape(spec.closing)
    return re.compile(whole, re.ASCII), re.compile(point, re.ASCII)


def _reason(text: str, spec: AnswerSpec, point: re.Pattern[str]) -> str:
    if not text.startswith(spec.preamble):
        return f"does not start with {spec.preamble!r}"
    end = text.find(spec.closing, len(spec.preamble))
    if end < 0:
        return f"is cut off before {spec.closing!r}"
    if end + len(spec.closing) != len(text):
        return f"has text after {spec.closing!r}"
    found = len(point.findall(text))
    if found != spec.points:
        return (
            f"has {found} readable points of {spec.points} in the form [x, y] with numbers like {spec.number.example()}"
        )
    return "has other text between its points"


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= _EXCERPT else f"{text[: _EXCERPT // 2]} ... {text[-_EXCERPT // 2 :]}")
