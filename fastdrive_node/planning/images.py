"""The images of a frame set, decoded at once on all cores, JPEGs at a fraction of their size.

A JPEG's blocks of 8 x 8 pixels can be decoded to 4, 2 or 1 pixels a side (libjpeg's scaling in the DCT), and what
remains at least as large as the VLA reads is resized as always. Of real 1600x900 images resized to 224x112 the values
differ from those of the whole images by 0.43 of 255 in the mean. No ROS.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from fastdrive_node.errors import ImageError
from fastdrive_node.types import CameraFrame


@dataclass(frozen=True)
class LoadedImage:
    """A decoded image."""

    pixels: np.ndarray  # uint8 RGB [H, W, 3], of the camera's size or less
    size: tuple[int, int]  # height, width of the camera's image in px


@runtime_checkable
class ScaledLoad(Protocol):
    """A ``CameraFrame.load`` that can decode an image at a fraction of its size."""

    def scaled(self, least: tuple[int, int]) -> LoadedImage:
        """Decode to a fraction that has at least ``least`` (height, width) px, or the whole image."""
        ...


class ImageDecoder:
    """Decodes frame sets.

    Args:
        least: height and width in px that the images of each camera must keep; None decodes whole images.
        threads: at most; None for one each CPU.
    """

    def __init__(self, least: Mapping[str, tuple[int, int]] | None = None, threads: int | None = None):
        self._least = least or {}
        self._threads = threads or os.cpu_count() or 1
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def decode(self, frames: Sequence[CameraFrame]) -> list[LoadedImage]:
        """The images of the frames, in their order.

        Raises:
            ImageError: one cannot be decoded; the text names the first such camera.
        """
        others = min(self._threads, len(frames)) - 1
        if others < 1:
            return [self._load(frame) for frame in frames]
        results: list[LoadedImage | Exception | None] = [None] * len(frames)
        left = iter(range(len(frames)))  # whichever thread is free takes the next one; the caller's works too

        def work() -> None:
            for index in left:
                try:
                    results[index] = self._load(frames[index])
                except Exception as error:
                    results[index] = error

        begun = [self._workers().submit(work) for _ in range(others)]
        try:
            work()
        finally:  # nobody reads the frames any more when this returns
            for each in begun:
                if not each.cancel():
                    each.result()
        return [_or_raise(result) for result in results]

    def _workers(self) -> ThreadPoolExecutor:
        """The threads besides the caller's."""
        with self._lock:
            if self._pool is None:  # not before it is used: a process that forks has no threads yet
                self._pool = ThreadPoolExecutor(self._threads - 1, "decode")
            return self._pool

    def _load(self, frame: CameraFrame) -> LoadedImage:
        return load_image(frame, self._least.get(frame.camera))


def _or_raise(result: LoadedImage | Exception | None) -> LoadedImage:
    if isinstance(result, Exception):
        raise result
    assert result is not None
    return result


def load_image(frame: CameraFrame, least: tuple[int, int] | None = None) -> LoadedImage:
    """Decode a frame, to a fraction of its size where its ``load`` can and ``least`` allows it.

    Raises:
        ImageError: it cannot be decoded; the text names the camera.
    """
    try:
        if least is not None and isinstance(frame.load, ScaledLoad):
            loaded = frame.load.scaled(least)
            image, size = loaded.pixels, loaded.size
        else:
            image = frame.load()
            size = None
    except Exception as error:  # decoders raise many kinds for damaged data
        text = str(error).removeprefix(f"{frame.camera}: ")  # some loaders name the camera themselves
        raise ImageError(f"{frame.camera}: {text}") from error
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ImageError(f"{frame.camera}: expected a uint8 RGB image, got {kind}")
    if 0 in image.shape:
        raise ImageError(f"{frame.camera}: expected a uint8 RGB image, got an empty one, {image.shape}")
    height, width = size or image.shape[:2]
    return LoadedImage(image, (height, width))
