"""Headers of serialized image messages, without copying or deserialising the pixels.

The bytes are those of a ``raw=True`` subscription or of a bag: four bytes of encapsulation, then plain CDR (OMG
DDSI-RTPS 10.5, XTypes 7.4.3): primitives aligned to their size counted from after the encapsulation, strings and
sequences with a 32-bit length in front.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from fastdrive_node.errors import ImageError
from fastdrive_node.sync.camera_identity import CameraInfo

_BYTE_ORDER = {b"\x00\x00": ">", b"\x00\x01": "<"}  # CDR_BE, CDR_LE; messages of ROS 2 are final types in plain CDR
_MAX_TEXT = 1024  # bytes; frame ids and encodings are short


@dataclass(frozen=True)
class ImageView:
    """A sensor_msgs/Image; ``data`` is a view of the serialized bytes."""

    stamp_ns: int
    frame_id: str
    height: int
    width: int
    encoding: str
    is_bigendian: bool
    step: int  # bytes of a row
    data: memoryview


@dataclass(frozen=True)
class CompressedView:
    """A sensor_msgs/CompressedImage; ``data`` is a view of the serialized bytes."""

    stamp_ns: int
    frame_id: str
    format: str
    data: memoryview


class _Reader:
    def __init__(self, raw: bytes | memoryview):
        view = memoryview(raw).cast("B")
        order = _BYTE_ORDER.get(bytes(view[:2]))
        if len(view) < 4 or order is None:
            raise ImageError("encapsulation: not plain CDR; the message is malformed or of another middleware")
        self._view = view[4:]
        self._order = order
        self._at = 0

    def number(self, code: str, field: str) -> int:
        size = struct.calcsize(code)
        start = self._at + -self._at % size
        if start + size > len(self._view):
            raise ImageError(f"{field}: the message ends before it")
        self._at = start + size
        return struct.unpack_from(self._order + code, self._view, start)[0]

    def block(self, field: str) -> memoryview:
        """A sequence of bytes."""
        length = self.number("I", field)
        if length > len(self._view) - self._at:
            raise ImageError(f"{field}: a length of {length} bytes, but {len(self._view) - self._at} are left")
        block = self._view[self._at : self._at + length]
        self._at += length
        return block

    def text(self, field: str) -> str:
        block = self.block(field)
        if len(block) > _MAX_TEXT:
            raise ImageError(f"{field}: {len(block)} bytes long, more than {_MAX_TEXT}")
        try:
            return bytes(block).rstrip(b"\0").decode()
        except UnicodeDecodeError as error:
            raise ImageError(f"{field}: not UTF-8") from error

    def skip_doubles(self, count: int, field: str) -> None:
        start = self._at + -self._at % 8 if count else self._at
        if start + 8 * count > len(self._view):
            raise ImageError(f"{field}: the message ends before it")
        self._at = start + 8 * count

    def stamp_ns(self) -> int:
        seconds, nanoseconds = self.number("i", "header.stamp.sec"), self.number("I", "header.stamp.nanosec")
        if seconds < 0 or nanoseconds >= 1_000_000_000:
            raise ImageError(f"header.stamp: {seconds} s {nanoseconds} ns is no time")
        return seconds * 1_000_000_000 + nanoseconds


def parse_image(raw: bytes | memoryview) -> ImageView:
    """A serialized sensor_msgs/Image.

    Raises:
        ImageError: the bytes are no such message; the text names the field.
    """
    reader = _Reader(raw)
    return ImageView(
        stamp_ns=reader.stamp_ns(),
        frame_id=reader.text("header.frame_id"),
        height=reader.number("I", "height"),
        width=reader.number("I", "width"),
        encoding=reader.text("encoding"),
        is_bigendian=bool(reader.number("B", "is_bigendian")),
        step=reader.number("I", "step"),
        data=reader.block("data"),
    )


def parse_compressed(raw: bytes | memoryview) -> CompressedView:
    """A serialized sensor_msgs/CompressedImage.

    Raises:
        ImageError: the bytes are no such message; the text names the field.
    """
    reader = _Reader(raw)
    return CompressedView(
        stamp_ns=reader.stamp_ns(),
        frame_id=reader.text("header.frame_id"),
        format=reader.text("format"),
        data=reader.block("data"),
    )


def parse_camera_info(raw: bytes | memoryview) -> CameraInfo:
    """A serialized sensor_msgs/CameraInfo; the size is that of the region of interest, after binning.

    Raises:
        ImageError: the bytes are no such message; the text names the field.
    """
    reader = _Reader(raw)
    reader.stamp_ns()
    frame_id = reader.text("header.frame_id")
    height, width = reader.number("I", "height"), reader.number("I", "width")
    reader.text("distortion_model")
    reader.skip_doubles(reader.number("I", "d"), "d")
    reader.skip_doubles(9 + 9 + 12, "k, r, p")
    binning_x, binning_y = reader.number("I", "binning_x"), reader.number("I", "binning_y")
    _, _, *roi = (reader.number("I", f"roi.{name}") for name in ("x_offset", "y_offset", "height", "width"))
    if 0 not in roi:
        height, width = roi
    return CameraInfo(frame_id, (height // max(binning_y, 1), width // max(binning_x, 1)))


def parse_stamp_ns(raw: bytes | memoryview) -> int:
    """The stamp of any serialized message that begins with a std_msgs/Header.

    Raises:
        InputError: the bytes are no such message; the text names the field.
    """
    return _Reader(raw).stamp_ns()
