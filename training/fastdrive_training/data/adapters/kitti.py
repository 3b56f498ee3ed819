"""KITTI's semantic and instance segmentation (2015; 200 training images of the left color camera).

``training/image_2/<name>.png`` with ``training/semantic/<name>.png`` (8 bits, Cityscapes label ids) or
``training/instance/<name>.png`` (16 bits, label id x 256 + instance); ``testing/image_2`` has no labels. KITTI names no
validation images, so other splits come from a ``splits.json`` {split: [names]} beside ``training``.
See https://www.cvlibs.net/datasets/kitti/eval_semseg.php and the label table of cityscapesScripts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastdrive_node.errors import InputError
from fastdrive_training.data.adapters.base import Entry, FileSource, SourceOptions, images_in, read_splits, select_split
from fastdrive_training.data.masks import LabelTable, Regions, checked_labels, decode_png, read_labels

CAMERA = "image_2"
PARTS = ("training", "testing")
_ROAD = {7: "road", 9: "parking"}
_BARRIER = {14: "guard rail"}
_SIGN = {19: "traffic light", 20: "traffic sign"}
_HUMAN = {24: "person", 25: "rider"}
_VEHICLE = {
    26: "car",
    27: "truck",
    28: "bus",
    29: "caravan",
    30: "trailer",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
    255: "license plate",  # -1 in 8 bits
}
_DOUBT = {0: "unlabeled", 1: "ego vehicle", 2: "rectification border", 3: "out of roi", 5: "dynamic"}
_GROUPS = _ROAD | _BARRIER | _SIGN | _HUMAN | _VEHICLE
TABLE = LabelTable(_GROUPS | _DOUBT, tuple(_GROUPS), tuple(_DOUBT))


def open_kitti(options: SourceOptions) -> FileSource:
    """See :func:`fastdrive_training.data.adapters.open_source`. Where its own labels are wanted, images without one
    are left out.
    """
    root, split, cameras = options.root, options.split, options.cameras
    if cameras not in (None, (CAMERA,)):
        raise InputError(f"{root}: the segmentation has the camera {CAMERA} only, not {', '.join(cameras)}")
    if split is None:
        raise InputError(f"{root}: name a split: {', '.join(PARTS)}, or one of a splits.json beside them")
    part = root / (split if split in PARTS else PARTS[0])
    if not (part / CAMERA).is_dir():
        raise InputError(f"{part / CAMERA} is missing: unpack KITTI's semantics archive there")
    read_mask, labels = _labels(part) if options.own_masks else (None, None)
    entries = [
        Entry(name, name.split("_")[0], {CAMERA: path}, {} if labels is None else {CAMERA: labels[name]})
        for name, path in images_in(part / CAMERA).items()
        if labels is None or name in labels
    ]
    if split not in PARTS:
        entries = select_split(root, split, entries)
    elif split == PARTS[0] and read_splits(root):
        raise InputError(f"{root}: splits.json divides training; name one of its splits")
    return FileSource("kitti", root, split, (CAMERA,), entries, read_mask, options.masks)


def _labels(part: Path):
    """How the labels of a part are read, and their files by name; nothing of both where it has none."""
    for folder, read in (("semantic", _read_semantic), ("instance", _read_instance)):
        if (part / folder).is_dir():
            return read, images_in(part / folder)
    return None, None


def _read_semantic(path: Path, size: tuple[int, int]) -> Regions:
    return TABLE.regions(read_labels(path, size))


def _read_instance(path: Path, size: tuple[int, int]) -> Regions:
    both = decode_png(path.read_bytes()) if path.exists() else None
    if both is None or both.dtype != np.uint16:
        raise InputError(f"mask {path} is no 16-bit image: unpack KITTI's semantics archive again")
    return TABLE.regions(checked_labels((both >> 8).astype(np.uint8), size, f"mask {path}"))
