"""Image messages to RGB: encodings, padding, and data that does not fit its header."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastdrive_node.errors import ImageError, InputError
from fastdrive_node.families.images import resize
from fastdrive_node.replay.bag import Bag
from fastdrive_node.ros.cdr import CompressedView, ImageView
from fastdrive_node.ros.images import COMPRESSED_TYPE, ImageLoader, camera_frame, decode_compressed, decode_image

KEYFRAMES = Path(__file__).resolve().parents[3] / "shared" / "data" / "nuscenes_scene0103_sqlite3"
RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def view(encoding: str, rows: np.ndarray, width: int = 8, padding: int = 0, **changes) -> ImageView:
    rows = rows.reshape(rows.shape[0], -1)
    data = np.pad(rows, ((0, 0), (0, padding)), constant_values=77).tobytes()
    fields = {"height": rows.shape[0], "width": width, "step": rows.shape[1] + padding, "data": memoryview(data)}
    fields |= {"is_bigendian": False, **changes}
    return ImageView(stamp_ns=1, frame_id="", encoding=encoding, **fields)


def jpeg(image: np.ndarray = RGB, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def compressed(data: bytes) -> CompressedView:
    return CompressedView(1, "", "jpeg", memoryview(data))


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("rgb8", RGB),
        ("bgr8", RGB[..., ::-1]),
        ("rgba8", np.dstack([RGB, RGB[..., 0]])),
        ("bgra8", np.dstack([RGB[..., ::-1], RGB[..., 0]])),
    ],
)
def test_colour_orders_with_and_without_padding(encoding, pixels, padding):
    assert np.array_equal(decode_image(view(encoding, pixels, padding=padding)), RGB)


@pytest.mark.parametrize("padding", [0, 3])
def test_grey_is_repeated(padding):
    image = decode_image(view("mono8", RGB[..., 0], padding=padding))
    assert image.shape == (6, 8, 3)
    assert np.array_equal(image, np.repeat(RGB[..., :1], 3, axis=2))


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize(
    ("encoding", "red"),
    [("bayer_rggb8", (0, 0)), ("bayer_bggr8", (1, 1)), ("bayer_gbrg8", (1, 0)), ("bayer_grbg8", (0, 1))],
)
def test_bayer_patterns_give_the_colour_of_their_filter(encoding, red, padding):
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    mosaic = np.zeros((6, 8), np.uint8)
    mosaic[red[0] :: 2, red[1] :: 2] = 200
    image = decode_image(view(encoding, mosaic, padding=padding))
    inner = image[2:-2, 2:-2].astype(int)
    assert inner[..., 0].min() > 90 and inner[..., 1:].max() == 0


@pytest.mark.parametrize(
    ("encoding", "order"), [("uyvy", "UYVY"), ("yuv422", "UYVY"), ("yuyv", "YUYV"), ("yuv422_yuy2", "YUYV")]
)
def test_yuv422_gives_the_colour_that_was_encoded(encoding, order):
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    values = {"Y": 82, "U": 90, "V": 240}  # pure red by BT.601
    rows = np.tile(np.array([values[letter] for letter in order], np.uint8), (6, 4))
    image = decode_image(view(encoding, rows)).astype(int)
    assert np.abs(image - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_compressed_images_are_rgb(kind):
    flat = np.full((16, 16, 3), (200, 30, 90), np.uint8)
    image = decode_compressed(compressed(jpeg(flat, kind))).pixels
    assert image.shape == (16, 16, 3)
    assert np.abs(image.astype(int) - flat).max() <= 4


def test_a_grey_jpeg_is_rgb_too():
    assert decode_compressed(compressed(jpeg(RGB[..., 0]))).pixels.shape == (6, 8, 3)


def scene(height: int = 900, width: int = 1600) -> np.ndarray:
    """An image with edges and with texture."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 9), np.sin(y / 5 + x / 40), np.cos((x + y) / 14)], axis=2)
    return ((waves + (x // 160 + y // 150)[..., None] % 2) * 50 + 100).astype(np.uint8)


@pytest.mark.parametrize(
    ("least", "shape"),
    [((112, 224), (225, 400)), ((392, 672), (450, 800)), ((600, 800), (900, 1600)), ((28, 28), (113, 200))],
)
def test_a_jpeg_is_decoded_to_the_smallest_fraction_that_is_large_enough(least, shape):
    loader = ImageLoader("CAM_FRONT", compressed(jpeg(scene())))
    found = loader.scaled(least)
    assert found.size == (900, 1600) and found.pixels.shape == (*shape, 3)
    whole, scaled = (resize([image], (112, 224)).float() for image in (loader(), found.pixels))
    assert (whole - scaled).abs().mean() < 1.0 or shape[0] < 225


def test_what_is_no_jpeg_is_decoded_whole():
    for loader in (
        ImageLoader("CAM_FRONT", compressed(jpeg(scene(), "PNG"))),
        ImageLoader("CAM_FRONT", view("rgb8", scene(), width=1600)),
    ):
        found = loader.scaled((112, 224))
        assert found.size == (900, 1600) and np.array_equal(found.pixels, scene())


def test_a_damaged_jpeg_is_refused_when_it_is_scaled_too():
    with pytest.raises(ImageError, match=r"^CAM_FRONT: data: 2000 bytes are not a complete JPEG or PNG"):
        ImageLoader("CAM_FRONT", compressed(jpeg(scene())[:2000])).scaled((112, 224))


@pytest.mark.skipif(not KEYFRAMES.is_dir(), reason="the real keyframes (shared/data beside the checkout) are not here")
def test_real_images_differ_by_less_than_one_step_in_the_mean_when_they_are_scaled():
    bag = Bag.open(KEYFRAMES)
    messages = [each.raw for each in bag.messages([name for name in bag.types if bag.types[name] == COMPRESSED_TYPE])]
    assert len(messages) == 24
    for raw in messages:
        loader = camera_frame("CAM_FRONT", raw, 0, compressed=True).load
        whole, scaled = (resize([image], (112, 224)).float() for image in (loader(), loader.scaled((112, 224)).pixels))
        assert 0 < (whole - scaled).abs().mean() < 1.0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"step": 25}, r"data: 144 bytes, but step 25 x height 6 is 150"),
        ({"step": 23}, r"step: 23, but 8 pixels of rgb8 need 24 bytes"),
        ({"height": 7}, r"data: 144 bytes, but step 24 x height 7 is 168"),
        ({"data": memoryview(bytes(143))}, r"data: 143 bytes"),
        ({"width": 0}, r"height, width: 6 x 0 is not an image"),
        ({"height": 2**32 - 1, "width": 2**32 - 1, "step": 2**32 - 1}, r"step"),
    ],
)
def test_sizes_that_do_not_fit_name_the_field(changes, reason):
    with pytest.raises(InputError, match=reason):
        decode_image(view("rgb8", RGB, **changes))


def test_an_unknown_encoding_names_those_that_are_known():
    with pytest.raises(InputError, match=r"encoding: 'nv21' is not supported; use one of rgb8, bgr8"):
        decode_image(view("nv21", RGB))


def test_a_mosaic_with_an_odd_side_is_refused():
    with pytest.raises(InputError, match="must be even for bayer_rggb8"):
        decode_image(view("bayer_rggb8", RGB[:5, :, 0]))


@pytest.mark.parametrize("kept", [0, 1, 20, 0.3, 0.9])
def test_a_truncated_jpeg_names_the_camera(kept):
    whole = jpeg(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    part = whole[: int(kept * len(whole)) if isinstance(kept, float) else kept]
    with pytest.raises(InputError, match=r"^CAM_BACK: data: "):
        ImageLoader("CAM_BACK", compressed(part))()


def test_other_image_formats_are_not_opened():
    with pytest.raises(InputError, match="not a complete JPEG or PNG"):
        decode_compressed(compressed(jpeg(RGB, "BMP")))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_of_absurd_size_is_refused_before_it_is_decoded():
    data = bytearray(jpeg(RGB, "PNG"))
    data[16:24] = (10_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(InputError, match="10000x10000 pixels"):
        decode_compressed(compressed(bytes(data)))


def test_a_malformed_message_names_the_camera_on_arrival():
    with pytest.raises(InputError, match=r"^CAM_FRONT: encapsulation"):
        camera_frame("CAM_FRONT", b"\xff" * 40, 0, compressed=False)


@settings(max_examples=200)
@given(st.binary(max_size=80), st.integers(0, 12), st.integers(0, 12), st.integers(0, 40), st.text(max_size=8))
def test_any_image_header_is_decoded_or_refused(data, height, width, step, text):
    for encoding in ("rgb8", "mono8", "bayer_rggb8", "yuv422", "mono16", "bayer_rggb16", "32FC1", text):
        image = ImageView(1, "", height, width, encoding, False, step, memoryview(data))
        try:
            assert decode_image(image).shape == (height, width, 3)
        except InputError as error:
            assert str(error)


@settings(max_examples=100)
@given(st.binary(max_size=60), st.integers(0, 200))
def test_any_jpeg_bytes_are_decoded_or_refused(noise, at):
    data = bytearray(jpeg())
    data[at : at + len(noise)] = noise
    try:
        assert decode_compressed(compressed(bytes(data))).pixels.dtype == np.uint8
    except InputError as error:
        assert "data:" in str(error)
