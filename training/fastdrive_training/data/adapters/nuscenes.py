"""The nuScenes schema, simulated or real, as an ImageSource. An item is a keyframe, its name the sample token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fastdrive_node.errors import InputError
from fastdrive_node.types import CAMERAS
from fastdrive_training.data.adapters.base import Item, checked_names, digest, files_digest
from fastdrive_training.data.masks import Regions
from fastdrive_training.data.nuscenes.keyframes import Keyframe, KeyframeDataset, read_image


def open_nuscenes(
    root: Path,
    split: str | None,
    masks: str | Path | None = None,
    cameras: tuple[str, ...] | None = None,
    own_masks: bool = True,
) -> NuscenesSource:
    """See :func:`fastdrive_training.data.adapters.open_source`."""
    if split is None:
        split = only_split(KeyframeDataset(root))
    return NuscenesSource(KeyframeDataset(root, split, masks=masks), cameras)


def only_split(dataset: KeyframeDataset) -> str | None:
    """The one split that all scenes of the data set belong to; None where they belong to none.

    Raises InputError where they belong to several.
    """
    scenes = set(dataset.scenes)
    splits, source = dataset.splits()
    present = sorted(split for split, names in splits.items() if scenes & set(names))
    whole = [split for split in present if scenes <= set(splits[split])]
    if present and not whole:
        raise InputError(f"{dataset.root}: holds the splits {', '.join(present)} ({source}); name one of them")
    return whole[0] if whole else None


class NuscenesSource(Sequence[Item]):
    """An ImageSource over a KeyframeDataset. Raises InputError for a camera that nuScenes has not."""

    kind = "nuscenes"

    def __init__(self, dataset: KeyframeDataset, cameras: tuple[str, ...] | None = None):
        self.dataset, self.root, self.split = dataset, dataset.root, dataset.split
        self.cameras = cameras or CAMERAS
        unknown = [camera for camera in self.cameras if camera not in CAMERAS]
        if unknown:
            raise InputError(f"{self.root}: no camera {unknown[0]!r}; nuScenes has {', '.join(CAMERAS)}")
        self.names = checked_names(dataset.tokens, self.root)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Item:
        keyframe = self.dataset[index]
        return Item(
            keyframe.token,
            keyframe.scene,
            lambda camera: read_image(keyframe.images[CAMERAS.index(camera)]),
            lambda camera, size: self._regions(keyframe, camera, size),
        )

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self)))

    @property
    def has_masks(self) -> bool:
        return self.dataset.has_masks

    @property
    def identity(self) -> str:
        tables = files_digest([self.root / self.dataset.version / "sample_data.json"])
        return digest([tables, *self.cameras, *self.names])

    def _regions(self, keyframe: Keyframe, camera: str, size: tuple[int, int]) -> Regions:
        index = CAMERAS.index(camera)
        if keyframe.image_sizes[index] != tuple(size):
            height, width = keyframe.image_sizes[index]
            raise InputError(
                f"image {keyframe.images[index]} is {size[1]}x{size[0]}, sample_data.json says {width}x{height}: "
                "fetch or write the dataset again"
            )
        return self.dataset.load_regions(keyframe, index)
