"""What an answer means. The text grammar: free text where it is allowed, a fixed preamble, pairs ``[a, b]``, a closing.

Anything that does not follow the format is refused, never repaired.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from fastdrive_node.errors import AnswerError, InputError, ModelError
from fastdrive_node.families import Vla
from fastdrive_node.families.spec import SPEC_FILE, AnswerSpec, CodebookSpec, FrameName, VlaSpec, text_answer
from fastdrive_node.planning.codebook import CodebookAnswer
from fastdrive_node.planning.drafts import Drafter, TextDrafter
from fastdrive_node.planning.pairs import pairs_of, trajectory_of
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

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """The constant beginning that the model is given after the prompt; generated ids come after it."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """The answer's whole text, from the generated ids; without the EOS token."""
        ...

    @property
    def drafter(self) -> Drafter | None:
        """Writes drafts of answers; None where they cannot be drafted."""
        ...

    def numbers(self, waypoints_m: np.ndarray) -> list[float]:
        """What an answer would state for waypoints [points, 2] of the rear axle, as ``drafter`` reads it.

        The waypoints are those of the format: its number of points, its interval.
        """
        ...

    def parse(self, ids: Sequence[int]) -> Trajectory:
        """The trajectory that generated ids state.

        Raises:
            AnswerError: they do not follow the format; the reason says where.
        """
        ...


def answer_format(vla: Vla) -> AnswerFormat:
    """The format that ``vla.json`` states. Raises ModelError as the formats do."""
    return CodebookAnswer(vla) if isinstance(vla.spec.answer, CodebookSpec) else TextAnswer(vla)


class TextAnswer:
    """The ``AnswerFormat`` of ``vla.json``'s text grammar.

    Raises:
        ModelError: the tokenizer cannot write an answer, or not within ``max_new_tokens``.
    """

    def __init__(self, vla: Vla):
        self.spec, self._vla, self._tokenizer = text_answer(vla.spec, vla.path / SPEC_FILE), vla.spec, vla.tokenizer
        self.max_new_tokens = self.spec.max_new_tokens
        example = example_answer(self.spec)
        vla.check_text(example, "vla.json: answer")
        closing = vla.encode_text(self.spec.closing) if self.spec.closing else []
        ends = frozenset(closing) if len(closing) == 1 else frozenset()  # the closing tag, where it is one token
        self.stop_ids = vla.eos_ids | ends
        self._silent = self.stop_ids - ends  # EOS ids that are no part of the text
        self.prefix_ids = constant_prefix(vla.encode_text, self.spec) if self.spec.preamble_in_prompt else ()
        tokenizer = vla.tokenizer
        self.drafter = TextDrafter(
            self.spec, vla.encode_text, lambda token: str(tokenizer.decode([token])), self.prefix_ids
        )
        needed = len(vla.encode_text(example)) - len(self.prefix_ids)
        if needed > self.max_new_tokens:
            raise ModelError(
                f"{vla.path}: vla.json: answer.max_new_tokens: {self.max_new_tokens} is too few; a short answer "
                f"already has {needed} tokens"
            )

    def text(self, ids: Sequence[int]) -> str:
        ids = [*self.prefix_ids, *ids]
        return str(self._tokenizer.decode(ids[:-1] if ids and ids[-1] in self._silent else ids))

    def numbers(self, waypoints_m: np.ndarray) -> list[float]:
        spec, vla = self.spec, self._vla
        return pairs_of(waypoints_m, spec.pairs, spec.interval_s, vla.frame, vla.origin_m).flatten().tolist()

    def parse(self, ids: Sequence[int]) -> Trajectory:
        return parse_trajectory(self.text(ids), self._vla)


def parse_trajectory(text: str, vla: VlaSpec) -> Trajectory:
    """The trajectory of the rear axle that an answer's text states. Raises AnswerError as ``parse_answer``."""
    spec = text_answer(vla)
    trajectory = trajectory_of(parse_answer(text, spec), spec.pairs, spec.interval_s, vla.frame, vla.origin_m)
    return replace(trajectory, rounding_m=0.5 * 10.0**-spec.number.decimals)


def constant_prefix(encode: Callable[[str], list[int]], spec: AnswerSpec) -> tuple[int, ...]:
    """Ids that every answer begins with, whatever its numbers are. A tokenizer may merge what comes before a number
    with its first character, so answers with each of them are compared."""
    firsts = [spec.number.write(value) for value in (*range(10), -1)]
    answers = [encode(f"{spec.preamble}[{first}, {first}]") for first in firsts]
    length = 0
    while all(len(ids) > length and ids[length] == answers[0][length] for ids in answers):
        length += 1
    return tuple(answers[0][:length])


def answer_text(pairs: np.ndarray, spec: AnswerSpec) -> str:
    """The text of an answer with these pairs [points, 2], as a VLA is trained to write it.

    Raises:
        ValueError: another number of pairs, or a value that is not finite or does not fit the form.
    """
    pairs = np.asarray(pairs, dtype=np.float64)
    if pairs.shape != (spec.points, 2):
        raise ValueError(f"waypoints: expected shape ({spec.points}, 2), got {pairs.shape}")
    written = (f"[{spec.number.write(a)}, {spec.number.write(b)}]" for a, b in pairs)
    return f"{spec.preamble}{', '.join(written)}{spec.closing}"


def format_answer(
    waypoints_m: np.ndarray, spec: AnswerSpec, frame: FrameName = "x_forward_y_left", origin_m: float = 0.0
) -> str:
    """The answer text of a trajectory, as a VLA is trained to write it.

    Args:
        waypoints_m: [points, 2] of the rear axle in the ego frame.
        frame, origin_m: of the VLA's spec.

    Raises:
        ValueError: another number of points, or a value that is not finite or does not fit the form.
    """
    return answer_text(pairs_of(waypoints_m, spec.pairs, spec.interval_s, frame, origin_m), spec)


def example_answer(spec: AnswerSpec) -> str:
    """An answer whose values are all zero."""
    return answer_text(np.zeros((spec.points, 2)), spec)


def parse_answer(text: str, spec: AnswerSpec) -> np.ndarray:
    """The pairs that a text states: float64 [points, 2].

    Behind the free text that the spec allows, the whole text must follow the grammar, with exactly the number form
    that the VLA's spec states.

    Raises:
        AnswerError: it does not; the reason says where.
    """
    block = text
    if spec.skip_until:
        start = text.find(spec.skip_until)
        if start < 0:
            raise AnswerError(f"answer: has no {spec.skip_until!r}: {_excerpt(text)}")
        block = text[start:]
    whole, point = _grammar(spec)
    if whole.fullmatch(block) is None:
        raise AnswerError(f"answer: {_reason(block, spec, point)}: {_excerpt(block)}")
    body = block[len(spec.preamble) : len(block) - len(spec.closing)]
    return np.array([[float(a), float(b)] for a, b in point.findall(body)], dtype=np.float64)


@lru_cache(maxsize=16)
def _grammar(spec: AnswerSpec) -> tuple[re.Pattern[str], re.Pattern[str]]:
    number = spec.number.pattern
    point = rf"\[({number}), ({number})\]"
    more = rf"(?:, {point}){{{spec.points - 1}}}"
    whole = re.escape(spec.preamble) + point + more + re.escape(spec.closing)
    return re.compile(whole, re.ASCII), re.compile(point, re.ASCII)


def _reason(text: str, spec: AnswerSpec, point: re.Pattern[str]) -> str:
    if not text.startswith(spec.preamble):
        place = next((k for k, (a, b) in enumerate(zip(text, spec.preamble, strict=False)) if a != b), len(text))
        return f"does not start with {_excerpt(spec.preamble)} (another character at {place + 1})"
    if spec.closing:
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
    return "has other text between its points" if spec.closing else "has other text between or after its points"


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= _EXCERPT else f"{text[: _EXCERPT // 2]} ... {text[-_EXCERPT // 2 :]}")


def read_answers(path: Path) -> list[str]:
    """Recorded answers: JSON lines, each a text or an object with the field ``text``.

    Raises:
        InputError: the file or a line cannot be read.
    """
    answers = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a file of recorded answers") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}); give recorded answers as JSON lines") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            text = value["text"] if isinstance(value, dict) else value
            if not isinstance(text, str):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f'{path}: line {number}: give a JSON text, or {{"text": ...}}') from error
        answers.append(text)
    if not answers:
        raise InputError(f"{path}: holds no answer; give one a line")
    return answers
