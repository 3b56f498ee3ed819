"""``settings.json`` of a drive's folder: what all of its runs share, and since when each pruner's file is as it is."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdrive_node.errors import InputError
from fastdrive_node.files import write_atomically
from fastdrive_sim.drive.types import CONSTANT_VELOCITY, EXPERT, DriveRow

SETTINGS, PRUNERS = "settings.json", "pruners"
NEW_OUT = "give a new --out, or the settings of this one"


def pruner_key(row: DriveRow) -> str:
    """What rows of one pruner have in common; of a file its name, which their folders have."""
    return Path(row.pruner).stem


def pruner_files(vla: Path, rows: Sequence[DriveRow]) -> dict[str, Path]:
    """The file, there or not, that the choice of each pruner depends on, where it depends on one."""
    from fastdrive_node.planning.loading import own_file  # imports torch

    of_node = (row for row in rows if row.pruner not in (EXPERT, CONSTANT_VELOCITY))
    files = {pruner_key(row): own_file(vla, row.pruner) for row in of_node}
    return {key: file for key, file in files.items() if file is not None}


def claim(out: Path, identity: dict[str, Any], files: Mapping[str, Path]) -> dict[str, int]:
    """Make the folder, or see that it is of the same drive.

    Args:
        identity: what all runs share; JSON values.
        files: see ``pruner_files``.

    Returns:
        For each key of ``files`` the time, in ns since 1970, before which its runs are of another file; 0: none is.

    Raises:
        InputError: the folder is of another drive, or cannot be read or written.
    """
    path = out / SETTINGS
    found = _read(path)
    known: dict[str, dict[str, Any]] = found.pop(PRUNERS, {})
    if found and found != identity:
        raise InputError(
            f"{out}: holds runs with other settings ({SETTINGS}: {_differing(found, identity)}); {NEW_OUT}"
        )
    now = dict(known)
    for key, file in files.items():
        digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "none"
        if key not in known:
            now[key] = {"file": digest, "since_ns": 0}
        elif known[key]["file"] != digest:
            now[key] = {"file": digest, "since_ns": time.time_ns()}
    if not found or now != known:
        write_json(path, {**identity, PRUNERS: now})
    return {key: now[key]["since_ns"] for key in files}


def _differing(found: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The first setting that differs, with both values."""
    name = next(name for name in (*asked, *found) if found.get(name) != asked.get(name))
    then, now = found.get(name), asked.get(name)
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        return f"{name}.{_differing(then, now)}"
    return f"{name}: {_short(then, now)} there, {_short(now, then)} now"


def _short(value: Any, other: Any) -> str:
    """A value; of a long text the line that another one does not have."""
    if value is None:
        return "none"
    text = str(value)
    if "\n" in text:
        lines = str(other).splitlines()
        text = next((line.strip() for line in text.splitlines() if line not in lines), text)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _read(path: Path) -> dict[str, Any]:
    """Empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if any(not isinstance(each["since_ns"], int) or not each["file"] for each in found.get(PRUNERS, {}).values()):
            raise ValueError(f"{PRUNERS}: expected `file` and `since_ns` of each")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not readable as JSON of a drive ({error}); give a new --out") from error
    return found


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Raises InputError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as partial:
            partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error
