"""The planner's process: loads the model, then plans one frame set after the other. It imports no rclpy."""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

from fastdrive_node import logs
from fastdrive_node.errors import FastDriveError, PlannerError
from fastdrive_node.supervision.channel import PackedError, PlanRequest, Region, unpack_frames
from fastdrive_node.sync.outcomes import Planner
from fastdrive_node.types import MAX_DROP, Plan, PruningRatio

_PR_SET_PDEATHSIG = 1
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ready:
    """The planner is loaded."""

    cameras: tuple[str, ...]
    history_steps: int
    history_interval_s: float
    drop: float
    default_drop: float
    check_drop: Callable[[float], object]  # raises InputError
    identity: dict[str, str]


@dataclass(frozen=True)
class Failed:
    """The planner cannot be loaded."""

    error: PackedError


@dataclass(frozen=True)
class Reply:
    """What became of a request."""

    number: int
    result: Plan | PackedError
    identity: dict[str, str]
    drop: float  # after the plan; larger than the request's where the GPU's memory was short
    notice: str = ""  # what an operator should know


def main(connection_fd: int, region_fd: int, parent: int) -> None:
    """Serve until the connection ends. ``parent``: the process id of the node, with which this process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both; the node decides
    die_with(parent)
    faulthandler.enable()
    logs.set_up()
    connection, region = Connection(connection_fd), Region(region_fd)
    try:
        factory, arguments = connection.recv()
        loaded = _load(factory, arguments, connection)
        if loaded is not None:
            _Server(loaded, connection, region).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the node has ended, or wants no planner any more
    os._exit(0)  # without the clean-up of torch and CUDA, which can take seconds


def die_with(parent: int) -> None:
    """Be killed as soon as the parent process ends, however it ends, even where this one is stuck in a driver."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os._exit(0)


def _load(factory: str, arguments: tuple[Any, ...], connection: Connection) -> Any:
    """The LoadedPlanner of ``module:function``, or None where it cannot be loaded, which is told."""
    module, name = factory.split(":")
    try:
        loaded = getattr(import_module(module), name)(*arguments)
        planner = loaded.planner
        ready = Ready(
            loaded.cameras,
            loaded.history_steps,
            loaded.history_interval_s,
            planner.drop,
            planner.default_drop,
            PruningRatio if loaded.drop_limits is None else loaded.drop_limits.keep,
            loaded.identity(),
        )
    except FastDriveError as error:
        connection.send(Failed(PackedError.of(error)))
        return None
    except Exception as error:
        log.exception("loading the planner failed")
        connection.send(Failed(_internal(error)))
        return None
    connection.send(ready)
    return loaded


class _Server:
    def __init__(self, loaded: Any, connection: Connection, region: Region):
        self._planner: Planner = loaded.planner
        self._identity: Callable[[], dict[str, str]] = loaded.identity
        self._connection = connection
        self._region = region
        self._lowered = False

    def run(self) -> None:
        while True:
            request = self._connection.recv()
            result, notice = self._answer(request)
            self._connection.send(Reply(request.number, result, self._identity(), self._planner.drop, notice))

    def _answer(self, request: PlanRequest) -> tuple[Plan | PackedError, str]:
        try:
            if request.drop is not None and request.drop != self._planner.drop:
                self._planner.drop = request.drop
            return self._plan(request)
        except FastDriveError as error:
            return PackedError.of(error), ""
        except Exception as error:  # one set that fails must not end the process
            log.exception("planning failed")
            return _internal(error), ""

    def _plan(self, request: PlanRequest) -> tuple[Plan | PackedError, str]:
        """Plan; where the GPU's memory is short, once with half of the tokens."""
        notice = ""
        while True:
            try:
                frames = unpack_frames(request, self._region)
                return self._planner.plan(frames, request.history, request.command), notice
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                short = _one_line(error)
            _free_gpu_memory()
            before = self._planner.drop
            if self._lowered or not self._lower_keep():
                error = PlannerError(f"the GPU's memory is too small: {short}", code="gpu_out_of_memory")
                return PackedError.of(error), notice
            notice = f"the GPU's memory is too small: drop is {self._planner.drop:g} instead of {before:g}"

    def _lower_keep(self) -> bool:
        """Half of the tokens, once; False where the planner has no pruner or keeps few already."""
        try:
            self._planner.drop = min(1 - (1 - self._planner.drop) / 2, MAX_DROP)
        except FastDriveError:
            return False
        self._lowered = True
        return True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or onnxruntime had no memory on the GPU. By name: this module does without both."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return "OutOfMemoryError" in names or "Failed to allocate memory for requested buffer" in str(error)


def _free_gpu_memory() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()  # does nothing where there is no GPU


def _internal(error: Exception) -> PackedError:
    return PackedError(FastDriveError, _one_line(error), {"stage": "internal"})


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
