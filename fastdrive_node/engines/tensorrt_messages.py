"""What TensorRT reports while it builds and runs: log and progress of a build. It needs no torch."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastdrive_node.engines.tensorrt_api import optional

HEARTBEAT_S = 10.0
_log = logging.getLogger(__name__)


def make_logger(trt: Any) -> Any:
    """TensorRT's messages as log records. ``errors``: texts of the errors; ``last``: the last error or warning."""
    levels = {
        trt.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.Severity.ERROR: logging.ERROR,
        trt.ILogger.Severity.WARNING: logging.WARNING,
        trt.ILogger.Severity.INFO: logging.DEBUG,
    }

    class Logger(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.last = ""

        def log(self, severity, text):
            level = levels.get(severity)
            if level is None:
                return
            if level >= logging.WARNING:
                self.last = " ".join(str(text).split())
            if level == logging.ERROR:
                self.errors.append(self.last)
            _log.log(level, "%s", text)

    return Logger()


@contextmanager
def progress(trt: Any, config: Any) -> Iterator[None]:
    """Shows that a build goes on: a bar for each phase where the version reports phases, else a line every 10 s.

    Raises:
        KeyboardInterrupt: Ctrl-C ended the build. Without bars TensorRT reacts to Ctrl-C only at the end of the build.
    """
    if optional(trt, "IProgressMonitor") is None:
        with _heartbeat():
            yield
        return
    monitor = _make_monitor(trt)
    config.progress_monitor = monitor
    try:
        yield
    finally:
        monitor.close()
    if monitor.interrupted:
        raise KeyboardInterrupt


def _make_monitor(trt: Any) -> Any:
    from tqdm import tqdm  # imported here: older versions of TensorRT have no phases, and their Python may lack tqdm

    class Monitor(trt.IProgressMonitor):
        def __init__(self):
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False
            self._bars: dict[str, tqdm] = {}

        @contextmanager
        def _noting_ctrl_c(self):
            try:
                yield
            except KeyboardInterrupt:  # it must not pass through TensorRT's stack frames
                self.interrupted = True

        def phase_start(self, phase_name, parent_phase, num_steps):
            indent, leave = ("  " if parent_phase else ""), not parent_phase
            with self._noting_ctrl_c():
                bar = tqdm(total=num_steps, desc=indent + phase_name, leave=leave, file=sys.stderr, disable=None)
                self._bars[phase_name] = bar

        def step_complete(self, phase_name, step):
            with self._noting_ctrl_c():
                bar = self._bars.get(phase_name)
                if bar is not None:
                    bar.update(step + 1 - bar.n)
            return not self.interrupted

        def phase_finish(self, phase_name):
            with self._noting_ctrl_c():
                bar = self._bars.pop(phase_name, None)
                if bar is not None:
                    bar.close()

        def close(self):
            for name in list(self._bars):
                self.phase_finish(name)

    return Monitor()


@contextmanager
def _heartbeat() -> Iterator[None]:
    done, start = threading.Event(), time.monotonic()

    def beat() -> None:
        while not done.wait(HEARTBEAT_S):
            print(f"building the engine for {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
