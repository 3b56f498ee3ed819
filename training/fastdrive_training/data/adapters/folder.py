"""Plain folders of images, with masks or without.

Layouts, below the root or below ``<root>/<split>``:

- ``images/<camera>/<name>.jpg`` and ``masks/<camera>/<name>.png``;
- ``images/<name>.jpg`` and ``masks/<name>.png``, which are one camera named ``camera``;
- ``<camera>/<name>.jpg`` or ``<name>.jpg`` alone, without masks.

Every name has an image of every camera. ``labels.json`` (``labels``, ``foreground_groups``, ``ignore``) gives the ids
in the masks; without it, what is not zero is foreground. ``splits.json`` {split: [names]} divides one folder.
``ego_motion.json`` {name: {scene, t_s, x, y, yaw, command}} gives the ego pose of each image, for planning figures; its
format is in docs/open_loop.md.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from fastdrive_node.errors import InputError
from fastdrive_node.types import Command
from fastdrive_node.validation import first_fault
from fastdrive_training.data.adapters.base import (
    Entry,
    FileSource,
    SourceOptions,
    chosen_cameras,
    images_in,
    read_splits,
    select_split,
)
from fastdrive_training.data.ego_track import EgoTrack
from fastdrive_training.data.masks import LabelTable, Regions, read_labels

LABELS, EGO_MOTION = "labels.json", "ego_motion.json"
LARGEST = 1e10  # of a number in EGO_MOTION: s, m or rad
SPLIT_NAMES = {"train", "training", "val", "validation", "test", "testing"}
ONE_CAMERA = "camera"
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]


class _Pose(BaseModel):
    """One entry of EGO_MOTION."""

    scene: str
    t_s: Number
    x: Number
    y: Number
    yaw: Number
    command: Command | None = None


def open_folder(options: SourceOptions) -> FileSource:
    """See :func:`fastdrive_training.data.adapters.open_source`.

    Raises InputError besides: an image of one camera without its like of another, an image without its mask, an entry
    of the ego motion that cannot be used.
    """
    root, split = options.root, options.split
    splits = None if split is None and options.all_splits else read_splits(root)
    base = root / split if split is not None and splits is None else root
    if not base.is_dir():
        raise InputError(f"{root}: no split {split!r}: make a folder {split} or a splits.json in it")
    by_camera = _find_images(base, options.cameras)
    chosen = tuple(by_camera)
    mask_root = base / "masks" if options.own_masks and (base / "masks").is_dir() else None
    motion = _ego_motion(base / EGO_MOTION)
    entries = [
        Entry(
            name,
            images={camera: by_camera[camera][name] for camera in chosen},
            masks=_masks_of(mask_root, name, chosen),
            **motion.get(name, {"scene": name}),
        )
        for name in _common_names(by_camera, base)
    ]
    if splits is not None:
        entries = select_split(root, split, entries)
    reader = _mask_reader(base) if mask_root else None
    return FileSource("folder", root, split, chosen, entries, reader, options.masks, tables=[base / EGO_MOTION])


def _find_images(base: Path, cameras: tuple[str, ...] | None) -> dict[str, dict[str, Path]]:
    """Image files by camera and name."""
    place = base / "images" if (base / "images").is_dir() else base
    folders = {path.name: path for path in sorted(place.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    found = {name: images for name, path in folders.items() if (images := images_in(path))}
    if direct := images_in(place):
        found = {ONE_CAMERA: direct}
    if not found:
        raise InputError(f"{place}: no images in it or in a folder of it; name the folder that holds them")
    if splits := SPLIT_NAMES & set(found):
        raise InputError(f"{place}: {min(splits)} is a split, not a camera; name the split")
    return {camera: found[camera] for camera in chosen_cameras(place, cameras, tuple(found))}


def _common_names(by_camera: dict[str, dict[str, Path]], base: Path) -> list[str]:
    every = sorted(set().union(*by_camera.values()))
    for camera, images in by_camera.items():
        absent = [name for name in every if name not in images]
        if absent:
            raise InputError(
                f"{base}: camera {camera} has no image {absent[0]!r} ({len(absent)} are absent); every camera needs an "
                "image of each name, or choose the cameras"
            )
    return every


def _masks_of(mask_root: Path | None, name: str, cameras: tuple[str, ...]) -> dict[str, Path]:
    if mask_root is None:
        return {}
    one = cameras == (ONE_CAMERA,)
    paths = {camera: mask_root / f"{name}.png" if one else mask_root / camera / f"{name}.png" for camera in cameras}
    for path in paths.values():
        if not path.exists():
            raise InputError(f"mask {path} is missing: every image needs one, or remove the masks folder")
    return paths


def _mask_reader(base: Path):
    if (base / LABELS).exists():
        return functools.partial(_read_labelled, LabelTable.load(base / LABELS))
    return _read_binary


def _read_labelled(table: LabelTable, path: Path, size: tuple[int, int]) -> Regions:
    return table.regions(read_labels(path, size))


def _read_binary(path: Path, size: tuple[int, int]) -> Regions:
    return Regions(np.not_equal(read_labels(path, size), 0))


def _ego_motion(path: Path) -> dict[str, dict[str, Any]]:
    """``scene``, ``stamp_ns``, ``track`` and ``command`` of each image's name; {} without the file."""
    if not path.exists():
        return {}
    try:
        content = TypeAdapter(dict[str, _Pose]).validate_json(path.read_bytes())
    except ValidationError as error:
        needs = "each image needs scene (a name), t_s [s], x, y [m] and yaw [rad]"
        raise InputError(f"{path}: {first_fault(error)}; {needs}") from None
    scenes: dict[str, list[tuple[int, Sequence[float]]]] = {}
    known: dict[str, dict[str, Any]] = {}
    for name, entry in content.items():
        stamp_ns = round(entry.t_s * 1e9)
        known[name] = {"scene": entry.scene, "stamp_ns": stamp_ns, "command": entry.command}
        scenes.setdefault(entry.scene, []).append((stamp_ns, (entry.x, entry.y, entry.yaw)))
    tracks = {}
    for scene, poses in scenes.items():
        stamps, values = zip(*sorted(poses), strict=True)
        if len(set(stamps)) < len(stamps):
            raise InputError(f"{path}: two poses of scene {scene!r} have the same t_s; times in a scene must differ")
        tracks[scene] = EgoTrack.planar(stamps, np.array(values))
    return {name: {**entry, "track": tracks[entry["scene"]]} for name, entry in known.items()}
