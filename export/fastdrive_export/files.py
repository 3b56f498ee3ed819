"""Writing engines: one builder at a time, whole files or none, the manifest last."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fastdrive_node.engines.manifest import DATA_SUFFIX, FileInfo, Manifest, file_digest, manifest_path, manifest_text
from fastdrive_node.errors import InputError
from fastdrive_node.files import write_atomically

LOCK_FILE = ".fastdrive_export.lock"
STAGE = ".fastdrive_export.building"


@contextmanager
def builder_lock(folder: Path) -> Iterator[None]:
    """Held while engines in ``folder`` are written; the folder is made where it is missing.

    Raises:
        InputError: another process holds it, or the folder cannot be written.
    """
    lock = FileLock(folder / LOCK_FILE, timeout=0)  # the system releases it when the process ends
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"{folder}: another process builds or verifies an engine here; wait for it, or give another --out"
        ) from error
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); give another --out") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """An empty folder on the same file system, deleted afterwards. Needs ``builder_lock``."""
    stage = folder / STAGE
    shutil.rmtree(stage, ignore_errors=True)  # of a builder that died
    stage.mkdir()
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def publish(stage: Path, file: Path, manifest: Manifest) -> None:
    """Move an engine's files from ``stage`` to their place, then write the manifest.

    A reader finds the old engine, the new one, or files that do not fit their manifest, which it refuses.
    """
    old_data = file.name + DATA_SUFFIX
    if old_data not in manifest.files:
        file.with_name(old_data).unlink(missing_ok=True)
    for name in manifest.files:
        _sync(stage / name)
        os.replace(stage / name, file.with_name(name))
    write_manifest(file, manifest)


def write_manifest(file: Path, manifest: Manifest) -> None:
    """Write the manifest of an engine file; readers see the old one or the whole new one."""
    with write_atomically(manifest_path(file)) as partial:
        partial.write_text(manifest_text(manifest), encoding="utf-8")
        _sync(partial)


def file_info(path: Path) -> FileInfo:
    """Size and hash of a file, as a manifest has them."""
    return FileInfo(bytes=path.stat().st_size, sha256=file_digest(path))


def _sync(path: Path) -> None:
    """Write a file through to the disk, so that a power cut cannot leave its new name on old content."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
