"""Plain folders of images, with masks or without.

Layouts, below the root or below ``<root>/<split>``:

- ``images/<camera>/<name>.jpg`` and ``masks/<camera>/<name>.png``;
- ``images/<name>.jpg`` and ``masks/<name>.png``, which are one camera named ``camera``;
- ``<camera>/<name>.jpg`` or ``<name>.jpg`` alone, without masks.

Every name has an image of every camera. ``labels.json`` (``labels``, ``foreground_groups``, ``ignore``) gives the ids
in the masks; without it, what is not zero is foreground. ``splits.json`` {split: [names]} divides one folder.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from fastdrive_node.errors import InputError
from fastdrive_training.data.adapters.base import Entry, FileSource, images_in, read_splits, select_split
from fastdrive_training.data.masks import LabelTable, Regions, read_labels

LABELS = "labels.json"
SPLIT_WORDS = {"train", "training", "val", "validation", "test", "testing"}
ONE_CAMERA = "camera"


def open_folder(
    root: Path,
    split: str | None,
    masks: str | Path | None = None,
    cameras: tuple[str, ...] | None = None,
    own_masks: bool = True,
) -> FileSource:
    """See :func:`fastdrive_training.data.adapters.open_source`.

    Raises InputError besides: an image of one camera without its like of another, an image without its mask.
    """
    splits = read_splits(root)
    base = root / split if split is not None and splits is None else root
    if not base.is_dir():
        raise InputError(f"{root}: no split {split!r}: make a folder {split} or a splits.json in it")
    by_camera = _find_images(base, cameras)
    chosen = tuple(by_camera)
    mask_root = base / "masks" if own_masks and (base / "masks").is_dir() else None
    entries = [
        Entry(name, name, {camera: by_camera[camera][name] for camera in chosen}, _masks_of(mask_root, name, chosen))
        for name in _common_names(by_camera, base)
    ]
    if splits is not None:
        entries = select_split(root, split, entries)
    return FileSource("folder", root, split, chosen, entries, _mask_reader(base) if mask_root else None, masks)


def _find_images(base: Path, cameras: tuple[str, ...] | None) -> dict[str, dict[str, Path]]:
    """Image files by camera and name."""
    place = base / "images" if (base / "images").is_dir() else base
    folders = {path.name: path for path in sorted(place.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    found = {name: images for name, path in folders.items() if (images := images_in(path))}
    if direct := images_in(place):
        found = {ONE_CAMERA: direct}
    if not found:
        raise InputError(f"{place}: no images in it or in a folder of it; name the folder that holds them")
    if words := SPLIT_WORDS & set(found):
        raise InputError(f"{place}: {min(words)} is a split, not a camera; name the split")
    unknown = [camera for camera in cameras or () if camera not in found]
    if unknown:
        raise InputError(f"{place}: no camera {unknown[0]!r}; it has {', '.join(found)}")
    return {camera: found[camera] for camera in cameras} if cameras else found


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
