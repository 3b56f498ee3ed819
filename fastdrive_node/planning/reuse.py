"""A camera whose image is that of the set before is not encoded again: its tokens are taken from there.

A camera's tokens depend on its own image alone, so they are the right ones as long as the encoder reads the same
values. Forwards of fewer images may round otherwise, since matrix products of other shapes may sum in another order.
Which numbers of images give the same bits is found out on noise before the first plan; with others all are encoded.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastdrive_node.families import CameraGroup, SeparableVision, VisionBackend, VisualTokens

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Encoded:
    """The last set that was encoded."""

    groups: list[CameraGroup]
    visual: VisualTokens


class TokenReuse:
    """Encodes one set after the other; holds what the encoder read and gave of the last one.

    Args:
        vision: where it is no ``SeparableVision``, every camera is encoded.
        attention: see ``VisionBackend.encode``.
    """

    def __init__(self, vision: VisionBackend, attention: bool = False):
        self.reused: tuple[int, ...] = ()  # cameras of the last set whose tokens are of the one before
        self.encoded = 1.0  # the others' fraction of its tokens
        self._vision, self._attention = vision, attention
        self._separable = vision if isinstance(vision, SeparableVision) else None
        self._before: _Encoded | None = None
        self._exact: set[tuple[int, int]] = set()  # group and number of images: the bits are those of all together
        self._threads = 0  # of torch, with which that was found: it decides how sums are split

    def forget(self) -> None:
        """Encode every camera of the next set."""
        self._before = None

    def encode_all(self, inputs: Any) -> VisualTokens:
        """Every camera of what ``preprocess`` gave, without a look at the set before; nothing is kept."""
        return self._vision.encode(inputs, attention=self._attention)

    def encode(self, inputs: Any) -> VisualTokens:
        """The tokens of what ``preprocess`` gave, bit for bit as ``encode_all`` gives them.

        Raises:
            ModelError: as ``VisionBackend.encode``; the next set is then encoded whole.
        """
        before, self._before, self.reused, self.encoded = self._before, None, (), 1.0
        if self._separable is None:
            return self.encode_all(inputs)
        groups = self._separable.groups(inputs)
        cameras = sorted(camera for group in groups for camera in group.cameras)
        changed = [self._changed(number, group, before) for number, group in enumerate(groups)]
        encoded = {group.cameras[place] for group, places in zip(groups, changed, strict=True) for place in places}
        if before is None or len(encoded) == len(cameras):
            visual = self.encode_all(inputs)
        else:
            visual = self._encode_changed(groups, changed, before.visual)
            self.reused = tuple(camera for camera in cameras if camera not in encoded)
            sizes = [span.stop - span.start for span in visual.spans]
            self.encoded = sum(sizes[camera] for camera in encoded) / visual.total
        self._before = _Encoded(groups, visual)
        return visual

    def _changed(self, number: int, group: CameraGroup, before: _Encoded | None) -> list[int]:
        """The places of a group's images that must be encoded."""
        everything = list(range(len(group.cameras)))
        if before is None:
            return everything
        old = before.groups[number].inputs
        places = [place for place in everything if not torch.equal(group.inputs[place], old[place])]
        exact = self._threads == torch.get_num_threads() and (number, len(places)) in self._exact
        return places if exact or not places else everything

    def _encode_changed(
        self, groups: Sequence[CameraGroup], changed: Sequence[list[int]], before: VisualTokens
    ) -> VisualTokens:
        images = {camera: (before, camera) for group in groups for camera in group.cameras}
        for group, places in zip(groups, changed, strict=True):
            if places:
                visual = self._encode_some(group, places)
                images |= {group.cameras[place]: (visual, row) for row, place in enumerate(places)}
        return VisualTokens.of_images([images[camera] for camera in sorted(images)])

    def _encode_some(self, group: CameraGroup, places: Sequence[int]) -> VisualTokens:
        return group.backend.encode(group.inputs[list(places)], attention=self._attention)

    def verify(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Find out which numbers of images are encoded to the same bits as all together, on noise.

        For C cameras this encodes C (C + 3) / 2 images. Each image has another place in each forward, so places are
        compared too.

        Args:
            sizes: (height, width) in px of each camera's image.
        """
        self._exact, self._threads = set(), torch.get_num_threads()
        if self._separable is None:
            return
        noise = np.random.default_rng(0)
        images = [noise.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
        for number, group in enumerate(self._separable.groups(self._vision.preprocess(images))):
            count = len(group.cameras)
            if count < 2:
                continue
            whole = self._encode_some(group, range(count))
            if not _same(self._encode_some(group, [count - 1, *range(count - 1)]), whole, count - 1):
                _log.info("vision encoder: a camera's tokens depend on its place: all cameras are always encoded")
                continue
            for size in range(1, count):
                if _same(self._encode_some(group, range(count - size, count)), whole, count - size):
                    self._exact.add((number, size))
                else:
                    _log.info("vision encoder: %d of %d images round otherwise: all are encoded then", size, count)


def _same(some: VisualTokens, whole: VisualTokens, shift: int) -> bool:
    """Whether each image of ``some`` has the bits of the one that is ``shift`` places further in ``whole``."""
    count = whole.grid[0]
    pairs = [(_image(some, place), _image(whole, (place + shift) % count)) for place in range(some.grid[0])]
    return all(
        torch.equal(ours.rows, theirs.rows)
        and all(map(torch.equal, ours.layer_features, theirs.layer_features))
        and (ours.attention is None or theirs.attention is None or torch.equal(ours.attention, theirs.attention))
        for ours, theirs in pairs
    )


def _image(visual: VisualTokens, place: int) -> VisualTokens:
    return VisualTokens.of_images([(visual, place)])
