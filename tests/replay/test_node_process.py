"""Folders of node processes: deleted when they end, and later where their launcher was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastdrive_node.replay.node_process import NodeProcess
from fastdrive_node.ros.topics import TopicMap

LAUNCHER = """
import sys, time
from fastdrive_node.replay.node_process import NodeProcess
from fastdrive_node.ros.topics import TopicMap
with NodeProcess(TopicMap({}, "/odom"), {}, {}, command=("sh", "-c", "")) as node:
    print(node._folder.name, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    """The folder for temporary files, of this process and of those that it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def launcher() -> Iterator[tuple[subprocess.Popen, Path]]:
    """A process with a node process, and the latter's folder."""
    with subprocess.Popen([sys.executable, "-c", LAUNCHER], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def start_and_stop() -> None:
    with NodeProcess(TopicMap({}, "/odom"), {}, {}, command=("sh", "-c", "")):
        pass


def test_the_folder_of_a_killed_launcher_is_deleted_at_the_next_start(launcher, temporary) -> None:
    process, folder = launcher
    assert folder.parent == temporary
    start_and_stop()
    assert list(temporary.iterdir()) == [folder]  # in use
    process.kill()
    process.wait()
    assert (folder / "parameters.yaml").is_file()
    start_and_stop()
    assert list(temporary.iterdir()) == []


def test_a_node_starts_where_files_cannot_be_locked(temporary, monkeypatch) -> None:
    def flock(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    start_and_stop()
    assert list(temporary.iterdir()) == []


def test_folders_that_are_being_made_or_are_of_others_stay(temporary, monkeypatch) -> None:
    being_made, of_another, elsewhere = (temporary / f"fastdrive_{name}" for name in ("node_a", "node_b", "else"))
    for folder in (being_made, of_another, elsewhere):
        folder.mkdir()
    for folder in (of_another, elsewhere):
        (folder / "lock").touch()
    link = temporary / "fastdrive_node_link"
    link.symlink_to(elsewhere)
    lstat, user = Path.lstat, os.getuid()

    def owned(path: Path) -> os.stat_result:
        found = lstat(path)
        return os.stat_result([*found[:4], user + 1, *found[5:]]) if path == of_another else found

    monkeypatch.setattr(Path, "lstat", owned)
    start_and_stop()
    assert set(temporary.iterdir()) == {being_made, of_another, elsewhere, link}
    assert (elsewhere / "lock").exists()
