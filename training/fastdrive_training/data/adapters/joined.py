"""Several datasets as one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from fastdrive_node.errors import InputError
from fastdrive_training.data.adapters.base import ImageSource, Item, ReopenedSource, dataset_identity, digest


class JoinedSource(ReopenedSource, Sequence[Item]):
    """An ImageSource of the items of several, one source after the other; the folder of the first stands for all.

    Raises:
        InputError: an item's name or a scene's is in two of them, or they have other cameras.
    """

    kind = "joined"

    def __init__(self, sources: Sequence[ImageSource]):
        first = sources[0]
        self.root, self.split, self.cameras = first.root, first.split, first.cameras
        self._sources = tuple(sources)
        self._ends = list(accumulate(len(source) for source in sources))
        self.names = [name for source in sources for name in source.names]
        self.scenes = [scene for source in sources for scene in source.scenes]
        self.has_masks = all(source.has_masks for source in sources)
        self.missing_maps: Sequence[str] = [file for source in sources for file in source.missing_maps]
        self._check()
        self.parts = digest(source.parts for source in sources)
        self.identity = digest(dataset_identity(source) for source in sources)
        self.masks_identity = digest(source.masks_identity for source in sources)

    def _check(self) -> None:
        seen: dict[tuple[str, str], Path] = {}
        for source in self._sources:
            if source.cameras != self.cameras:
                raise InputError(f"{source.root}: its cameras are not those of {self.root}; datasets join by cameras")
            own = [*(("item", name) for name in source.names), *(("scene", name) for name in set(source.scenes))]
            if twice := sorted(seen.keys() & set(own)):
                what, name = twice[0]
                raise InputError(f"{source.root}: {what} {name!r} is in {seen[twice[0]]} too; name each dataset once")
            seen.update(dict.fromkeys(own, source.root))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = bisect_right(self._ends, index)
        return self._sources[place][index - (self._ends[place - 1] if place else 0)]
