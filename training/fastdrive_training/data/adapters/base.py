"""What training, annotation and evaluation need of a dataset: items of images by camera, and what is known with them.

Masks, ego motion, objects and drivable area are optional. An adapter gives what its dataset has; what it does not have
is None, and a figure that needs it is then null.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from pydantic import TypeAdapter, ValidationError

from fastdrive_node.errors import InputError
from fastdrive_node.types import Command, EgoHistory, EgoState
from fastdrive_node.validation import first_fault
from fastdrive_node.visualization.projection import CameraModel
from fastdrive_training.data.drivable import DrivableArea, EgoFrame
from fastdrive_training.data.ego_track import EgoTrack, command_of
from fastdrive_training.data.masks import MaskFolder, Regions, cell_coverage, size_of

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
FUTURE_POINTS, FUTURE_INTERVAL_S = 6, 0.5  # of the recorded future and of objects, as planning metrics compare them


def _nothing(*_: Any) -> None:
    """What a dataset says of something that it does not know."""


@dataclass(frozen=True)
class FutureObjects:
    """The objects around an item at each future step, 0.5 s ... 3 s after it."""

    boxes: tuple[np.ndarray, ...]  # of each step float64 [n, 5] (x, y, yaw, length, width; ego frame, m and rad)
    vehicles: tuple[np.ndarray, ...] | None  # of each step bool [n]: which are vehicles; None where it is not known

    @property
    def vehicle_boxes(self) -> tuple[np.ndarray, ...] | None:
        """The boxes of vehicles alone."""
        if self.vehicles is None:
            return None
        return tuple(boxes[chosen] for boxes, chosen in zip(self.boxes, self.vehicles, strict=True))


@dataclass(frozen=True)
class Item:
    """One instant: an image of each camera of the source, and what the dataset knows around it.

    Images, masks, objects and maps are read when they are asked for. The functions raise InputError where a file is
    missing, damaged or does not fit its image.
    """

    name: str  # unique within its source, and fit to be a file's name
    scene: str  # the recording that it comes from
    load_image: Callable[[str], np.ndarray]  # camera -> uint8 RGB [H, W, 3]
    load_regions: Callable[[str, tuple[int, int]], Regions]  # camera, (height, width) of its image
    load_labels: Callable[[str], np.ndarray] | None = None  # camera -> uint8 [H, W] label ids; None: no ids here
    image_sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # (height, width), where stated
    stamp_ns: int | None = None  # of the images
    history: EgoHistory | None = None  # newest state first
    command: Command = Command.NONE
    find_future: Callable[[int, float], np.ndarray | None] = _nothing  # see future()
    find_world_state: Callable[[], EgoState | None] = _nothing  # in a frame that the items of a scene share
    find_objects: Callable[[], FutureObjects | None] = _nothing
    find_drivable: Callable[[], tuple[EgoFrame, DrivableArea] | None] = _nothing
    find_camera: Callable[[str], CameraModel | None] = _nothing  # its calibration
    extras: Mapping[str, Any] = field(default_factory=dict)  # other entries of the dataset, by its own names

    def future(self, points: int = FUTURE_POINTS, interval_s: float = FUTURE_INTERVAL_S) -> np.ndarray | None:
        """Recorded positions interval_s, 2 interval_s ... after the item in its ego frame, float64 [points, 2] in m.

        None where the dataset has no ego motion, or the recording ends sooner.
        """
        return self.find_future(points, interval_s)

    def known_future(self, points: int = FUTURE_POINTS, interval_s: float = FUTURE_INTERVAL_S) -> np.ndarray:
        """:meth:`future` of an item that has one. Raises InputError."""
        if (future := self.future(points, interval_s)) is None:
            raise InputError(f"{self.name}: no recorded future of {points * interval_s:g} s")
        return future

    @property
    def known_history(self) -> EgoHistory:
        """:attr:`history` of an item that has one. Raises InputError."""
        if self.history is None:
            raise InputError(f"{self.name}: no ego motion")
        return self.history

    def image_size(self, camera: str) -> tuple[int, int]:
        """(height, width); the image is read where the dataset does not state it."""
        return self.image_sizes.get(camera) or size_of(self.load_image(camera))

    def coverage(self, cameras: Sequence[str], grid: tuple[int, int]) -> np.ndarray:
        """float32 [cameras, rows * cols]: fraction of foreground in the cell of each token; NaN where it is unknown."""
        regions = [self.load_regions(camera, self.image_size(camera)) for camera in cameras]
        return np.stack([cell_coverage(one.foreground, *grid, one.ignore) for one in regions])


@dataclass(frozen=True)
class SourceOptions:
    """What an adapter is asked for; see :func:`fastdrive_training.data.adapters.open_source`."""

    root: Path
    split: str | None = None
    masks: str | Path | None = None
    cameras: tuple[str, ...] | None = None
    own_masks: bool = True
    all_splits: bool = False


class ImageSource(Protocol):
    """The items of one split of a dataset, in an order that depends on nothing but the dataset."""

    kind: str  # "nuscenes", "folder", ...
    root: Path
    split: str | None  # None where the dataset has no splits, or for all of them
    cameras: tuple[str, ...]  # every item has an image of each
    has_masks: bool
    missing_maps: Sequence[str]  # files of map masks that the dataset names and does not have
    parts: str  # a digest of what may be added to the dataset and changes figures; equal for copies of it
    names: list[str]  # of the items, in order
    scenes: list[str]  # of each item; items of one recording follow each other in time
    identity: str  # see dataset_identity
    masks_identity: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...


def dataset_identity(source: ImageSource, masks: bool = False) -> str:
    """A digest that changes when items, their order, images or ego motion do; every cache key holds it.

    Files are compared by path, size and time of change, not read. ``masks``: the masks belong to it too.
    """
    parts = [source.kind, str(source.root.resolve()), source.split or "", *source.cameras, source.identity]
    return digest([*parts, source.masks_identity if masks else ""])


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 RGB [H, W, 3]. Raises InputError where it is missing or unreadable."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        state = "is no readable image" if path.exists() else "is missing"
        raise InputError(f"image {path} {state}: fetch or write the dataset again")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_object(path: Path, fix: str) -> dict[str, Any]:
    """A JSON object of a file. Raises InputError where it is missing, unreadable or something else."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); {fix}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object; {fix}")
    return content


def chosen_cameras(root: Path, wanted: Sequence[str] | None, present: Sequence[str]) -> tuple[str, ...]:
    """The wanted cameras, or all. Raises InputError for one that the dataset does not have."""
    unknown = [camera for camera in wanted or () if camera not in present]
    if unknown:
        raise InputError(f"{root}: no camera {unknown[0]!r}; it has {', '.join(present)}")
    return tuple(wanted or present)


@dataclass(frozen=True)
class Entry:
    """One item whose images and masks are files."""

    name: str
    scene: str
    images: dict[str, Path]  # by camera
    masks: dict[str, Path]  # by camera; empty where there are none
    stamp_ns: int | None = None
    track: EgoTrack | None = None  # of the scene; with a stamp
    command: Command | None = None  # None: it follows from the track


class ReopenedSource:
    """A source that is pickled as the call that opened it: its tables and caches stay in their process."""

    opened_by: tuple[Callable[..., Any], tuple[Any, ...]] | None = None  # function and arguments

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.opened_by or super().__reduce_ex__(protocol)


class FileSource(ReopenedSource, Sequence[Item]):
    """An ImageSource over files.

    Args:
        entries: in order; their names are checked.
        read_mask: a mask file and its image's (height, width) to regions; None where the entries have no masks.
        masks: masks of ``fastdrive annotate`` that take the place of the entries' own.
        tables: files beside the images that the items follow from.

    Raises:
        InputError: no entries, a name that cannot be a file's or is there twice, masks of another split.
    """

    missing_maps, parts = (), ""

    def __init__(
        self,
        kind: str,
        root: Path,
        split: str | None,
        cameras: tuple[str, ...],
        entries: Iterable[Entry],
        read_mask: Callable[[Path, tuple[int, int]], Regions] | None = None,
        masks: str | Path | None = None,
        tables: Sequence[Path] = (),
    ):
        self.kind, self.root, self.split, self.cameras = kind, root, split, cameras
        self._entries, self._read_mask, self._tables = list(entries), read_mask, tables
        self.names = checked_names((entry.name for entry in self._entries), root)
        self.scenes = [entry.scene for entry in self._entries]
        self._masks = open_masks(masks, split, cameras, self.names)
        self.has_masks = self._masks is not None or read_mask is not None

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Item:
        entry = self._entries[index]
        track, stamp_ns = entry.track, entry.stamp_ns
        return Item(
            name=entry.name,
            scene=entry.scene,
            load_image=lambda camera: read_image(entry.images[camera]),
            load_regions=lambda camera, size: self._regions(entry, camera, size),
            stamp_ns=stamp_ns,
            **({} if track is None or stamp_ns is None else ego_motion(track, stamp_ns, entry.command)),
        )

    @property
    def identity(self) -> str:
        return files_digest([*(path for entry in self._entries for path in entry.images.values()), *self._tables])

    @property
    def masks_identity(self) -> str:
        if self._masks is not None:
            return files_digest(self._masks.files)
        return files_digest(path for entry in self._entries for path in entry.masks.values())

    def _regions(self, entry: Entry, camera: str, size: tuple[int, int]) -> Regions:
        if self._masks is not None:
            return self._masks.load(camera, entry.name, size)
        if self._read_mask is None:
            raise no_masks(self.root)
        return self._read_mask(entry.masks[camera], size)


def ego_motion(track: EgoTrack, stamp_ns: int, command: Command | None = None) -> dict[str, Any]:
    """The fields of an Item that follow from the ego poses of its scene."""
    future = functools.partial(track.future, stamp_ns)
    return {
        "history": track.history(stamp_ns),
        "command": command or command_of(future(FUTURE_POINTS, FUTURE_INTERVAL_S)),
        "find_future": future,
        "find_world_state": lambda: track.history(stamp_ns).now,
    }


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


def digest(texts: Iterable[str]) -> str:
    """SHA-256 over texts, hexadecimal."""
    result = hashlib.sha256()
    for text in texts:
        result.update(text.encode() + b"\0")
    return result.hexdigest()


def files_digest(paths: Iterable[Path]) -> str:
    """A digest of paths, sizes and times of change; of a missing file, the path alone."""

    def describe(path: Path) -> str:
        stat = path.stat() if path.exists() else None
        return f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}" if stat else str(path)

    return digest(describe(path) for path in paths)


def checked_names(names: Iterable[str], root: Path) -> list[str]:
    """Raises InputError for no names at all, one that is there twice, or one that is no plain file name."""
    names = list(names)
    if not names:
        raise InputError(f"{root}: no images; name the folder that holds the dataset, and a split that has some")
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
        splits = TypeAdapter(dict[str, list[str]]).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        raise InputError(f"{path}: must be {{split: [names]}} ({first_fault(error)})") from None
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
