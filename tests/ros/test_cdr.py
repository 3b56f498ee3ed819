"""The header parser against serializers of others, and against hostile bytes."""

from __future__ import annotations

import contextlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rosbags.typesys import Stores, get_typestore

from fastdrive_node.errors import InputError
from fastdrive_node.ros.cdr import CompressedView, ImageView, parse_camera_info, parse_compressed, parse_image
from fastdrive_node.sync.camera_identity import CameraInfo

STORE = get_typestore(Stores.ROS2_JAZZY)
TYPES = STORE.types


def header(frame_id: str, sec: int = 1533151603, nanosec: int = 512404000):
    stamp = TYPES["builtin_interfaces/msg/Time"](sec=sec, nanosec=nanosec)
    return TYPES["std_msgs/msg/Header"](stamp=stamp, frame_id=frame_id)


def image_bytes(frame_id="CAM_FRONT", encoding="rgb8", little=True, size=24) -> bytes:
    message = TYPES["sensor_msgs/msg/Image"](
        header=header(frame_id),
        height=2,
        width=4,
        encoding=encoding,
        is_bigendian=0,
        step=12,
        data=np.arange(size, dtype=np.uint8),
    )
    return bytes(STORE.serialize_cdr(message, "sensor_msgs/msg/Image", little_endian=little))


def compressed_bytes(frame_id="CAM_BACK", little=True) -> bytes:
    message = TYPES["sensor_msgs/msg/CompressedImage"](
        header=header(frame_id), format="jpeg", data=np.arange(9, dtype=np.uint8)
    )
    return bytes(STORE.serialize_cdr(message, "sensor_msgs/msg/CompressedImage", little_endian=little))


@pytest.mark.parametrize("little", [True, False])
@pytest.mark.parametrize("frame_id", ["", "a", "ab", "abc", "CAM_FRONT"])
@pytest.mark.parametrize("encoding", ["rgb8", "bayer_rggb8", "yuv422"])
def test_images_are_read_in_both_byte_orders_at_every_alignment(frame_id, encoding, little):
    view = parse_image(image_bytes(frame_id, encoding, little))
    assert view.stamp_ns == 1533151603512404000
    assert (view.frame_id, view.encoding, view.height, view.width, view.step) == (frame_id, encoding, 2, 4, 12)
    assert bytes(view.data) == bytes(range(24))


def info_bytes(frame_id="CAM_BACK", d=5, binning=(0, 0), roi=(0, 0), little=True) -> bytes:
    region = TYPES["sensor_msgs/msg/RegionOfInterest"](
        x_offset=10, y_offset=20, height=roi[0], width=roi[1], do_rectify=False
    )
    message = TYPES["sensor_msgs/msg/CameraInfo"](
        header=header(frame_id),
        height=900,
        width=1600,
        distortion_model="plumb_bob",
        d=np.arange(d, dtype=np.float64),
        k=np.arange(9, dtype=np.float64),
        r=np.arange(9, dtype=np.float64),
        p=np.arange(12, dtype=np.float64),
        binning_x=binning[0],
        binning_y=binning[1],
        roi=region,
    )
    return bytes(STORE.serialize_cdr(message, "sensor_msgs/msg/CameraInfo", little_endian=little))


@pytest.mark.parametrize("little", [True, False])
@pytest.mark.parametrize("frame_id", ["", "abc", "CAM_BACK"])
@pytest.mark.parametrize("d", [0, 1, 5, 8])
def test_camera_info_gives_frame_id_and_size_at_every_alignment(frame_id, d, little):
    assert parse_camera_info(info_bytes(frame_id, d, little=little)) == CameraInfo(frame_id, (900, 1600))


def test_the_size_of_camera_info_is_that_of_the_region_after_binning():
    assert parse_camera_info(info_bytes(binning=(2, 3))).size == (300, 800)
    assert parse_camera_info(info_bytes(binning=(2, 0), roi=(450, 400))).size == (450, 200)


def test_camera_info_that_is_cut_or_damaged_is_refused():
    raw = info_bytes()
    for end in range(0, len(raw) - 1, 7):
        with pytest.raises(InputError):
            parse_camera_info(raw[:end])
    at = raw.index(b"plumb_bob") + 12  # the length of d
    with pytest.raises(InputError, match="d: the message ends before it"):
        parse_camera_info(raw[:at] + b"\xff\xff\xff\xff" + raw[at + 4 :])


@pytest.mark.parametrize("little", [True, False])
def test_compressed_images_are_read(little):
    view = parse_compressed(compressed_bytes(little=little))
    assert (view.stamp_ns, view.frame_id, view.format) == (1533151603512404000, "CAM_BACK", "jpeg")
    assert bytes(view.data) == bytes(range(9))


def test_pixels_are_not_copied():
    raw = bytearray(image_bytes())
    view = parse_image(raw)
    raw[-1] = 200
    assert view.data[-1] == 200


def test_what_rclpy_serializes_is_read():
    messages = pytest.importorskip("sensor_msgs.msg", reason="ROS 2 messages are not installed")
    serialize = pytest.importorskip("rclpy.serialization", reason="rclpy is not installed").serialize_message
    message = messages.Image(height=1, width=2, encoding="mono8", step=2, data=[7, 9])
    message.header.stamp.sec, message.header.stamp.nanosec, message.header.frame_id = 3, 5, "front"
    view = parse_image(serialize(message))
    assert (view.stamp_ns, view.frame_id, view.step, bytes(view.data)) == (3_000_000_005, "front", 2, b"\x07\x09")


def test_a_message_that_ends_early_names_the_field():
    raw = image_bytes()
    with pytest.raises(InputError, match="data: a length of 24 bytes, but 23 are left"):
        parse_image(raw[:-1])
    with pytest.raises(InputError, match=r"header.stamp.sec: the message ends before it"):
        parse_image(raw[:6])


def test_a_length_beyond_the_message_is_refused_without_allocating():
    raw = bytearray(image_bytes())
    struct.pack_into("<I", raw, 12, 0xFFFFFFFF)  # of the frame id
    with pytest.raises(InputError, match=r"header.frame_id: a length of 4294967295 bytes"):
        parse_image(raw)


def test_a_stamp_that_is_no_time_is_refused():
    raw = bytearray(compressed_bytes())
    struct.pack_into("<I", raw, 8, 1_000_000_000)
    with pytest.raises(InputError, match=r"header.stamp: 1533151603 s 1000000000 ns is no time"):
        parse_compressed(raw)


@pytest.mark.parametrize("raw", [b"", b"\0", b"\0\1", b"\0\7\0\0" + bytes(60), b"\xff" * 80])
def test_other_encapsulations_are_refused(raw):
    with pytest.raises(InputError):
        parse_image(raw)


@settings(max_examples=200)
@given(st.data())
def test_damaged_messages_are_read_or_refused_never_more(data):
    original = data.draw(st.sampled_from([image_bytes(), image_bytes(little=False), compressed_bytes()]))
    raw = bytearray(original[: data.draw(st.integers(0, len(original)))])
    for _ in range(data.draw(st.integers(0, 6))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    for parse, kind in ((parse_image, ImageView), (parse_compressed, CompressedView)):
        try:
            view = parse(raw)
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert isinstance(view, kind)
            assert len(view.data) <= len(raw)


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw):
    for parse in (parse_image, parse_compressed):
        with contextlib.suppress(InputError):
            parse(raw)
