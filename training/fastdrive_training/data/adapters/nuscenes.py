"""The nuScenes schema, simulated or real; see :mod:`fastdrive_training.data.nuscenes.keyframes`."""

from __future__ import annotations

from fastdrive_node.errors import InputError
from fastdrive_training.data.adapters.base import SourceOptions
from fastdrive_training.data.nuscenes.keyframes import KeyframeDataset


def open_nuscenes(options: SourceOptions) -> KeyframeDataset:
    """See :func:`fastdrive_training.data.adapters.open_source`."""
    split = options.split
    if split is None and not options.all_splits:
        split = only_split(KeyframeDataset(options.root))
    return KeyframeDataset(options.root, split, masks=options.masks, cameras=options.cameras)


def only_split(dataset: KeyframeDataset) -> str | None:
    """The one split that all scenes of the dataset belong to; None where they belong to none.

    Raises InputError where they belong to several.
    """
    scenes = set(dataset.scenes)
    splits, source = dataset.tables.splits()
    present = sorted(split for split, names in splits.items() if scenes & set(names))
    whole = [split for split in present if scenes <= set(splits[split])]
    if present and not whole:
        raise InputError(f"{dataset.root}: holds the splits {', '.join(present)} ({source}); name one of them")
    return whole[0] if whole else None
