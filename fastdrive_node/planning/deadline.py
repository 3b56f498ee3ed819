"""How many visual tokens fit into a deadline. No torch, no ROS.

What follows the encoder (score, select, prefill, decode, parse) takes ``fixed + each * K`` ms for K kept tokens; both
are measured when the planner starts. While it runs, the encoder's time of this very set, and of the last few, says how
much slower the machine is now than it was then. How the time behind the encoder compares with that is remembered of the
last plans: nearly the worst of them counts. The time of the stages up to the encoder is not predicted: it has passed
when K is chosen. A set that is dropped tells the encoder's time too, so planning goes on as soon as the machine allows.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from fastdrive_node.errors import PlannerError
from fastdrive_node.types import DeadlineChoice

RATIOS = 20  # plans whose time says what the next one takes
_WORST = 0.9  # the quantile of them that counts: one odd plan shall not decide
_ENCODES = 5  # sets whose encoding says what the machine does now
_LEAST, _MOST = 0.5, 20.0  # bounds of a ratio: one odd measurement shall not decide for long
RESERVE = 0.15  # of the deadline, for what varies from plan to plan


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
        load = self._encoder_load(encode_ms, encoded) * self._worst_relative()
        left, least = self.deadline_ms * (1 - RESERVE) - elapsed_ms, min(self.k_min, wanted)
        fixed, each = load * self.model.fixed_ms, load * self.model.each_ms
        keep = wanted
        if fixed + each * wanted > left:
            keep = int((left - fixed) / each) if each and left > fixed else 0
        if keep < least:
            more = fixed + each * least
            raise PlannerError(
                f"deadline: {elapsed_ms:.0f} ms have passed and {least} tokens take {more:.0f} ms more, "
                f"deadline_ms is {self.deadline_ms:g}, {100 * RESERVE:.0f} % of it held in reserve; the machine takes "
                f"{load:.1f} times as long as at the start",
                code="deadline",
            )
        return DeadlineChoice(self.deadline_ms, elapsed_ms, fixed + each * keep, keep, wanted, load)

    def finish(self, choice: DeadlineChoice, total_ms: float, kept: int) -> bool:
        """Take the time of a plan and the number of tokens that it kept; False where it was late."""
        assert self.model is not None
        ratio = (total_ms - choice.elapsed_ms) / max(self.model.predict(kept), 1e-3)
        self._relative.append(_bounded(ratio) / self._load)
        return total_ms <= self.deadline_ms

    @property
    def _load(self) -> float:
        """How much slower than at the start the encoder is, by the last sets."""
        return max(self._encodes[-1], median(self._encodes)) if self._encodes else 1.0

    def _encoder_load(self, encode_ms: float, encoded: float) -> float:
        """The same, by this set too."""
        ratio = encode_ms / max(self._encode_ms, 1e-3)
        if encoded < 1:  # all tokens take longer than these, and not more than in proportion; the last sets say more
            most = ratio / encoded if encoded else math.inf
            ratio = min(max(self._load, ratio), most)
        self._encodes.append(_bounded(ratio))
        return self._load

    def _worst_relative(self) -> float:
        ordered = sorted(self._relative)
        return ordered[int(_WORST * (len(ordered) - 1))] if ordered else 1.0


def _bounded(ratio: float) -> float:
    return min(max(ratio, _LEAST), _MOST)
