"""Image messages to RGB arrays. Needs no ROS: it works on the views of ``cdr``.

RGB and BGR of 8 bits, with alpha or without, are views of the message. Everything else goes through cv_bridge where it
is installed, else through OpenCV, which has the same results for what both convert.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from PIL import Image

from fastdrive_node.errors import ImageError
from fastdrive_node.planning.images import LoadedImage
from fastdrive_node.ros.bridge import installed_bridge
from fastdrive_node.ros.cdr import CompressedView, ImageView, parse_compressed, parse_image
from fastdrive_node.types import CameraFrame

MAX_PIXELS = 64_000_000  # of an image; a small compressed file can expand to any size
RAW_TYPE = "sensor_msgs/msg/Image"
COMPRESSED_TYPE = "sensor_msgs/msg/CompressedImage"


@dataclass(frozen=True)
class _Encoding:
    channels: int  # bytes of a pixel
    rgb: slice | None = None  # where red, green and blue are in a pixel
    code: str = ""  # else OpenCV's conversion to RGB; without one only cv_bridge converts it
    even: str = ""  # dimensions that must be even: "w" or "wh"


_RGB, _BGR = slice(0, 3, 1), slice(2, None, -1)
# names: sensor_msgs/image_encodings.hpp; OpenCV names a Bayer pattern by the second row's second and third pixel
_ENCODINGS = {
    "rgb8": _Encoding(3, _RGB),
    "bgr8": _Encoding(3, _BGR),
    "rgba8": _Encoding(4, _RGB),
    "bgra8": _Encoding(4, _BGR),
    "8UC3": _Encoding(3, _BGR),
    "mono8": _Encoding(1, code="COLOR_GRAY2RGB"),
    "8UC1": _Encoding(1, code="COLOR_GRAY2RGB"),
    "bayer_rggb8": _Encoding(1, code="COLOR_BayerBG2RGB", even="wh"),
    "bayer_bggr8": _Encoding(1, code="COLOR_BayerRG2RGB", even="wh"),
    "bayer_gbrg8": _Encoding(1, code="COLOR_BayerGR2RGB", even="wh"),
    "bayer_grbg8": _Encoding(1, code="COLOR_BayerGB2RGB", even="wh"),
    "yuv422": _Encoding(2, code="COLOR_YUV2RGB_UYVY", even="w"),
    "uyvy": _Encoding(2, code="COLOR_YUV2RGB_UYVY", even="w"),
    "yuv422_yuy2": _Encoding(2, code="COLOR_YUV2RGB_YUYV", even="w"),
    "yuyv": _Encoding(2, code="COLOR_YUV2RGB_YUYV", even="w"),
}
_OWN = ", ".join(_ENCODINGS)  # without cv_bridge
_ENCODINGS |= {
    "mono16": _Encoding(2),
    "rgb16": _Encoding(6),
    "bgr16": _Encoding(6),
    "rgba16": _Encoding(8),
    "bgra16": _Encoding(8),
    **{f"bayer_{order}16": _Encoding(2, even="wh") for order in ("rggb", "bggr", "gbrg", "grbg")},
}
_GENERIC = re.compile(r"(8|16|32|64)[USF]C([1-4])")  # a depth and channels without a meaning


def camera_frame(camera: str, raw: bytes | memoryview, received_ns: int, compressed: bool) -> CameraFrame:
    """A frame from a serialized message; the pixels are decoded when the frame is loaded.

    Raises:
        ImageError: the header is malformed; the text names the camera and field. ``load`` raises it for the pixels.
    """
    try:
        view = parse_compressed(raw) if compressed else parse_image(raw)
    except ImageError as error:
        raise ImageError(f"{camera}: {error}") from error
    return CameraFrame(camera, view.stamp_ns, received_ns, ImageLoader(camera, view), view.frame_id)


@dataclass(frozen=True)
class ImageLoader:
    """Decodes a view when it is called: uint8 [H, W, 3] RGB, or an ImageError that names the camera and field.

    The planner's process gets the view, and decodes there.
    """

    camera: str
    view: ImageView | CompressedView

    def __call__(self) -> np.ndarray:
        try:
            if isinstance(self.view, CompressedView):
                return decode_compressed(self.view).pixels
            return decode_image(self.view)
        except ImageError as error:
            raise ImageError(f"{self.camera}: {error}") from error

    @property
    def shrinks(self) -> bool:
        """Whether it is a JPEG, which ``scaled`` decodes to a fraction of its size."""
        return isinstance(self.view, CompressedView) and bytes(self.view.data[:2]) == b"\xff\xd8"

    def scaled(self, least: tuple[int, int]) -> LoadedImage:
        """See ``planning.images.ScaledLoad``: a JPEG may be decoded to a fraction of its size."""
        if not isinstance(self.view, CompressedView):
            pixels = self()
            height, width = pixels.shape[:2]
            return LoadedImage(pixels, (height, width))
        try:
            return decode_compressed(self.view, least)
        except ImageError as error:
            raise ImageError(f"{self.camera}: {error}") from error

    def parts(self) -> tuple[memoryview, _Header]:
        """For ``supervision.channel``."""
        names = (each.name for each in fields(self.view) if each.name != "data")
        header = {name: getattr(self.view, name) for name in names}
        return self.view.data, _Header(self.camera, type(self.view), header)


@dataclass(frozen=True)
class _Header:
    """A view without its bytes."""

    camera: str
    kind: type[ImageView] | type[CompressedView]
    values: dict[str, Any]

    def __call__(self, data: memoryview) -> ImageLoader:
        return ImageLoader(self.camera, self.kind(**self.values, data=data))


def decode_image(image: ImageView) -> np.ndarray:
    """uint8 [H, W, 3] RGB; a view of the message where its bytes allow.

    Raises:
        ImageError: an encoding that is not supported, or a step or data length that does not fit; the text names it.
    """
    encoding = _encoding(image.encoding)
    rows = _rows(image, encoding)
    if encoding.rgb is not None:
        pixels = rows.reshape(image.height, image.width, encoding.channels)
        return pixels[:, :, encoding.rgb]
    bridge = installed_bridge()
    if bridge is not None:
        try:
            return bridge.to_rgb(rows, image)
        except ImageError:
            if not encoding.code:
                raise
    if not encoding.code:
        raise ImageError(f"encoding: {image.encoding} needs cv_bridge, which is not installed; else use one of {_OWN}")
    return _convert(rows, image, encoding)


def _encoding(name: str) -> _Encoding:
    if (known := _ENCODINGS.get(name)) is not None:
        return known
    if (generic := _GENERIC.fullmatch(name)) is not None:
        return _Encoding(int(generic[1]) // 8 * int(generic[2]))
    raise ImageError(f"encoding: {name[:40]!r} is not supported; use one of {', '.join(_ENCODINGS)}")


def decode_compressed(image: CompressedView, least: tuple[int, int] | None = None) -> LoadedImage:
    """A JPEG or PNG as RGB.

    Args:
        least: height and width in px that a JPEG must keep when it is decoded to 1/2, 1/4 or 1/8 of its sides.

    Raises:
        ImageError: the data is no JPEG or PNG, is cut short, or is larger than 64 megapixels.
    """
    if not len(image.data):
        raise ImageError("data: empty")
    try:
        with Image.open(io.BytesIO(image.data), formats=("JPEG", "PNG")) as opened:
            size = (opened.height, opened.width)
            if size[0] * size[1] > MAX_PIXELS:
                raise ImageError(f"data: {size[1]}x{size[0]} pixels are more than {MAX_PIXELS}")
            if least is not None:
                opened.draft("RGB", least[::-1])  # of a PNG nothing changes
            return LoadedImage(np.asarray(opened if opened.mode == "RGB" else opened.convert("RGB")), size)
    except ImageError:
        raise
    except Exception as error:  # the decoders raise many kinds for damaged data
        raise ImageError(f"data: {len(image.data)} bytes are not a complete JPEG or PNG ({_brief(error)})") from error


def _rows(image: ImageView, encoding: _Encoding) -> np.ndarray:
    """The bytes of each row without its padding, uint8 [H, W * channels]; checks sizes before anything is read."""
    if not image.height or not image.width:
        raise ImageError(f"height, width: {image.height} x {image.width} is not an image")
    used = image.width * encoding.channels
    if image.step < used:
        raise ImageError(f"step: {image.step}, but {image.width} pixels of {image.encoding} need {used} bytes")
    if len(image.data) != image.step * image.height:
        raise ImageError(
            f"data: {len(image.data)} bytes, but step {image.step} x height {image.height} is "
            f"{image.step * image.height}; one of them is wrong"
        )
    if image.height * image.width > MAX_PIXELS:
        raise ImageError(f"height, width: {image.height} x {image.width} pixels are more than {MAX_PIXELS}")
    if ("w" in encoding.even and image.width % 2) or ("h" in encoding.even and image.height % 2):
        raise ImageError(f"height, width: {image.height} x {image.width} must be even for {image.encoding}")
    return np.frombuffer(image.data, np.uint8).reshape(image.height, image.step)[:, :used]


def _convert(rows: np.ndarray, image: ImageView, encoding: _Encoding) -> np.ndarray:
    try:
        import cv2  # only these encodings need it
    except ImportError as error:
        raise ImageError(f"encoding: {image.encoding} needs OpenCV; install opencv-python-headless") from error
    shape = (image.height, image.width) if encoding.channels == 1 else (image.height, image.width, encoding.channels)
    packed = np.ascontiguousarray(rows).reshape(shape)
    return cv2.cvtColor(packed, getattr(cv2, encoding.code))


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
