"""Drafts of an answer that one forward verifies: what the format forces is known, and a trajectory is nearly known.

All of a draft's tokens run in one forward, those of the first draft in that of the prompt. The longest beginning that
greedy decoding would have written is kept, with the token that it writes next. What the model predicts for the numbers
behind, moved along with the positions before them, is the next draft (Jacobi iteration). What the format forces stays
in the draft until the model writes something else, so the text is that of plain greedy decoding, whatever the draft
was. No ROS.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

from fastdrive_node.families.spec import AnswerSpec
from fastdrive_node.types import Draft, EgoState


class Drafter(Protocol):
    """What writes drafts of an answer format."""

    def write(self, known: Sequence[int], numbers: Sequence[float]) -> Draft:
        """A whole answer that begins with generated ids.

        Args:
            known: ids of the answer so far.
            numbers: that the answer states, in its order; those that ``known`` states already are not read.

        Returns:
            Only the known ids where what comes next cannot be told.
        """
        ...

    def read(self, draft: Draft, predicted: Sequence[int], numbers: Sequence[float]) -> list[float]:
        """The numbers of the next draft: those that a model would write in place of a draft's, or what follows of them.

        Args:
            predicted: for each token of the draft, the id that the model would have written there.
            numbers: of the draft; taken where a prediction is no number.
        """
        ...


class TextDrafter:
    """The ``Drafter`` of the text grammar.

    Args:
        encode: text to ids.
        piece: the text of one id.
        prefix: ids of the beginning that the model was given.
    """

    def __init__(
        self,
        spec: AnswerSpec,
        encode: Callable[[str], list[int]],
        piece: Callable[[int], str],
        prefix: Sequence[int] = (),
    ):
        self.spec, self._encode, self._prefix = spec, encode, tuple(prefix)
        self._piece = lru_cache(maxsize=8192)(piece)
        self._text = lru_cache(maxsize=8192)(self._write_number)  # most numbers of a draft stay as they are
        self._number = re.compile(spec.number.pattern, re.ASCII)
        between = [", ", "], ["] * spec.points
        self._fixed = [f"{spec.preamble}[", *between[:-1], f"]{spec.closing}"]  # before each number, and the end
        self._number_id = lru_cache(maxsize=8192)(self._only_id)
        self._template: Draft | None = None  # any whole answer, where each number is one token

    def write(self, known: Sequence[int], numbers: Sequence[float]) -> Draft:
        """See ``Drafter``."""
        draft = self._filled(known, numbers) or self._written(known, numbers)
        if self._template is None and not known and not self.spec.skip_until and self._fits(draft, numbers):
            self._template = draft
        return draft

    def _only_id(self, text: str) -> int | None:
        """The id of a number, if it is one token whatever stands before it."""
        ids = self._encode(text)
        return ids[0] if len(ids) == 1 else None

    def _fits(self, draft: Draft, numbers: Sequence[float]) -> bool:
        """Whether a whole answer's numbers are one token each, and the same as alone."""
        spans = draft.spans
        single = len(spans) == len(self._fixed) - 1 and all(stop == start + 1 for _, start, stop in spans)
        return single and all(draft.ids[start] == self._number_id(self._text(numbers[n])) for n, start, _ in spans)

    def _filled(self, known: Sequence[int], numbers: Sequence[float]) -> Draft | None:
        """What ``_written`` gives, in a tenth of its time; None where the template does not give it."""
        if self._template is None or len(numbers) < len(self._template.spans):
            return None
        ids, spans = list(self._template.ids), self._template.spans
        for number, start, _ in spans:
            if start < len(known):
                written = known[start] if self._number.fullmatch(self._piece(known[start])) else None
            else:
                written = self._number_id(self._text(numbers[number]))
            if written is None:
                return None
            ids[start] = written
        if tuple(ids[: len(known)]) != tuple(known):
            return None
        return Draft(tuple(ids), tuple(span for span in spans if span[1] > len(known) or not known))

    def _written(self, known: Sequence[int], numbers: Sequence[float]) -> Draft:
        """By the tokenizer."""
        said = "".join(map(self._piece, (*self._prefix, *known)))
        start = said.find(self.spec.skip_until) if self.spec.skip_until else 0
        rest, places = self._continue(said[start:], numbers) if start >= 0 else ("", [])
        if not rest:
            return Draft(tuple(known), ())
        ids = self._encode(said + rest)[len(self._prefix) :]
        if tuple(ids[: len(known)]) != tuple(known):
            ids = [*known, *self._encode(rest)]
        return Draft(tuple(ids), self._spans(ids, len(known), len(said) + len(rest), start, places))

    def _continue(self, block: str, numbers: Sequence[float]) -> tuple[str, list[tuple[int, int, int]]]:
        """The text behind an unfinished block, and index, first and last + 1 character of the block of each number
        that ends in it; nothing where the block does not follow the grammar."""
        at, rest, places = 0, "", []
        for index, fixed in enumerate(self._fixed):
            there = block[at : at + len(fixed)]
            if not fixed.startswith(there):
                return "", []
            rest += fixed[len(there) :]
            at += len(fixed)
            if index == len(numbers):
                return rest, places
            written = _DIGITS.match(block[at:])
            begun = written.group() if written else ""
            if at + len(begun) < len(block):  # something follows: the number is whole
                at += len(begun)
                continue
            number = self._finish(begun, numbers[index])
            rest += number[len(begun) :]
            places.append((index, at, at + len(number)))
            at += len(number)
        return rest, places

    def _finish(self, begun: str, value: float) -> str:
        """A number's text that begins with what is written already."""
        text = self._text(value)
        if text.startswith(begun):
            return text
        for end in (text[len(begun) :], text.lstrip("+-"), "", "0", ".0"):
            if self._number.fullmatch(begun + end):
                return begun + end
        return begun

    def _write_number(self, value: float) -> str:
        try:
            return self.spec.number.write(value)
        except ValueError:
            return self.spec.number.write(0.0)

    def _spans(
        self, ids: Sequence[int], known: int, length: int, start: int, places: list[tuple[int, int, int]]
    ) -> tuple[tuple[int, int, int], ...]:
        """The tokens of each number. Counted from the end, for free text may hold pieces of characters."""
        ends, at = [0] * len(ids), length
        for place in range(len(ids) - 1, -1, -1):
            ends[place] = at
            at -= len(self._piece(ids[place]))
        spans, place = [], known
        for index, first, last in places:
            while place < len(ids) and ends[place] <= start + first:
                place += 1
            begin = place
            while place < len(ids) and ends[place] < start + last:
                place += 1
            if begin > known or not known:
                spans.append((index, begin, place + 1))
            place += 1
        return tuple(spans)

    def read(self, draft: Draft, predicted: Sequence[int], numbers: Sequence[float]) -> list[float]:
        """See ``Drafter``."""
        values = list(numbers)
        for index, first, last in draft.spans:
            text = "".join(map(self._piece, predicted[first:last])).strip(" ")
            if self._number.fullmatch(text):
                values[index] = float(text)
        return moved_along(numbers, values) if self.spec.pairs == "xy" else values


def moved_along(drafted: Sequence[float], predicted: Sequence[float]) -> list[float]:
    """Predicted positions, moved along with those before them that the model has changed.

    A model predicts a position behind the draft's ones. Where it changes these, it will change the next one too: by the
    last change on this axis, and half of what that had grown by, a damped linear extrapolation. Small moves are left
    out: they would move what is right already. ``benchmarks.studies.drafts`` counts the forwards.

    Args:
        drafted, predicted: the numbers of pairs [x, y], one after the other.
    """
    changes, moved = [0.0] * 4, []  # of the two points before the first
    for was, now in zip(drafted, predicted, strict=True):
        move = 1.5 * changes[-2] - 0.5 * changes[-4]
        changes.append(now + move - was)
        moved.append(now + move if _LEAST_MOVE_M < abs(move) < math.inf else now)
    return moved


_LEAST_MOVE_M = 0.3
_DIGITS = re.compile(r"[-+0-9.]*", re.ASCII)
_FADE_S = 1.0  # an acceleration falls to 1/e of itself in this time


class ReplayedDrafter:
    """A ``Drafter`` of a known answer that is wrong at stated places: for measuring, where no model drafts well.

    Args:
        ids: of the whole answer.
        wrong: places, from 1 on; each of them costs a forward more.
        other: an id that no answer has.
    """

    def __init__(self, ids: Sequence[int], wrong: Sequence[int], other: int):
        self._ids, self._wrong, self._other = tuple(ids), sorted(wrong), other

    def write(self, known: Sequence[int], numbers: Sequence[float]) -> Draft:
        """See ``Drafter``."""
        ids = [*known, *self._ids[len(known) :]]
        place = next((place for place in self._wrong if place >= len(known)), None)
        if place is not None and place < len(ids):
            ids[place] = self._other
        return Draft(tuple(ids), ())

    def read(self, draft: Draft, predicted: Sequence[int], numbers: Sequence[float]) -> list[float]:
        """See ``Drafter``."""
        return list(numbers)


def constant_turn(now: EgoState, points: int, dt_s: float) -> np.ndarray:
    """Waypoints [points, 2] of constant yaw rate and an acceleration that fades, which end at standstill.

    Recorded trajectories need 4 % fewer forwards than with a constant one, answers of models/tiny as many
    (``benchmarks.studies.drafts``).
    """
    times = np.arange(1, points + 1) * dt_s
    speed, gained = max(now.speed_mps, 0.0), now.accel_mps2 * _FADE_S  # what the acceleration gains in the end
    if speed + gained < 0:
        times = np.minimum(times, -_FADE_S * math.log1p(speed / gained))
    lengths = speed * times + gained * (times + _FADE_S * np.expm1(-times / _FADE_S))
    angles = now.yaw_rate_radps * times
    chords = lengths * np.sinc(angles / (2 * math.pi))
    return np.stack([chords * np.cos(angles / 2), chords * np.sin(angles / 2)], axis=1)
