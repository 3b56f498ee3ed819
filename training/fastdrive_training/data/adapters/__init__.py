"""Datasets of several layouts behind one Protocol; each adapter is imported when it is asked for.

So are the names of ``base``, which needs OpenCV and numpy: ``fastdrive annotate --help`` lists ``KINDS`` without them.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdrive_node.errors import InputError

if TYPE_CHECKING:
    from fastdrive_training.data.adapters.base import ImageSource, Item, dataset_identity

__all__ = ["KINDS", "ImageSource", "Item", "dataset_identity", "detect_kind", "open_source"]

# kind -> module:function; the function takes SourceOptions
KINDS = {
    "nuscenes": "fastdrive_training.data.adapters.nuscenes:open_nuscenes",
    "kitti": "fastdrive_training.data.adapters.kitti:open_kitti",
    "waymo": "fastdrive_training.data.adapters.waymo:open_waymo",
    "folder": "fastdrive_training.data.adapters.folder:open_folder",
}


def open_source(
    root: str | Path,
    split: str | None = None,
    kind: str = "auto",
    masks: str | Path | None = None,
    cameras: tuple[str, ...] | None = None,
    own_masks: bool = True,
    all_splits: bool = False,
) -> ImageSource:
    """The items of one split of a dataset on disk.

    Args:
        kind: one of KINDS, or ``auto`` for the layout that ``root`` has.
        masks: a folder of ``fastdrive annotate`` whose masks take the place of the dataset's own.
        cameras: of the dataset's names; None takes all.
        own_masks: False leaves the dataset's own masks alone, so that images without one are there too.
        all_splits: without a ``split``, all items of a dataset that has several; else the split must be named.

    Raises:
        InputError: no such folder, kind, split or camera; files that the layout must have are absent; masks of another
            split or of other images.
    """
    from fastdrive_training.data.adapters.base import ReopenedSource, SourceOptions

    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder that holds the dataset")
    if kind == "auto":
        kind = detect_kind(root)
    if kind not in KINDS:
        raise InputError(f"kind {kind!r}: must be one of {', '.join(KINDS)}, or auto")
    module, function = KINDS[kind].split(":")
    try:
        opener = getattr(importlib.import_module(module), function)
    except ImportError as error:
        hint = "pip install -e .[train,waymo]"
        raise InputError(f"data of kind {kind} need a package that cannot be imported ({error}): {hint}") from None
    source: ImageSource = opener(SourceOptions(root, split, masks, cameras, own_masks and masks is None, all_splits))
    if isinstance(source, ReopenedSource):
        source.opened_by = open_source, (root, split, kind, masks, cameras, own_masks, all_splits)
    return source


def detect_kind(root: Path) -> str:
    """The layout that a folder has; ``folder`` where it has none of the others'."""
    if any(root.glob("v1.0-*/sample.json")):
        return "nuscenes"
    if any((root / part / "image_2").is_dir() for part in ("training", "testing")):
        return "kitti"
    if any(root.glob("camera_image/*.parquet")) or any(root.glob("*/camera_image/*.parquet")):
        return "waymo"
    return "folder"


def __getattr__(name: str) -> Any:
    if name not in ("ImageSource", "Item", "dataset_identity"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.base"), name)
    globals()[name] = value
    return value
