"""How many visual tokens fit into a deadline. No torch, no ROS.

What follows the encoder (score, select, prefill, decode, parse) takes ``fixed + each * K`` ms for K kept tokens; both
are measured when the planner starts. While it runs, the largest of the last ten ratios of measured to predicted time
says how much slower the machine is now, and an encoder that is slower than of late says it for the present set. The
time of the stages up to the encoder is not predicted: it has passed when K is chosen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from fastdrive_node.errors import PlannerError
from fastdrive_node.types import DeadlineChoice

RATIOS = 10  # plans whose time says what the next one takes
_ENCODES = 50  # sets whose encoding is "of late"
_NOTICED = 1.5  # ratio of an encoder's time to that of late from which on the machine is taken to be slower
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
        self._encodes: deque[float] = deque(maxlen=_ENCODES)
        self._ratios: deque[float] = deque(maxlen=RATIOS)

    def learn(self, times_ms: Mapping[int, float], encode_ms: float) -> None:
        """Take what was measured at the start.

        Args:
            times_ms: from the encoder's end to the plan, by number of kept tokens.
            encode_ms: of the encoder.
        """
        self.model = LatencyModel.fit(times_ms)
        self._encode_ms = encode_ms

    def choose(self, wanted: int, elapsed_ms: float, encode_ms: float) -> DeadlineChoice:
        """K of a plan.

        Args:
            wanted: K of the pruning ratio.
            elapsed_ms: since planning began.
            encode_ms: of this set.

        Raises:
            PlannerError: code ``deadline``: not even ``k_min`` tokens fit.
        """
        assert self.model is not None
        load = max(max(self._ratios, default=1.0), self._slower_now(encode_ms))
        left, least = self.deadline_ms * (1 - RESERVE) - elapsed_ms, min(self.k_min, wanted)
        fixed, each = load * self.model.fixed_ms, load * self.model.each_ms
        keep = wanted
        if fixed + each * wanted > left:
            keep = int((left - fixed) / each) if each and left > fixed else 0
        if keep < least:
            self._drop(encode_ms)
            more = fixed + each * least
            raise PlannerError(
                f"deadline: {elapsed_ms:.0f} ms have passed and {least} tokens take {more:.0f} ms more, "
                f"deadline_ms is {self.deadline_ms:g}; the machine is {load:.1f} times slower than at the start",
                code="deadline",
            )
        return DeadlineChoice(self.deadline_ms, elapsed_ms, fixed + each * keep, keep, wanted, load)

    def finish(self, choice: DeadlineChoice, total_ms: float, kept: int) -> bool:
        """Take the time of a plan and the number of tokens that it kept; False where it was late."""
        assert self.model is not None
        ratio = (total_ms - choice.elapsed_ms) / max(self.model.predict(kept), 1e-3)
        self._ratios.append(min(max(ratio, _LEAST), _MOST))
        return total_ms <= self.deadline_ms

    def _slower_now(self, encode_ms: float) -> float:
        """How many times longer the encoder took than of late; 1 where that may be chance."""
        ratio = encode_ms / median(self._encodes) if self._encodes else 1.0
        self._encodes.append(encode_ms)
        return min(ratio, _MOST) if ratio > _NOTICED else 1.0

    def _drop(self, encode_ms: float) -> None:
        """A set that is dropped tells no time of a plan. Its encoder's time tells when the machine is faster again."""
        now = encode_ms / max(self._encode_ms, 1e-3)
        if self._ratios and now < max(self._ratios):
            self._ratios.remove(max(self._ratios))
            self._ratios.append(max(now, _LEAST))
