"""JPEGs that are decoded as they arrive: while other cameras' images are on their way, and while the planner is busy.

The bytes are the same as when the planner decodes them, so the plans are too. No ROS, no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastdrive_node.errors import ImageError
from fastdrive_node.planning.images import LoadedImage
from fastdrive_node.types import CameraFrame


class EarlyDecoder:
    """Begins to decode frames on threads of its own.

    Args:
        least: height and width in px that each camera's images must keep; cameras that are not in it are left alone.
        threads: at most; None for one each CPU of this process.
    """

    def __init__(self, least: Mapping[str, tuple[int, int]], threads: int | None = None):
        self.least = least
        threads = threads or min(len(least), len(os.sched_getaffinity(0)))
        self._pool = ThreadPoolExecutor(max(1, threads), "early-decode")
        self.begun = self.left = 0  # images whose decoding began here, or was left to the planner

    def begin(self, frame: CameraFrame, busy: bool = False) -> CameraFrame:
        """The frame, with a ``load`` that is being decoded.

        Args:
            busy: a whole set waits for the planner already, so what arrives now may never be read: it is left alone.
        """
        least = self.least.get(frame.camera)
        if least is None:
            return frame
        if busy:
            self.left += 1
            return frame
        self.begun += 1
        load: Any = frame.load
        return replace(frame, load=EarlyImage(load, least, self._pool.submit(load.scaled, least)))

    def close(self) -> None:
        """Ends the threads. Images that wait for one are decoded by the planner."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class EarlyImage:
    """A frame's ``load`` whose decoding has begun, see ``images.ScaledLoad`` and ``supervision.channel.Shareable``.

    What no thread has begun when the planner asks is decoded by the planner.

    Args:
        load: of the frame.
        least: (height, width) px that it is decoded for.
        decoding: of ``load.scaled(least)``.
    """

    def __init__(self, load: Any, least: tuple[int, int], decoding: Future[LoadedImage]):
        self._load, self._least, self._decoding = load, least, decoding

    def __call__(self) -> np.ndarray:
        return self._load()

    def scaled(self, least: tuple[int, int]) -> LoadedImage:
        if least != self._least or self._decoding.cancel():
            return self._load.scaled(least)
        return self._decoding.result()

    def parts(self) -> tuple[memoryview, Callable[[memoryview], Callable[[], np.ndarray]]]:
        if self._decoding.cancel():
            return self._load.parts()
        image = self._decoding.result()
        return np.ascontiguousarray(image.pixels).reshape(-1).data, _Decoded(
            self._least, image.pixels.shape, image.size
        )


@dataclass(frozen=True)
class _Decoded:
    """Makes the ``load`` of an image that was decoded in another process."""

    least: tuple[int, int]
    shape: tuple[int, ...]
    size: tuple[int, int]

    def __call__(self, data: memoryview) -> DecodedImage:
        return DecodedImage(LoadedImage(np.frombuffer(data, np.uint8).reshape(self.shape), self.size), self.least)


class DecodedImage:
    """The ``load`` of an image that is decoded already.

    Args:
        image: decoded.
        least: (height, width) px that it was decoded for.
    """

    def __init__(self, image: LoadedImage, least: tuple[int, int]):
        self._image, self._least = image, least

    def __call__(self) -> np.ndarray:
        return self.scaled(self._image.size).pixels

    def scaled(self, least: tuple[int, int]) -> LoadedImage:
        """Raises ImageError where it was decoded to fewer pixels than are asked for now: of another model's set."""
        large = all(
            here >= min(there, whole)
            for here, there, whole in zip(self._image.pixels.shape, least, self._image.size, strict=False)
        )
        if not large:
            height, width = self._least
            raise ImageError(
                f"was decoded for {width}x{height} px, and {least[1]}x{least[0]} are needed; the next set has them"
            )
        return self._image
