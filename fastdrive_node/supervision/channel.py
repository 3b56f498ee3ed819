"""What crosses between the node and the planner's process: frame sets, plans and errors.

Images cross as they came (a JPEG, or the rows of a raw image), once copied, through a region of shared memory that
every set uses again; everything else is pickled. Both processes are of this program, and nothing from outside is
unpickled.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fastdrive_node.errors import FastDriveError, ImageError
from fastdrive_node.types import CameraFrame, Command, EgoHistory, FrameSet

MAX_SET_BYTES = 1 << 30  # images of one set; 32 raw images of 8 megapixels are 0.8 GB
_STEP = 1 << 20  # the region grows by multiples of this
_ALIGN = 64


Load = Callable[[], np.ndarray]


@runtime_checkable
class Shareable(Protocol):
    """A frame's ``load`` that another process can run."""

    def parts(self) -> tuple[memoryview, Callable[[memoryview], Load]]:
        """The bytes, and what makes the same ``load`` of a copy of them; the latter can be pickled."""
        ...


@dataclass(frozen=True)
class _Pixels:
    """Makes the ``load`` of an image whose bytes are its pixels."""

    shape: tuple[int, ...]

    def __call__(self, data: memoryview) -> Load:
        return lambda: np.frombuffer(data, np.uint8).reshape(self.shape)


@dataclass(frozen=True)
class PackedFrame:
    """A frame whose bytes are in the region."""

    camera: str
    stamp_ns: int
    received_ns: int
    loader: Callable[[memoryview], Load]
    offset: int
    size: int
    frame_id: str
    expected_size: tuple[int, int] | None


@dataclass(frozen=True)
class PlanRequest:
    """One frame set to plan."""

    number: int
    frames: tuple[PackedFrame, ...]
    t0_ns: int
    missing: tuple[str, ...]
    history: EgoHistory
    command: Command
    drop: float | None  # None: the planner's present one


@dataclass(frozen=True)
class PackedError:
    """A FastDriveError with its attributes, such as stage, code and output."""

    kind: type[FastDriveError]
    text: str
    attributes: dict[str, Any]

    @classmethod
    def of(cls, error: FastDriveError) -> PackedError:
        return cls(type(error), str(error), dict(error.__dict__))

    def error(self) -> FastDriveError:
        error = self.kind.__new__(self.kind, self.text)
        error.args = (self.text,)
        error.__dict__.update(self.attributes)
        return error


class Region:
    """Memory that two processes share, without a name in the file system: the kernel frees it with the last process.

    Args:
        fd: of the other process's region; None makes a new one.
    """

    def __init__(self, fd: int | None = None):
        self.fd = os.memfd_create("fastdrive_images") if fd is None else fd
        self._map: mmap.mmap | None = None

    def reserve(self, size: int) -> np.ndarray:
        """The region, uint8, of at least ``size`` bytes. Raises OSError where there is no memory for it."""
        if self._map is None or len(self._map) < size:
            grown = max(-(-size // _STEP) * _STEP, os.fstat(self.fd).st_size)
            os.posix_fallocate(self.fd, 0, grown)  # else a write would end the process where memory is short
            self._map = mmap.mmap(self.fd, grown)
        return np.frombuffer(self._map, np.uint8)

    def close(self) -> None:
        """The memory itself lives until the last array of it is gone."""
        self._map = None
        os.close(self.fd)


def pack_frames(frames: Sequence[CameraFrame], region: Region) -> tuple[PackedFrame, ...]:
    """Copy the frames' bytes into the region.

    Raises:
        ImageError: they are more than ``MAX_SET_BYTES``, or a frame that is no message cannot be loaded.
        OSError: there is no memory for them.
    """
    parts = [_parts_of(frame) for frame in frames]
    offsets, end = [], 0
    for data, _ in parts:
        offsets.append(end)
        end += -(-len(data) // _ALIGN) * _ALIGN
    if end > MAX_SET_BYTES:
        raise ImageError(f"images: {end} bytes in one set, more than {MAX_SET_BYTES}")
    memory = region.reserve(end)
    packed = []
    for frame, (data, loader), offset in zip(frames, parts, offsets, strict=True):
        size = len(data)
        np.copyto(memory[offset : offset + size], np.frombuffer(data, np.uint8))  # leaves the GIL to others
        told = (frame.frame_id, frame.expected_size)
        packed.append(PackedFrame(frame.camera, frame.stamp_ns, frame.received_ns, loader, offset, size, *told))
    return tuple(packed)


def unpack_frames(request: PlanRequest, region: Region) -> FrameSet:
    """The frame set of a request; its images are views of the region."""
    end = max((frame.offset + frame.size for frame in request.frames), default=0)
    memory = region.reserve(end).data if end else memoryview(b"")
    frames = tuple(
        CameraFrame(
            packed.camera,
            packed.stamp_ns,
            packed.received_ns,
            packed.loader(memory[packed.offset : packed.offset + packed.size]),
            packed.frame_id,
            packed.expected_size,
        )
        for packed in request.frames
    )
    return FrameSet(frames, request.t0_ns, request.missing)


def _parts_of(frame: CameraFrame) -> tuple[memoryview, Callable[[memoryview], Load]]:
    """The message of a frame; of one that has none, such as a black image, the pixels."""
    if isinstance(frame.load, Shareable):
        return frame.load.parts()
    try:
        image = np.ascontiguousarray(frame.load())
    except Exception as error:  # loaders raise many kinds for damaged data
        raise ImageError(f"{frame.camera}: {str(error).removeprefix(f'{frame.camera}: ')}") from error
    if image.dtype != np.uint8:
        raise ImageError(f"{frame.camera}: expected a uint8 RGB image, got {image.dtype} {image.shape}")
    return image.reshape(-1).data, _Pixels(image.shape)
