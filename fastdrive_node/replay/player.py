"""Plays a bag to a node, in real time or in lockstep, and collects the record of every frame set."""

from __future__ import annotations

import time

from fastdrive_node.errors import FastDriveError
from fastdrive_node.replay.bag import Recording
from fastdrive_node.replay.connection import CLOCK_STEP_S, SILENCE_S, NodeConnection
from fastdrive_node.replay.frame_sets import LoopResult, Received, SetCounter
from fastdrive_node.replay.lockstep import lockstep

LINGER_S = 2.0  # of silence after the newest set's record, until an older set without one counts as lost
MIN_JUMP_NS = 1_000_000_000  # a loop is a jump back of at least this, or the node could take it for jitter


class Player:
    """
    Args:
        rate: times real time; None for lockstep, see ``lockstep``.
    """

    def __init__(self, recording: Recording, node: NodeConnection, rate: float | None):
        self._recording = recording
        self._bag = recording.bag
        self._node = node
        self._lockstep, self._rate = rate is None, rate or 1.0
        self._first_arrival = 0  # of the pass
        self._start_s = time.monotonic()  # of the pass
        self._complete_s: dict[int, float] = {}  # when the last image of a set was sent, by t0

    def play(self, counter: SetCounter) -> LoopResult:
        """One pass over the bag; returns when every set has its record, or cannot get one any more.

        Raises:
            FastDriveError: the node has ended, or gives no record.
        """
        self._first_arrival = len(self._node.arrivals)
        self._complete_s.clear()
        self._node.set_time(self._bag.start_ns)
        self._start_s = time.monotonic()
        if self._lockstep:
            self._play_in_lockstep(counter)
        else:
            self._play_in_real_time(counter)
        arrivals = self._node.arrivals[self._first_arrival :]
        return LoopResult(
            counter,
            [Received(each.record, (each.at_s - self._due_s(each.record.t0_ns)) * 1e3) for each in arrivals],
        )

    def rewind(self) -> None:
        """Let time jump back to the bag's start, and wait until the node has seen it."""
        self._node.set_time(max(self._node.time_ns, self._bag.start_ns + MIN_JUMP_NS))
        self._node.set_time(self._bag.start_ns)

    def _play_in_lockstep(self, counter: SetCounter) -> None:
        for step in lockstep(self._recording, counter):
            self._node.tell_time(step.time_ns)
            if step.message is not None:
                self._node.publish(step.message)
                self._complete_s.update(dict.fromkeys(step.outcomes, time.monotonic()))
                self._node.round_trip()
            self._wait_for_outcomes(set(step.outcomes), step.time_ns)

    def _wait_for_outcomes(self, t0s_ns: set[int], time_ns: int) -> None:
        give_up_at = time.monotonic() + SILENCE_S
        while missing := t0s_ns - self._recorded():
            if time.monotonic() > give_up_at:
                raise FastDriveError(
                    f"the node has given no plan record of the frame set at {min(missing)} ns for {SILENCE_S:.0f} s; "
                    "see its log, or play in real time, without --lockstep"
                )
            self._node.wait()
            self._node.tell_time(time_ns)

    def _play_in_real_time(self, counter: SetCounter) -> None:
        for message in self._bag.messages(self._recording.topics.topics()):
            self._advance(message.stamp_ns)
            self._node.publish(message)
            counter.add(message)
        counter.finish(self._bag.end_ns)
        self._settle({*counter.complete, *(refusal.t0_ns for refusal in counter.incomplete)})

    def _advance(self, until_ns: int) -> None:
        """Tell the time until a message is due."""
        while (ahead_s := (until_ns - self._time_ns()) * 1e-9 / self._rate) > 0:
            self._node.wait(min(ahead_s, CLOCK_STEP_S))
            self._node.tell_time(min(self._time_ns(), until_ns))
        self._node.tell_time(until_ns)

    def _settle(self, t0s_ns: set[int]) -> None:
        """Wait for the records that are still to come.

        The node's records come in the order of t0: a set that is older than a recorded one was lost on the way. Of a
        set that is newer nobody can tell whether it was lost or is being planned.
        """
        ended_s = time.monotonic()
        while missing := t0s_ns - (recorded := self._recorded()):
            silent_s = time.monotonic() - max([ended_s, *(each.at_s for each in self._node.arrivals[-1:])])
            lost = bool(recorded) and max(missing) < max(recorded)
            if silent_s > (LINGER_S if lost else SILENCE_S):
                if not recorded:
                    raise FastDriveError(f"the node has given no plan record for {SILENCE_S:.0f} s; see its log")
                return
            self._node.wait()
            self._node.tell_time(max(self._time_ns(), self._bag.end_ns))

    def _recorded(self) -> set[int]:
        return {each.record.t0_ns for each in self._node.arrivals[self._first_arrival :]}

    def _time_ns(self) -> int:
        return self._bag.start_ns + round((time.monotonic() - self._start_s) * self._rate * 1e9)

    def _due_s(self, t0_ns: int) -> float:
        """When the oldest image of a set was due, in wall time; in lockstep, when the last one was sent."""
        if self._lockstep:
            return self._complete_s.get(t0_ns, self._start_s)
        return self._start_s + (t0_ns - self._bag.start_ns) * 1e-9 / self._rate
