"""cv_bridge in place of the own conversions: what goes through it, and what happens where it refuses or is broken."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from fastdrive_node.errors import InputError
from fastdrive_node.ros.bridge import installed_bridge
from fastdrive_node.ros.images import decode_image
from tests.ros.test_images import RGB, view


class StandIn:
    """Converts grey images of 8 and 16 bits as ROS 2's cv_bridge does; makes a wrong size of rgb16."""

    def __init__(self):
        self.seen: list[SimpleNamespace] = []

    def imgmsg_to_cv2(self, message, encoding):
        assert encoding == "rgb8"
        self.seen.append(message)
        if message.encoding == "rgb16":
            return np.zeros((1, 1, 3), np.uint8)
        if message.encoding not in ("mono8", "mono16"):
            raise TypeError(f"[{message.encoding}] is not a color format")
        kind = np.dtype("u1" if message.encoding == "mono8" else (">u2" if message.is_bigendian else "<u2"))
        grey = np.frombuffer(message.data, kind).reshape(message.height, message.step // kind.itemsize)
        grey = np.round(grey * 255 / 65535) if kind.itemsize == 2 else grey
        return np.repeat(grey[:, : message.width, None], 3, axis=2).astype(np.uint8)

    def cv2_to_imgmsg(self, image, encoding):
        from sensor_msgs.msg import Image

        self.seen.append(SimpleNamespace(encoding=encoding))
        height, width = image.shape[:2]
        return Image(height=height, width=width, encoding=encoding, step=3 * width, data=image.tobytes())


@pytest.fixture
def install(monkeypatch):
    """Puts a module, or None, in the place of cv_bridge."""

    def put(module) -> None:
        monkeypatch.setitem(sys.modules, "cv_bridge", module)
        installed_bridge.cache_clear()

    yield put
    monkeypatch.undo()
    installed_bridge.cache_clear()


@pytest.fixture
def bridge(install) -> StandIn:
    made = StandIn()
    install(SimpleNamespace(CvBridge=lambda: made))
    assert installed_bridge() is not None
    made.seen.clear()  # without the trial
    return made


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_images_of_16_bits_go_through_cv_bridge(bridge, order, padding):
    grey = np.random.default_rng(1).integers(0, 2**16, (6, 8)).astype(order)
    image = view("mono16", grey.view(np.uint8), padding=padding, is_bigendian=order == ">u2")
    expected = np.repeat(np.round(grey[..., None] * 255 / 65535).astype(np.uint8), 3, axis=2)
    assert np.array_equal(decode_image(image), expected)
    assert [message.step for message in bridge.seen] == [16]  # without padding, which not every cv_bridge knows


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "8UC3"])
def test_rgb_and_bgr_of_8_bits_stay_views_of_the_message(bridge, encoding):
    image = view(encoding, RGB)
    assert np.shares_memory(decode_image(image), np.frombuffer(image.data, np.uint8))
    assert not bridge.seen


def test_what_cv_bridge_refuses_is_converted_without_it_where_that_is_possible(bridge):
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    assert np.array_equal(decode_image(view("8UC1", RGB[..., 0])), np.repeat(RGB[..., :1], 3, axis=2))
    assert [message.encoding for message in bridge.seen] == ["8UC1"]


def test_a_float_image_is_refused_with_cv_bridges_reason(bridge):
    image = view("32FC1", np.zeros((6, 32), np.uint8))
    with pytest.raises(InputError, match=r"32FC1 cannot be converted by cv_bridge \(\[32FC1\] is not a color"):
        decode_image(image)


def test_an_image_of_another_size_than_its_header_is_refused(bridge):
    with pytest.raises(InputError, match=r"rgb16: cv_bridge made uint8 \[1, 1, 3\]"):
        decode_image(view("rgb16", np.zeros((6, 48), np.uint8)))


def test_sizes_are_checked_before_cv_bridge_reads(bridge):
    with pytest.raises(InputError, match="step: 15, but 8 pixels of mono16 need 16 bytes"):
        decode_image(view("mono16", np.zeros((6, 15), np.uint8)))
    assert not bridge.seen


@pytest.mark.parametrize("encoding", ["mono16", "32FC1", "bayer_rggb16"])
def test_without_cv_bridge_it_is_named(install, encoding):
    install(None)
    width = {"32FC1": 32}.get(encoding, 16)
    with pytest.raises(InputError, match=f"encoding: {encoding} needs cv_bridge, which is not installed"):
        decode_image(view(encoding, np.zeros((6, width), np.uint8)))


def _fails():
    raise AttributeError("built for another NumPy")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_fails, "built for another NumPy"),
        (
            lambda: SimpleNamespace(imgmsg_to_cv2=lambda *_: np.zeros((2, 2, 3), np.uint8)),
            "it converts a grey image wrongly",
        ),
    ],
)
def test_a_cv_bridge_that_does_not_work_is_told_and_not_used(install, caplog, make, reason):
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    install(SimpleNamespace(CvBridge=make))
    with caplog.at_level(logging.WARNING):
        image = decode_image(view("mono8", RGB[..., 0]))
    assert np.array_equal(image, np.repeat(RGB[..., :1], 3, axis=2))
    assert reason in caplog.text


@pytest.mark.parametrize(
    "encoding", ["mono8", "bayer_rggb8", "bayer_bggr8", "bayer_gbrg8", "bayer_grbg8", "yuv422", "yuv422_yuy2"]
)
def test_the_own_conversions_equal_those_of_cv_bridge(install, encoding):
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    bridge = installed_bridge()
    if bridge is None:
        pytest.skip("cv_bridge is not installed")
    rows = RGB[..., :2].reshape(6, -1) if encoding.startswith("yuv") else RGB[..., 0].copy()
    images = [view(encoding, rows, padding=padding) for padding in (0, 4)]
    try:
        theirs = bridge.to_rgb(rows, images[0])
    except InputError:
        pytest.skip(f"this cv_bridge does not convert {encoding}")
    assert all(np.array_equal(decode_image(image), theirs) for image in images)
    install(None)
    assert all(np.array_equal(decode_image(image), theirs) for image in images)


def test_overlays_are_the_same_messages_with_and_without_cv_bridge(bridge, install):
    messages = pytest.importorskip("fastdrive_node.ros.messages", reason="rclpy is not installed")
    through = messages.image_message(RGB[:, ::-1], 7 * 10**9, "CAM_BACK")
    assert [each.encoding for each in bridge.seen] == ["rgb8"]
    install(None)
    assert through == messages.image_message(RGB[:, ::-1], 7 * 10**9, "CAM_BACK")
