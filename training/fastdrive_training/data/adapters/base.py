"""What training and annotation need of a data set: items of images by camera, with masks where there are some."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fastdrive_node.errors import InputError
from fastdrive_training.data.masks import MaskFolder, Regions
from fastdrive_training.data.nuscenes.keyframes import read_image

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True)
class Item:
    """The images of one instant, one for each camera of the source. Nothing is read before it is asked for."""

    name: str  # of one item only within its source, and fit to be a file's name
    scene: str  # the recording that it comes from
    load_image: Callable[[str], object]  # camera -> uint8 RGB [H, W, 3]; raises InputError
    load_regions: Callable[[str, tuple[int, int]], Regions]  # camera, (height, width) of its image; raises InputError


class ImageSource(Protocol):
    """The items of one split of a data set, in an order that depends on nothing but the data set."""

    kind: str  # "nuscenes", "folder", ...
    root: Path
    split: str | None  # None where the data set has no splits
    cameras: tuple[str, ...]  # every item has an image of each
    has_masks: bool
    names: list[str]  # of the items, in order
    identity: str  # changes when the items or their images do (not the masks); caches of tokens belong to it

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...


@dataclass(frozen=True)
class Entry:
    """One item whose images and masks are files."""

    name: str
    scene: str
    images: dict[str, Path]  # by camera
    masks: dict[str, Path]  # by camera; empty where there are none


class FileSource(Sequence[Item]):
    """An ImageSource over files.

    Args:
        entries: in order; their names are checked.
        read_mask: a mask file and its image's (height, width) to regions; None where the entries have no masks.
        masks: masks of ``fastdrive annotate`` that take the place of the entries' own.

    Raises:
        InputError: no entries, a name that cannot be a file's or is there twice, masks of another split.
    """

    def __init__(
        self,
        kind: str,
        root: Path,
        split: str | None,
        cameras: tuple[str, ...],
        entries: Iterable[Entry],
        read_mask: Callable[[Path, tuple[int, int]], Regions] | None = None,
        masks: str | Path | None = None,
    ):
        self.kind, self.root, self.split, self.cameras = kind, root, split, cameras
        self._entries, self._read_mask = list(entries), read_mask
        self.names = checked_names((entry.name for entry in self._entries), root)
        self._masks = open_masks(masks, split, cameras, self.names)
        self.has_masks = self._masks is not None or read_mask is not None

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Item:
        entry = self._entries[index]
        return Item(
            entry.name,
            entry.scene,
            lambda camera: read_image(entry.images[camera]),
            lambda camera, size: self._regions(entry, camera, size),
        )

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self)))

    @property
    def identity(self) -> str:
        return files_digest(path for entry in self._entries for path in entry.images.values())

    def _regions(self, entry: Entry, camera: str, size: tuple[int, int]) -> Regions:
        if self._masks is not None:
            return self._masks.load(camera, entry.name, size)
        if self._read_mask is None:
            raise no_masks(self.root)
        return self._read_mask(entry.masks[camera], size)


def open_masks(
    masks: str | Path | None, split: str | None, cameras: tuple[str, ...], names: list[str]
) -> MaskFolder | None:
    """The mask folder where one is named. Raises InputError where it does not serve these items."""
    if masks is None:
        return None
    folder = MaskFolder(masks, split)
    folder.require(cameras, names)
    return folder


def no_masks(root: Path) -> InputError:
    return InputError(f"{root}: no masks; annotate it and name the folder of masks")


def digest(words: Iterable[str]) -> str:
    """SHA-256 over words, hexadecimal."""
    result = hashlib.sha256()
    for word in words:
        result.update(word.encode() + b"\0")
    return result.hexdigest()


def files_digest(paths: Iterable[Path]) -> str:
    """A digest of where files are, their sizes and times; of those that are not there, the place alone."""

    def words(path: Path) -> str:
        stat = path.stat() if path.exists() else None
        return f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}" if stat else str(path)

    return digest(words(path) for path in paths)


def checked_names(names: Iterable[str], root: Path) -> list[str]:
    """Raises InputError for no names at all, one that is there twice, or one that is no plain file name."""
    names = list(names)
    if not names:
        raise InputError(f"{root}: no images; name the folder that holds the data set, and a split that has some")
    seen: set[str] = set()
    for name in names:
        if name in ("", ".", "..") or any(mark in name for mark in "/\\\0\n"):
            raise InputError(f"{root}: {name!r} cannot be the name of a mask file; rename the item")
        if name in seen:
            raise InputError(f"{root}: two items are named {name!r}; names must differ")
        seen.add(name)
    return names


def read_splits(root: Path) -> dict[str, list[str]] | None:
    """``splits.json`` {split: [item names]} in ``root``; None where there is none.

    Raises InputError where it is broken, or where two splits share an item.
    """
    path = root / "splits.json"
    if not path.exists():
        return None
    try:
        splits = json.loads(path.read_text())
        if not all(
            isinstance(names, list) and all(isinstance(name, str) for name in names) for names in splits.values()
        ):
            raise ValueError("a split is no list of names")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}: must be {{split: [names]}} ({error})") from None
    owner: dict[str, str] = {}
    for split, names in splits.items():
        for name in names:
            if owner.setdefault(name, split) != split:
                raise InputError(f"{path}: {name} is in {owner[name]} and in {split}; splits must not share items")
    return splits


def select_split(root: Path, split: str | None, entries: list[Entry]) -> list[Entry]:
    """The entries of a split of ``splits.json``. Raises InputError: no such split, a name that no item has."""
    splits = read_splits(root)
    known = "splits.json has " + ", ".join(sorted(splits)) if splits else "there is no splits.json"
    if split is None:
        raise InputError(f"{root}: name a split: {known}")
    if splits is None or split not in splits:
        raise InputError(f"{root}: no split {split!r}: {known}")
    by_name = {entry.name: entry for entry in entries}
    absent = [name for name in splits[split] if name not in by_name]
    if absent:
        raise InputError(f"{root / 'splits.json'}: split {split} names {absent[0]!r}, of which there is no image")
    return [by_name[name] for name in sorted(splits[split])]


def images_in(folder: Path) -> dict[str, Path]:
    """The image files of a folder by their stem. Raises InputError where two share one."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_ENDINGS and not path.name.startswith("."):
            if path.stem in found:
                raise InputError(f"{path}: {found[path.stem].name} has the same name; one mask cannot serve both")
            found[path.stem] = path
    return found
