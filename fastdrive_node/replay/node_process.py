"""The node as a process of its own, watched."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import yaml

from fastdrive_node.errors import FastDriveError
from fastdrive_node.ros.topics import TopicMap
from fastdrive_node.supervision.supervisor import how_ended

NODE_COMMAND = (sys.executable, "-m", "fastdrive_node.ros")
TAIL_LINES = 3
_FOLDERS, _LOCK = "fastdrive_node_", "lock"  # prefix of their names; a file in each that its process keeps locked
STOP_S = 15.0  # for the plan in progress, before the process is killed
_LOG_PREFIX = re.compile(r"^\[\w+\] \[[\d.]+\] (\[[\w./]+\]: )?")
_MODE, _FAULT = "mode ", "mode fault: "  # how the node tells a change of its mode


class NodeProcess:
    """A context manager: the node runs inside of the block.

    Args:
        topics: the node's inputs are remapped to these.
        parameters: values for the node.
        environment: variables beside those of this process.
        parameter_file: read before ``parameters``, which win.
        command: what runs the node.
    """

    def __init__(
        self,
        topics: TopicMap,
        parameters: Mapping[str, object],
        environment: Mapping[str, str],
        parameter_file: Path | None = None,
        command: Sequence[str] = NODE_COMMAND,
    ):
        self._topics = topics
        self._parameters = parameters
        self._environment = environment
        self._parameter_file = parameter_file
        self.on_exit: Callable[[], None] = lambda: None  # called from another thread when the process ends
        self._command = command
        self._tail: deque[str] = deque(maxlen=50)

    def __enter__(self) -> NodeProcess:
        remove_abandoned()
        self._folder = tempfile.TemporaryDirectory(prefix=_FOLDERS)
        self._lock = _locked(Path(self._folder.name))
        values = Path(self._folder.name, "parameters.yaml")
        values.write_text(yaml.safe_dump({"/**": {"ros__parameters": dict(self._parameters)}}))
        files = [*([self._parameter_file] if self._parameter_file else []), values]
        arguments = [argument for file in files for argument in ("--params-file", str(file))]
        arguments += [argument for name, topic in self._topics.remappings() for argument in ("-r", f"{name}:={topic}")]
        self._process = subprocess.Popen(
            [*self._command, "--ros-args", *arguments],
            env={**os.environ, **self._environment, **self._own_environment()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.on_exit = lambda: None
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._folder.cleanup()
        self._lock.close()

    def _own_environment(self) -> dict[str, str]:
        """The node ends with this process, also where that is killed."""
        return {"ROS_LOG_DIR": self._folder.name, "PYTHONUNBUFFERED": "1", "FASTDRIVE_LAUNCHER": str(os.getpid())}

    def check(self) -> None:
        """Raises FastDriveError where the process has ended, with what it said last."""
        if self._reader.is_alive():
            return
        code, words = self._process.wait(), last_words(list(self._tail))
        # What it said before a signal is not why it ended.
        raise FastDriveError(f"{how_ended(code, 'the node')}{': ' if code >= 0 else '; it said last: '}{words}")

    def _read(self) -> None:
        assert self._process.stderr is not None  # a pipe
        for line in self._process.stderr:
            if text := _LOG_PREFIX.sub("", line.strip()):
                self._tail.append(text)
        self._process.wait()
        self.on_exit()


def _locked(folder: Path) -> TextIO:
    """A folder's lock, which the kernel opens when this process ends, however it ends."""
    lock = open(folder / "new_lock", "w")  # noqa: SIM115  as long as the folder is used
    with suppress(OSError):  # a file system without locks: the folder stays where this process is killed
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Only now: another process takes a folder whose lock is open for abandoned.
        os.rename(lock.name, folder / _LOCK)
    return lock


def remove_abandoned() -> None:
    """Delete this user's folders of node processes whose launcher was killed.

    A lock tells it, not a process id: other containers may have the same folder for temporary files.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDERS}*"):
        try:
            if folder.lstat().st_uid == os.getuid():
                with open(folder / _LOCK) as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # in use, being made, or deleted by another process


def last_words(lines: Sequence[str]) -> str:
    """Why a node ended, from what it logged: the last fault of its mode and what came behind it, else its last lines.

    Other changes of the mode are left out.
    """
    faults = [place for place, line in enumerate(lines) if line.startswith(_FAULT)]
    since = lines[faults[-1] :] if faults else lines
    said = [line.removeprefix(_FAULT) for line in since if line.startswith(_FAULT) or not line.startswith(_MODE)]
    return " / ".join(said[-TAIL_LINES:]) or "nothing on stderr"
