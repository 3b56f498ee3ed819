"""A planner in a process of its own: a planner that hangs, crashes or runs out of memory costs one set, not the node.

Plans are asked for in the worker's thread, which waits no longer than the deadline. The supervising thread starts the
process, reads what it says, notices its end and starts it again. No ROS.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from fastdrive_node.errors import FastDriveError, InputError, PlannerError
from fastdrive_node.supervision.channel import PackedError, PlanRequest, Region, pack_frames
from fastdrive_node.supervision.child import Failed, Ready, Reply
from fastdrive_node.types import Command, EgoHistory, FrameSet, Plan, PlannerPhase, PlannerState

_BOOT = (
    "import sys; path, *fds = sys.argv[1:]; sys.path[:] = __import__('json').loads(path); "
    "from fastdrive_node.supervision.child import main; main(*map(int, fds))"
)
_BACK_OFF_S = (0.0, 0.5, 1.0, 2.0, 5.0)  # before the first, second ... restart within the window
_END_S = 1.0  # a process that closed its connection ends within this time, or is killed
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SupervisionLimits:
    """Times in seconds."""

    deadline_s: float = 2.0  # for one plan
    load_s: float = 600.0  # for loading the model
    restarts: int = 5  # more than these within ``window_s``: the planner is down
    window_s: float = 60.0
    threads: int = 0  # of the process; 0: OMP_NUM_THREADS where it is set, else one for each core but one


@dataclass
class _Child:
    process: subprocess.Popen[bytes]
    connection: Connection
    ready: Ready | None = None
    killed_for: str = ""  # why this process killed it


@dataclass
class _Shared:
    """Guarded by ``SupervisedPlanner._changed``."""

    phase: PlannerPhase = "starting"
    reason: str = ""
    restarts: int = 0
    child: _Child | None = None
    facts: Ready | None = None  # of the last process that was ready
    identity: dict[str, str] = field(default_factory=dict)
    drop: float | None = None  # None: the planner's default
    busy_since: float | None = None
    waiting: int | None = None  # number of the request in progress
    reply: Reply | None = None
    load_error: FastDriveError | None = None
    stopping: bool = False


class SupervisedPlanner:
    """A ``Planner`` whose plans are made by another process.

    Args:
        factory: ``module:function`` that makes a LoadedPlanner; called in the other process.
        arguments: of the function; they are pickled.
        limits: deadline and restarts.
        on_change: called in any thread after the state has changed; it must not block.
    """

    def __init__(
        self,
        factory: str,
        arguments: tuple[Any, ...],
        limits: SupervisionLimits | None = None,
        on_change: Callable[[], None] = lambda: None,
    ):
        self.limits = limits or SupervisionLimits()
        self.on_change = on_change
        self._factory, self._arguments = factory, arguments
        self._region = Region()
        self._changed = threading.Condition()
        self._shared = _Shared()
        self._ends: deque[float] = deque()
        self._number = 0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the process; the model is loaded there while this one goes on."""
        self._thread = threading.Thread(target=self._supervise, name="planner-supervisor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Kill the process, at once; a plan in progress ends as a refusal."""
        with self._changed:
            self._shared.stopping = True
            self.on_change = lambda: None  # the listener can end before the process does
            self._kill("the node stops")
            self._changed.notify_all()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(_END_S)  # a process that hangs in a driver ends when the driver lets it
            if not thread.is_alive():
                self._region.close()

    def state(self) -> PlannerState:
        with self._changed:
            shared = self._shared
            busy_s = None if shared.busy_since is None else time.monotonic() - shared.busy_since
            pid = None if shared.child is None else shared.child.process.pid
            return PlannerState(shared.phase, shared.reason, busy_s, shared.restarts, pid)

    @property
    def load_error(self) -> FastDriveError | None:
        """Why the model could not be loaded at all; None where it was, or is loading."""
        return self._shared.load_error

    def identity(self) -> dict[str, str]:
        """What the planner said of itself last; empty until it was ready once."""
        with self._changed:
            return dict(self._shared.identity)

    @property
    def default_drop(self) -> float:
        return self._facts().default_drop

    @property
    def drop(self) -> float:
        facts = self._facts()
        return facts.drop if self._shared.drop is None else self._shared.drop

    @drop.setter
    def drop(self, value: float) -> None:
        self.check_drop(value)
        with self._changed:
            self._shared.drop = value

    def check_drop(self, value: float) -> object:
        """Raises InputError for a pruning ratio that the model does not take, or while it is not known."""
        return self._facts().check_drop(value)

    def plan(self, frame_set: FrameSet, history: EgoHistory, command: Command) -> Plan:
        """Raises PlannerError where the process cannot plan or does not in time, else as the planner itself."""
        with self._changed:
            shared = self._shared
            if shared.phase != "ready" or shared.child is None:
                raise self._not_ready()
            child = shared.child
            self._number += 1
            number = shared.waiting = self._number
            shared.reply, shared.busy_since = None, time.monotonic()
            drop = shared.drop
        try:
            frames = pack_frames(frame_set.frames, self._region)
            request = PlanRequest(number, frames, frame_set.t0_ns, frame_set.missing, history, command, drop)
            return self._ask(child, request)
        finally:
            with self._changed:
                shared.waiting = shared.busy_since = None

    def _ask(self, child: _Child, request: PlanRequest) -> Plan:
        with suppress(OSError):  # it has ended; the supervising thread says how
            child.connection.send(request)
        deadline_s, shared = self.limits.deadline_s, self._shared
        with self._changed:
            self._changed.wait_for(lambda: shared.reply is not None or shared.child is not child, timeout=deadline_s)
            reply = shared.reply
            if reply is None and shared.child is child:
                self._kill(f"no plan after {deadline_s:g} s")
                self._set("restarting", child.killed_for)
                raise PlannerError(f"no plan after {deadline_s:g} s (planning_deadline_s)", code="planner_hang")
            if reply is None:
                raise PlannerError(shared.reason or "the planner's process ended", code="planner_exit")
        if isinstance(reply.result, PackedError):
            raise reply.result.error()
        return reply.result

    def _facts(self) -> Ready:
        if (facts := self._shared.facts) is None:
            raise InputError("drop: the planner is not loaded yet; try again when it is")
        return facts

    def _not_ready(self) -> PlannerError:
        shared = self._shared
        if shared.phase == "down":
            return PlannerError(f"the planner is down: {shared.reason}", code="planner_down")
        cause = f", after {shared.reason}" if shared.reason else ""
        return PlannerError(f"the planner is loading{cause}", code="planner_starting")

    def _kill(self, reason: str) -> None:
        child = self._shared.child
        if child is not None and not child.killed_for:
            child.killed_for = reason
            child.process.kill()  # not reaped yet, so that the process id is its own

    def _supervise(self) -> None:
        """In the supervising thread, which lives as long as the process: with it the kernel would kill that."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the process inherits it before it can ignore it
        while True:
            try:
                ended = self._run_once()
            except OSError as error:  # no process can be started
                ended = f"the planner's process cannot be started: {error}"
            with self._changed:
                if self._shared.stopping:
                    self._set("down", "the node stops")
                    return
                if self._shared.phase == "down":
                    return
                pause_s = self._back_off(ended)
                if pause_s is None:
                    return
                self._changed.wait_for(lambda: self._shared.stopping, timeout=pause_s)
                if self._shared.stopping:
                    return

    def _back_off(self, ended: str) -> float | None:
        """How long to wait before the next start; None where there have been too many."""
        now, limits, shared = time.monotonic(), self.limits, self._shared
        self._ends.append(now)
        while self._ends[0] < now - limits.window_s:
            self._ends.popleft()
        log.error("planner: %s", ended)
        if len(self._ends) > limits.restarts:
            reason = f"{ended}; {len(self._ends)} times within {limits.window_s:g} s"
            if shared.facts is None:
                shared.load_error = PlannerError(reason, code="planner_down")
            self._set("down", reason)
            return None
        shared.restarts += 1
        self._set("restarting" if shared.facts else "starting", ended)
        return _BACK_OFF_S[min(len(self._ends), len(_BACK_OFF_S)) - 1]

    def _run_once(self) -> str:
        """One life of the process. Returns how it ended."""
        child = self._spawn()
        with self._changed:
            self._shared.child = child
            if self._shared.stopping:
                self._kill("the node stops")
        with suppress(EOFError, OSError):  # it has ended
            child.connection.send((self._factory, self._arguments))
            if not child.connection.poll(self.limits.load_s):
                with self._changed:
                    self._kill(f"not loaded after {self.limits.load_s:g} s")
            while True:
                self._receive(child, child.connection.recv())
        return self._reap(child)

    def _spawn(self) -> _Child:
        ours, theirs = Pipe()
        fds = (theirs.fileno(), self._region.fd)
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", _BOOT, json.dumps(sys.path), *map(str, fds), str(os.getpid())],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                env=_environment(self.limits.threads),
            )
        finally:
            theirs.close()
        return _Child(process, ours)

    def _receive(self, child: _Child, message: Ready | Failed | Reply) -> None:
        with self._changed:
            shared = self._shared
            if isinstance(message, Ready):
                child.ready = shared.facts = message
                shared.identity = message.identity
                self._set("ready", shared.reason)
            elif isinstance(message, Failed):
                child.killed_for = message.error.text
                if shared.facts is None:
                    shared.load_error = message.error.error()
                    self._set("down", message.error.text)
            elif message.number == shared.waiting:
                shared.reply, shared.identity = message, message.identity
                if message.notice:
                    log.warning("planner: %s", message.notice)
                    shared.drop = message.drop
                    self._set("ready", message.notice)
                self._changed.notify_all()

    def _reap(self, child: _Child) -> str:
        child.connection.close()
        try:
            code = child.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            child.process.kill()
            code = child.process.wait()
        ended = f"{child.killed_for}: killed" if code == -signal.SIGKILL and child.killed_for else how_ended(code)
        if code != -signal.SIGKILL and child.killed_for:
            ended = child.killed_for
        with self._changed:
            if self._shared.child is child:
                self._shared.child = None
            if self._shared.phase != "down":
                self._set("restarting" if self._shared.facts else "starting", ended)
            self._changed.notify_all()
        return ended

    def _set(self, phase: PlannerPhase, reason: str) -> None:
        shared = self._shared
        changed = (shared.phase, shared.reason) != (phase, reason)
        shared.phase, shared.reason = phase, reason
        self._changed.notify_all()
        if changed:
            self.on_change()


def _environment(threads: int) -> Mapping[str, str]:
    """A core is left to the node: threads that wait for one another spin, and with too few cores they take many times
    as long (docs/decisions/0009-the-planners-process.md)."""
    others = max(1, len(os.sched_getaffinity(0)) - 1)
    return {"OMP_NUM_THREADS": str(others), **os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}


def how_ended(code: int, process: str = "the planner's process") -> str:
    """How a process ended, by the code that ``subprocess`` gives; with the name of a signal."""
    if code >= 0:
        return f"{process} ended with exit code {code}"
    hint = "; the kernel does so where memory is short" if code == -signal.SIGKILL else ""
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"{process} was ended by {name}{hint}"
