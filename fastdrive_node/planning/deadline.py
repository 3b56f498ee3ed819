"""How many visual tokens fit into a deadline. No torch, no ROS.

What follows the encoder (score, select, prefill, decode, parse) takes ``fixed + each * K`` ms for K kept tokens; both
are measured when the planner starts. While it runs, the encoder's time of this very set, and of the last few, says how
much slower the machine is now than it was then. By how much the time behind the encoder was longer still is remembered
of the last plans: nearly the longest of them counts, so what varies from plan to plan is in it, once. The time of the
stages up to the encoder is not predicted: it has passed when K is chosen. A set that is refused tells the encoder's
time too, so planning goes on as soon as the machine allows.

Of a set that is refused nothing is learned about the stages behind the encoder, and a few long plans could refuse all
sets from then on. So each set that is refused for them lets a larger fraction of the last plans be left out, the
longest first, until a set is planned again. That plan may be late. Then it takes a hundred more sets until the next
one: of all sets at most one in a hundred is late by this.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from fastdrive_node.errors import PlannerError
from fastdrive_node.types import DeadlineChoice

RATIOS = 200  # plans whose time says what the next one takes
LATE = 0.005  # fraction of them that may have taken longer than what counts: all but the longest one of 200
RESERVE = 0.05  # of the deadline, for what the last plans did not show
# That fraction after a late plan: ten refused sets until more is left out, for what made it late may go on, and a
# hundred where more was left out.
_AFTER_LATE, _AFTER_LATE_AGAIN = -0.05, -0.5
_FEW, _UNKNOWN = 20, 1.25  # of fewer plans than these, the next one may take longer by this
_ENCODES = 5  # sets whose encoding says what the machine does now
_LEAST, _MOST = 0.5, 20.0  # bounds of a ratio: one odd measurement shall not decide for long


@dataclass(frozen=True)
class LatencyModel:
    """Time from the encoder's end to the plan: ``fixed_ms + each_ms * K``."""

    fixed_ms: float
    each_ms: float

    @classmethod
    def fit(cls, times_ms: Mapping[int, float]) -> LatencyModel:
        """The line through measured times by least squares, which never falls.

        Args:
            times_ms: by number of kept tokens, for one number or more.
        """
        count = len(times_ms)
        mean_keep, mean_time = sum(times_ms) / count, sum(times_ms.values()) / count
        spread = sum((keep - mean_keep) ** 2 for keep in times_ms)
        together = sum((keep - mean_keep) * (time - mean_time) for keep, time in times_ms.items())
        each = max(together / spread, 0.0) if spread else 0.0
        return cls(max(mean_time - each * mean_keep, 0.0), each)

    def predict(self, keep: int) -> float:
        """ms for K kept tokens."""
        return self.fixed_ms + self.each_ms * keep

    def fitting(self, left_ms: float, wanted: int) -> int:
        """The most tokens, at most ``wanted``, that take no longer than ``left_ms``; 0 where none fit."""
        if self.predict(wanted) <= left_ms:
            return wanted
        return int((left_ms - self.fixed_ms) / self.each_ms) if self.each_ms and left_ms > self.fixed_ms else 0


class Deadline:
    """Chooses K for one plan after the other.

    Args:
        deadline_ms: from the start of planning to the plan.
        k_min: the smallest K that is worth a plan.
    """

    def __init__(self, deadline_ms: float, k_min: int):
        self.deadline_ms, self.k_min = deadline_ms, k_min
        self.model: LatencyModel | None = None  # None until ``learn``
        self._encode_ms = 0.0  # at the start
        self._encodes: deque[float] = deque(maxlen=_ENCODES)  # ratios to it
        self._relative: deque[float] = deque(maxlen=RATIOS)  # slowdown behind the encoder over that of the encoder
        self._left_out = LATE  # fraction of ``_relative``, the largest, that does not count; less after a late plan

    def learn(self, times_ms: Mapping[int, float], encode_ms: float) -> None:
        """Take what was measured at the start.

        Args:
            times_ms: from the encoder's end to the plan, by number of kept tokens.
            encode_ms: of the encoder.
        """
        self.model = LatencyModel.fit(times_ms)
        self._encode_ms = encode_ms

    def choose(self, wanted: int, elapsed_ms: float, encode_ms: float, encoded: float = 1.0) -> DeadlineChoice:
        """K of a plan.

        Args:
            wanted: K of the pruning ratio.
            elapsed_ms: since planning began.
            encode_ms: of this set.
            encoded: the fraction of its tokens that were encoded in this time; the others were there.

        Raises:
            PlannerError: code ``deadline``: not even ``k_min`` tokens fit.
        """
        assert self.model is not None
        self._encodes.append(self._encode_ratio(encode_ms, encoded))
        left, least = self.deadline_ms * (1 - RESERVE) - elapsed_ms, min(self.k_min, wanted)
        encoder = self._encoder_load()
        load = encoder * self._longest_relative(LATE)
        keep = self.model.fitting(left / load, wanted)
        if keep == wanted:
            self._left_out = min(self._left_out, LATE)
        elif self._left_out > LATE:
            load = encoder * self._longest_relative(self._left_out)
            keep = self.model.fitting(left / load, wanted)
        if keep < least:
            if encoder * self.model.predict(least) <= left:  # it could fit, were it not for the last plans
                self._left_out = min(self._left_out + LATE, 1.0)
            more = load * self.model.predict(least)
            raise PlannerError(
                f"deadline: {elapsed_ms:.0f} ms have passed and {least} tokens may take {more:.0f} ms more, "
                f"deadline_ms is {self.deadline_ms:g}, {100 * RESERVE:.0f} % of it held in reserve; the machine may "
                f"take {load:.1f} times as long as at the start",
                code="deadline",
            )
        return DeadlineChoice(self.deadline_ms, elapsed_ms, load * self.model.predict(keep), keep, wanted, load)

    def finish(self, choice: DeadlineChoice, total_ms: float, kept: int) -> bool:
        """Take the time of a plan and the number of tokens that it kept; False where it was late."""
        assert self.model is not None
        ratio = (total_ms - choice.elapsed_ms) / max(self.model.predict(kept), 1e-3)
        self._relative.append(_bounded(ratio) / self._encoder_load())
        in_time = total_ms <= self.deadline_ms
        if not in_time:
            self._left_out = _AFTER_LATE_AGAIN if self._left_out > LATE else min(self._left_out, _AFTER_LATE)
        return in_time

    def _encoder_load(self) -> float:
        """How much slower than at the start the encoder is, by the last sets."""
        return max(self._encodes[-1], median(self._encodes)) if self._encodes else 1.0

    def _encode_ratio(self, encode_ms: float, encoded: float) -> float:
        """The time of this set's encoder over that at the start."""
        ratio = encode_ms / max(self._encode_ms, 1e-3)
        if encoded < 1:  # all tokens take longer than these, and not more than in proportion; the last sets say more
            most = ratio / encoded if encoded else math.inf
            ratio = min(max(self._encoder_load(), ratio), most)
        return _bounded(ratio)

    def _longest_relative(self, left_out: float) -> float:
        """The longest of the last plans, without a fraction of them; half of them count in any case."""
        ordered = sorted(self._relative)
        longest = 1.0  # as at the start
        if ordered:
            longest = ordered[math.ceil(max(1 - left_out, 0.5) * len(ordered) - 1e-9) - 1]
        if left_out >= 1:  # what the last plans say refuses all sets, and may not hold any more
            return min(longest, 1.0)
        return max(longest, _UNKNOWN) if len(ordered) < _FEW and left_out <= LATE else longest


def _bounded(ratio: float) -> float:
    return min(max(ratio, _LEAST), _MOST)
