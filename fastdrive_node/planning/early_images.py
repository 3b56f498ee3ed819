"""JPEGs that are decoded as they arrive: while other cameras' images are on their way, and while the planner is busy.

The bytes are the same as when the planner decodes them, so the plans are too. No ROS, no torch.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fastdrive_node.errors import ImageError
from fastdrive_node.planning.images import LoadedImage
from fastdrive_node.types import CameraFrame

_SETS = 2  # whose decoded images are held


@runtime_checkable
class ShrinkingLoad(Protocol):
    """A ``CameraFrame.load`` of a message, see ``images.ScaledLoad`` and ``supervision.channel.Shareable``."""

    @property
    def shrinks(self) -> bool:
        """Whether it can be decoded to a fraction of its size; a PNG cannot, and may be huge when it is decoded."""
        ...

    def __call__(self) -> np.ndarray: ...

    def scaled(self, least: tuple[int, int]) -> LoadedImage: ...

    def parts(self) -> tuple[memoryview, Any]: ...


class EarlyDecoder:
    """Begins to decode JPEGs on threads of its own, and holds the last ones of two sets at most.

    Args:
        least: height and width in px that each camera's images must keep; cameras that are not in it are left alone.
        threads: at most; None for one each CPU but one, which is left to what receives.
    """

    def __init__(self, least: Mapping[str, tuple[int, int]], threads: int | None = None):
        self.least = least
        threads = threads or max(1, min(len(least), len(os.sched_getaffinity(0)) - 1))
        self._pool = ThreadPoolExecutor(threads, "early-decode")
        self._held: deque[EarlyImage] = deque()
        self.begun = self.left = 0  # images whose decoding began here, or was left to the planner

    def begin(self, frame: CameraFrame, busy: bool = False) -> CameraFrame:
        """The frame, with a ``load`` that is being decoded.

        Args:
            busy: a whole set waits for the planner already, so what arrives now may never be read: it is left alone.
        """
        least, load = self.least.get(frame.camera), frame.load
        if least is None or not isinstance(load, ShrinkingLoad):
            return frame
        if busy or not load.shrinks:
            self.left += 1
            return frame
        self.begun += 1
        image = EarlyImage(load, least, self._pool.submit(load.scaled, least))
        self._held.append(image)
        if len(self._held) > _SETS * len(self.least):  # of cameras whose sets never become whole
            self._held.popleft().forget()
        return replace(frame, load=image)

    def close(self) -> None:
        """Ends the threads. Images that wait for one are decoded by the planner."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class EarlyImage:
    """A frame's ``load`` whose decoding has begun, see ``images.ScaledLoad`` and ``supervision.channel.Shareable``.

    What no thread has begun when the planner asks is decoded by the planner.

    Args:
        load: of the frame, a JPEG's.
        least: (height, width) px that it is decoded for.
        decoding: of ``load.scaled(least)``.
    """

    def __init__(self, load: ShrinkingLoad, least: tuple[int, int], decoding: Future[LoadedImage]):
        self._load, self._least = load, least
        self._decoding: Future[LoadedImage] | None = decoding

    def __call__(self) -> np.ndarray:
        return self._load()

    def scaled(self, least: tuple[int, int]) -> LoadedImage:
        image = self._decoded() if least == self._least else None
        return self._load.scaled(least) if image is None else image

    def forget(self) -> None:
        """Free the decoded image; the planner decodes it where it is read after all."""
        decoding, self._decoding = self._decoding, None
        if decoding is not None:
            decoding.cancel()

    def _decoded(self) -> LoadedImage | None:
        """None where no thread has begun, or the image was freed. Raises as the decoding did."""
        decoding = self._decoding
        return None if decoding is None or decoding.cancel() else decoding.result()

    def parts(self) -> tuple[memoryview, Callable[[memoryview], Callable[[], np.ndarray]]]:
        image = self._decoded()
        if image is None:
            return self._load.parts()
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
