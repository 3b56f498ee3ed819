"""cv_bridge, ROS 2's converter of images, where it is installed."""

from __future__ import annotations

import logging
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastdrive_node.errors import ImageError
from fastdrive_node.ros.cdr import ImageView

log = logging.getLogger(__name__)


class Bridge:
    """Conversions by cv_bridge.

    Args:
        library: the module ``cv_bridge``.
    """

    def __init__(self, library: Any):
        self._bridge = library.CvBridge()

    def to_rgb(self, rows: np.ndarray, image: ImageView) -> np.ndarray:
        """uint8 [H, W, 3] RGB.

        Args:
            rows: the bytes of each row without its padding, uint8 [H, bytes]; a cv_bridge from PyPI ignores ``step``.
            image: for its encoding, byte order and size.

        Raises:
            ImageError: cv_bridge does not convert this encoding; the text is its reason.
        """
        message = SimpleNamespace(
            height=image.height,
            width=image.width,
            encoding=image.encoding,
            is_bigendian=image.is_bigendian,
            step=rows.shape[1],
            data=np.ascontiguousarray(rows).reshape(-1),
        )
        try:
            pixels = np.asarray(self._bridge.imgmsg_to_cv2(message, "rgb8"))
        except Exception as error:  # CvBridgeError, and OpenCV's own for sizes that a code does not take
            reason = " ".join(str(error).split())[:160]
            raise ImageError(f"encoding: {image.encoding} cannot be converted by cv_bridge ({reason})") from error
        if pixels.dtype != np.uint8 or pixels.shape != (image.height, image.width, 3):
            raise ImageError(f"encoding: {image.encoding}: cv_bridge made {pixels.dtype} {list(pixels.shape)} of it")
        return pixels

    def to_message(self, image: np.ndarray) -> Any:
        """sensor_msgs/Image rgb8 without a header, from uint8 [H, W, 3]."""
        return self._bridge.cv2_to_imgmsg(np.ascontiguousarray(image), "rgb8")


@cache
def installed_bridge() -> Bridge | None:
    """None where cv_bridge cannot be imported, or does not work with the OpenCV and NumPy that are here."""
    try:
        import cv_bridge  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    try:
        bridge = Bridge(cv_bridge)
        grey = np.arange(4, dtype=np.uint8).reshape(2, 2)
        view = ImageView(0, "", 2, 2, "mono8", False, 2, memoryview(grey.tobytes()))
        if np.array_equal(bridge.to_rgb(grey, view), np.repeat(grey[:, :, None], 3, axis=2)):
            return bridge
        reason = "it converts a grey image wrongly"
    except Exception as error:  # e.g. it was built for another NumPy
        reason = f"{type(error).__name__}: {error}"
    log.warning("cv_bridge is installed but not used: %s", reason)
    return None
