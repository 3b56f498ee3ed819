"""The order in which a bag is played in lockstep: the next frame set after the outcome of the last one. No ROS.

Simulated time stands still while the node plans, so nothing is superseded and nothing grows stale, on any machine. For
the same plans every time, the node must have what a set needs before the set is complete, and a set that lacks a
camera must end before the next image comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from fastdrive_node.errors import InputError
from fastdrive_node.replay.bag import BagMessage, Recording
from fastdrive_node.replay.frame_sets import SetCounter
from fastdrive_node.ros.cdr import parse_stamp_ns


@dataclass(frozen=True)
class Step:
    """Tell the time, publish the message, then wait for the outcomes."""

    time_ns: int
    message: BagMessage | None = None
    outcomes: tuple[int, ...] = ()  # t0 of the sets that end here


def lockstep(recording: Recording, counter: SetCounter) -> Iterator[Step]:
    """The steps of one pass over a bag; ``counter`` counts its sets.

    Odometry up to t0 is sent before the image that completes a set, though the bag may have it later: the node would
    wait for it in wall time (odometry_wait_s).

    Raises:
        InputError: the bag is damaged.
    """
    odometry = _Odometry(recording)
    for message in recording.bag.messages(recording.topics.topics()):
        yield from _expire(counter, message.stamp_ns)
        ended = counter.add(message)
        if ended:
            yield from (Step(message.stamp_ns, sample) for sample in odometry.until(max(ended)))
        if message.topic != recording.topics.odometry or odometry.is_next():
            yield Step(message.stamp_ns, message, tuple(ended))
    yield from _expire(counter, recording.bag.end_ns + round(counter.limits.missing_timeout_s * 1e9))


def _expire(counter: SetCounter, now_ns: int) -> Iterator[Step]:
    """Let time pass up to ``now_ns``, with a stop where an incomplete set is given up."""
    while (expiry_ns := counter.next_expiry_ns()) is not None and expiry_ns <= now_ns:
        yield Step(expiry_ns, outcomes=tuple(counter.advance(expiry_ns)))


class _Odometry:
    """The odometry of a bag, sent in its order, some of it ahead of the other topics."""

    def __init__(self, recording: Recording):
        self._samples = recording.bag.messages([recording.topics.odometry])
        self._ahead = 0  # samples that were sent before their turn
        self._newest_ns = -1

    def until(self, t0_ns: int) -> Iterator[BagMessage]:
        """The samples that are not sent yet, up to the first one at or after ``t0_ns``."""
        while self._newest_ns < t0_ns and (sample := self._next()) is not None:
            self._ahead += 1
            yield sample

    def is_next(self) -> bool:
        """Whether the sample whose turn it is has not been sent ahead; it counts as sent then."""
        if self._ahead:
            self._ahead -= 1
            return False
        self._next()
        return True

    def _next(self) -> BagMessage | None:
        sample = next(self._samples, None)
        if sample is not None:
            with suppress(InputError):  # the node ignores a damaged one too, and says so
                self._newest_ns = max(self._newest_ns, parse_stamp_ns(sample.raw))
        return sample
