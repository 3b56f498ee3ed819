"""Waymo Open Dataset v2 (perception, Parquet): camera images with panoptic labels.

``<root>/<split>/camera_image/*.parquet`` and ``camera_segmentation/*.parquet``; the columns as in
``waymo_open_dataset/v2/perception`` (camera_image.py, segmentation.py), the classes as in camera_segmentation.proto.
The items are the frames that are labelled in every camera; without a ``camera_segmentation`` folder, or with masks from
elsewhere, all frames.

A row of these files can only be read with its whole row group. That suits reading in order (annotation, token caches)
and not a shuffled training: for that, ``python -m fastdrive_training.data.adapters.waymo ROOT SPLIT OUT`` writes the
labelled frames out once in the layout of ``folder.py``. Needs pyarrow (the extra ``waymo``).
"""

from __future__ import annotations

import argparse
import functools
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as parquet
from pyarrow import ArrowException
from tqdm import tqdm

from fastdrive_node.errors import FastDriveError, InputError
from fastdrive_node.files import write_atomically
from fastdrive_training.data.adapters.base import (
    Item,
    ReopenedSource,
    SourceOptions,
    checked_names,
    chosen_cameras,
    digest,
    files_digest,
    no_masks,
    open_masks,
)
from fastdrive_training.data.masks import LabelTable, Regions, checked_labels, decode_png

CAMERA_NAMES = {1: "FRONT", 2: "FRONT_LEFT", 3: "FRONT_RIGHT", 4: "SIDE_LEFT", 5: "SIDE_RIGHT"}
SPLITS = {"train": "training", "val": "validation", "test": "testing"}  # other words for the folders
IMAGE = "[CameraImageComponent].image"
PANOPTIC = "[CameraSegmentationLabelComponent].panoptic_label"
DIVISOR = "[CameraSegmentationLabelComponent].panoptic_label_divisor"
_SEGMENT, _STAMP, _CAMERA = "key.segment_context_name", "key.frame_timestamp_micros", "key.camera_name"

GROUPS = {
    "human": {9: "pedestrian", 10: "cyclist", 11: "motorcyclist", 16: "pedestrian object"},
    "road": {20: "road", 21: "lane marker", 22: "road marker"},
    "vehicle": {2: "car", 3: "truck", 4: "bus", 5: "other large vehicle", 6: "bicycle", 7: "motorcycle", 8: "trailer"},
    "traffic_sign": {17: "sign", 18: "traffic light"},
    "traffic_barrier": {14: "construction cone or pole"},
}
LAST_CLASS = 28
_DOUBT = {0: "undefined", 1: "ego vehicle", 27: "dynamic"}
_NAMES = {number: name for group in GROUPS.values() for number, name in group.items()}
TABLE = LabelTable(_NAMES | _DOUBT, tuple(sorted(_NAMES)), tuple(_DOUBT))


@dataclass(frozen=True)
class Row:
    """Where one row of a Parquet folder lies."""

    path: Path
    written_ns: int  # when the file was
    group: int  # row group
    place: int  # in the row group


def open_waymo(options: SourceOptions) -> WaymoSource:
    """See :func:`fastdrive_training.data.adapters.open_source`."""
    root, split = options.root, options.split
    folder = root if split is None else root / SPLITS.get(split, split)
    if not (folder / "camera_image").is_dir():
        present = ", ".join(sorted(path.parent.name for path in root.glob("*/camera_image"))) or "none"
        raise InputError(f"{folder / 'camera_image'} is missing; name a split (there are: {present})")
    return WaymoSource(replace(options, root=folder))


class WaymoSource(ReopenedSource, Sequence[Item]):
    """An ImageSource over the Parquet files of one split.

    Raises InputError: no such camera, a file that is no Parquet or lacks a column, no frame that has every camera.
    """

    kind = "waymo"
    missing_maps, parts = (), ""

    def __init__(self, options: SourceOptions):
        root = options.root
        self.root, self.split = root, options.split
        self.cameras = chosen_cameras(root, options.cameras, tuple(CAMERA_NAMES.values()))
        own = options.own_masks and (root / "camera_segmentation").is_dir()
        self._images = _index(root / "camera_image", IMAGE)
        self._labels = _index(root / "camera_segmentation", PANOPTIC) if own else None
        frames = sorted({frame for frame, _ in self._images})
        self._frames = [frame for frame in frames if self._is_whole(frame)]
        self.names = checked_names((f"{segment}_{stamp}" for segment, stamp in self._frames), root)
        self.scenes = [segment for segment, _ in self._frames]
        self._masks = open_masks(options.masks, self.split, self.cameras, self.names)
        self.has_masks = own or self._masks is not None

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Item:
        frame, name = self._frames[index], self.names[index]
        return Item(
            name=name,
            scene=frame[0],
            load_image=lambda camera: self._image(frame, camera),
            load_regions=lambda camera, size: self._regions(frame, name, camera, size),
            stamp_ns=int(frame[1]) * 1000,
        )

    @property
    def identity(self) -> str:
        files = files_digest(sorted(self.root.glob("camera_image/*.parquet")))
        return digest([files, *self.names])

    @property
    def masks_identity(self) -> str:
        if self._masks is not None:
            return files_digest(self._masks.files)
        return files_digest(sorted(self.root.glob("camera_segmentation/*.parquet")))

    def image_bytes(self, index: int, camera: str) -> bytes:
        """The JPEG file of one image as it is stored."""
        return _read_cell(self._images[self._frames[index], camera], IMAGE)

    def semantic_labels(self, index: int, camera: str) -> np.ndarray:
        """uint8 [H, W] class ids of one image. Raises InputError where the source has no labels or they are broken."""
        return self._semantic(self._frames[index], camera)

    def _is_whole(self, frame: tuple[str, int]) -> bool:
        tables = [self._images] if self._labels is None else [self._images, self._labels]
        return all((frame, camera) in table for table in tables for camera in self.cameras)

    def _image(self, frame: tuple[str, int], camera: str) -> np.ndarray:
        row = self._images[frame, camera]
        image = cv2.imdecode(np.frombuffer(_read_cell(row, IMAGE), np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise InputError(f"{row.path}: {camera} of frame {frame[1]} is no readable JPEG; fetch the file again")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def _regions(self, frame: tuple[str, int], name: str, camera: str, size: tuple[int, int]) -> Regions:
        if self._masks is not None:
            return self._masks.load(camera, name, size)
        labels = self._semantic(frame, camera)
        return TABLE.regions(checked_labels(labels, size, f"{self.root}: label of {camera} in frame {frame[1]}"))

    def _semantic(self, frame: tuple[str, int], camera: str) -> np.ndarray:
        if self._labels is None:
            raise no_masks(self.root)
        row = self._labels[frame, camera]
        panoptic, divisor = decode_png(_read_cell(row, PANOPTIC)), _read_cell(row, DIVISOR)
        if panoptic is None or panoptic.ndim != 2 or panoptic.dtype.kind != "u" or not divisor or divisor < 0:
            raise InputError(f"{row.path}: broken label of {camera} in frame {frame[1]}; fetch the file again")
        classes = panoptic // divisor
        if classes.max() > LAST_CLASS:
            raise InputError(f"{row.path}: class {classes.max()} of {camera} in frame {frame[1]} is not Waymo's")
        return classes.astype(np.uint8)


def _index(folder: Path, column: str) -> dict[tuple[tuple[str, int], str], Row]:
    """Where each ((segment, microseconds), camera) lies, by the key columns of all files."""
    found: dict[tuple[tuple[str, int], str], Row] = {}
    for path in sorted(folder.glob("*.parquet")):
        try:
            table, written_ns = parquet.ParquetFile(path), path.stat().st_mtime_ns
            lacking = [name for name in (_SEGMENT, _STAMP, _CAMERA, column) if name not in table.schema_arrow.names]
            if lacking:
                raise InputError(f"{path}: no column {lacking[0]!r}; Waymo Open Dataset v2 is needed")
            for group in range(table.num_row_groups):
                keys = table.read_row_group(group, columns=[_SEGMENT, _STAMP, _CAMERA]).to_pydict()
                rows = zip(keys[_SEGMENT], keys[_STAMP], keys[_CAMERA], strict=True)
                for place, (segment, stamp, camera) in enumerate(rows):
                    if camera in CAMERA_NAMES:
                        found[(segment, stamp), CAMERA_NAMES[camera]] = Row(path, written_ns, group, place)
        except (ArrowException, OSError) as error:
            raise InputError(f"{path}: no readable Parquet file ({error}); fetch it again") from None
    return found


_reading = threading.Lock()  # so that two threads do not read one row group twice


def _read_cell(row: Row, column: str):
    with _reading:
        return _row_group(row.path, row.written_ns, row.group, column)[row.place].as_py()


@functools.lru_cache(maxsize=6)  # images, labels and divisors, of two files
def _row_group(path: Path, written_ns: int, group: int, column: str):
    """One column of a row group; ``written_ns`` is there for the cache."""
    try:
        return parquet.ParquetFile(path).read_row_group(group, columns=[column]).column(0)
    except (ArrowException, OSError) as error:
        raise InputError(f"{path}: row group {group} cannot be read ({error}); fetch the file again") from None


def extract(root: Path, split: str, out: Path) -> int:
    """Write the labelled frames of a split to ``out`` in the layout of ``folder.py``; returns their number.

    The JPEG bytes stay as they are. A run that was cut off goes on: ``labels.json`` is written first, each mask before
    its image, each by one rename. Raises InputError as :func:`open_waymo`, and where the split has no labels.
    """
    source = open_waymo(SourceOptions(root, split))
    if not source.has_masks:
        raise InputError(f"{source.root / 'camera_segmentation'} is missing: nothing to extract")
    groups = {name: sorted(labels) for name, labels in GROUPS.items()}
    table = {"labels": {name: number for number, name in TABLE.names.items()}, "foreground_groups": groups}
    folder = out / split
    _write(folder / "labels.json", json.dumps(table | {"ignore": list(TABLE.ignore)}, indent=1).encode())
    for index, name in enumerate(tqdm(source.names, desc="extracting", unit="frame")):
        for camera in source.cameras:
            image = folder / "images" / camera / f"{name}.jpg"
            if not image.exists():
                png = cv2.imencode(".png", source.semantic_labels(index, camera))[1]
                _write(folder / "masks" / camera / f"{name}.png", png.tobytes())
                _write(image, source.image_bytes(index, camera))
    return len(source)


def _write(path: Path, content: bytes) -> None:
    with write_atomically(path) as partial:
        partial.write_bytes(content)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the labelled frames of a Waymo split out as plain files.")
    parser.add_argument("root", type=Path, help="folder that holds training, validation, testing")
    parser.add_argument("split", help="training, validation or testing")
    parser.add_argument("out", type=Path, help="the split is written to a folder of its name in it")
    args = parser.parse_args()
    try:
        print(f"{extract(args.root, args.split, args.out)} frames")
    except FastDriveError as error:
        raise SystemExit(f"waymo: {error}") from None


if __name__ == "__main__":
    main()
