"""What can be told before a node is started: pruners that cannot drive, and engines that a parameter file names.

A node tells it too, but only when its row begins, when other rows may have been driven for hours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastdrive_node.errors import FastDriveError, UsageError
from fastdrive_node.pruning.catalog import NAMES
from fastdrive_node.ros.parameter_files import check_parameter_file
from fastdrive_node.ros.parameters import Settings, make_settings
from fastdrive_sim.drive.types import CONSTANT_VELOCITY, EXPERT, DriveRow

if TYPE_CHECKING:
    from fastdrive_node.engines.manifest import Manifest

ENGINES = {"engine": "vision", "language_engine": "language"}  # parameters, and the part that their file holds
_NEEDS_MASKS = "oracle"  # the pruner; a dataset has masks, a node does not


def known_pruners(names: Sequence[str]) -> list[str]:
    """Names as they are, files as absolute paths. Raises UsageError for what is neither, and what cannot drive."""
    can_drive = [name for name in NAMES if name != _NEEDS_MASKS]
    for name in names:
        if name in can_drive or (name != _NEEDS_MASKS and Path(name).is_file()):
            continue
        cause = "needs the masks of a dataset, which a drive does not have" if name == _NEEDS_MASKS else "unknown"
        raise UsageError(f"--pruners {name}: {cause}; give a pruner's file, or one of {', '.join(can_drive)}")
    return [name if name in NAMES else str(Path(name).resolve()) for name in names]


def node_settings(parameters: Path | None) -> Settings:
    """Of the node, by its parameter file. Raises InputError where that cannot be used."""
    return make_settings({} if parameters is None else check_parameter_file(parameters, "fastdrive"))


def read_engines(settings: Settings) -> dict[str, Manifest]:
    """The manifests of the engines that the node would open, by parameter; the engines are not read.

    Raises:
        InputError: an engine without its backend, or a backend without its engine.
        ModelError: an engine is missing, has no whole manifest, or holds another part of a VLA.
    """
    if not settings.engine and not settings.language_engine and settings.vision_backend == "torch":
        return {}
    from fastdrive_node.engines.manifest import read_manifest
    from fastdrive_node.engines.vision_engine import check_part, choose_engine  # imports torch

    choose_engine(settings.vision_backend, settings.engine)
    found = {}
    for parameter, part in ENGINES.items():
        if file := getattr(settings, parameter):
            found[parameter] = read_manifest(file)
            check_part(Path(file), found[parameter], part)
    return found


def engine_digests(engines: Mapping[str, Manifest]) -> dict[str, str]:
    """What tells two builds of an engine apart: the sums of its files, by its manifest, which a node compares."""
    return {
        parameter: hashlib.sha256("".join(sorted(file.sha256 for file in manifest.files.values())).encode()).hexdigest()
        for parameter, manifest in engines.items()
    }


def check_pruners(
    vla_dir: Path, rows: Iterable[DriveRow], settings: Settings, engines: Mapping[str, Manifest] | None = None
) -> None:
    """See that the node can open the pruner of each row; no weights of a model are loaded.

    Args:
        engines: see ``read_engines``.

    Raises:
        ModelError: a file is no pruner of this VLA, or is missing, or the vision engine holds another one.
    """
    names = dict.fromkeys(row.pruner for row in rows if row.pruner not in (EXPERT, CONSTANT_VELOCITY))
    if not names:
        return
    from fastdrive_node.planning.loading import check_pruner, name_and_file, own_file  # imports torch

    engine, scores = (engines or {}).get("engine"), settings.score_options()
    if engine is None and not scores.active and all(own_file(vla_dir, name) is None for name in names):
        return
    from fastdrive_node.engines.vision_engine import check_identity, require_engines
    from fastdrive_node.families import read_vla

    vla = read_vla(vla_dir)
    for name in names:
        try:
            check_pruner(vla, name, scores)
            if engine is not None:
                require_engines(vla)
                check_identity(Path(settings.engine), engine, vla, name_and_file(vla_dir, name)[1])
        except FastDriveError as error:
            raise type(error)(f"--pruners {Path(name).name}: {error}") from error
