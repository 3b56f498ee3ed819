"""The visual tokens that a VLA reads at an item of a dataset, with those of past images where it reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastdrive_node.errors import FrameSetError, InputError
from fastdrive_node.families import VisualTokens, Vla
from fastdrive_node.planning.frames import FrameMemory
from fastdrive_training.data.adapters.base import ImageSource
from fastdrive_training.data.token_cache import FeatureStore


@dataclass(frozen=True)
class SeenImages:
    """What a VLA sees at one item."""

    visual: VisualTokens
    present: tuple[int, ...]  # which of ``Vla.images`` are there


class SeenStore:
    """Puts the images of items together as the vehicle does: earlier items of a scene are its past frame sets.

    Args:
        features: of the same dataset.
    """

    def __init__(self, source: ImageSource, vla: Vla, features: FeatureStore):
        self._source, self._vla, self._features = source, vla, features

    def load(self, indices: Sequence[int]) -> list[SeenImages | str]:
        """What is seen at some items by position, or why the VLA would refuse there: a past image is missing.

        Raises:
            InputError: an image is missing or unreadable, or an item has no stamp and the VLA reads past images.
        """
        sets = {index: self._sets(index) for index in indices}
        needed = list(dict.fromkeys(position for each in sets.values() for position in each))
        visual = {
            position: features.visual(self._vla.grids)
            for position, features in zip(needed, self._features.load(needed), strict=True)
        }
        return [self._gather(index, sets[index], visual) for index in indices]

    def _sets(self, index: int) -> list[int]:
        """The items whose images may be read at one, itself the last."""
        frames, scenes = self._vla.spec.frames, self._source.scenes
        if frames is None:
            return [index]
        first, oldest_ns = index, self._stamp_ns(index) - frames.span_ns
        while first and scenes[first - 1] == scenes[index] and self._stamp_ns(first - 1) >= oldest_ns:
            first -= 1
        return list(range(first, index + 1))

    def _stamp_ns(self, index: int) -> int:
        item = self._source[index]
        if item.stamp_ns is None:
            raise InputError(
                f"{self._source.root}: {item.name} has no stamp, and a VLA with frames reads images of earlier times"
            )
        return item.stamp_ns

    def _gather(self, index: int, sets: Sequence[int], visual: dict[int, VisualTokens]) -> SeenImages | str:
        memory = FrameMemory(self._vla)
        if self._vla.spec.frames is None:
            return SeenImages(*memory.gather(0, visual[index]))
        for position in sets:
            memory.add(self._stamp_ns(position), visual[position])
        try:
            return SeenImages(*memory.gather(self._stamp_ns(index), visual[index]))
        except FrameSetError as error:
            return str(error)
