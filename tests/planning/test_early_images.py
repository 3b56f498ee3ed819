"""Images that are decoded as they arrive are those that the planner would have decoded."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
from PIL import Image

from fastdrive_node.errors import ImageError
from fastdrive_node.planning.early_images import DecodedImage, EarlyDecoder, EarlyImage
from fastdrive_node.planning.images import ImageDecoder, LoadedImage
from fastdrive_node.ros.cdr import CompressedView
from fastdrive_node.ros.images import ImageLoader
from fastdrive_node.supervision.channel import PlanRequest, Region, pack_frames, unpack_frames
from fastdrive_node.types import CameraFrame, Command, EgoHistory, EgoState

LEAST = {"front": (112, 224), "back": (112, 224)}


def jpeg(seed: int, size: tuple[int, int] = (900, 1600)) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BILINEAR).save(buffer, "JPEG")
    return buffer.getvalue()


def frame(camera: str, data: bytes) -> CameraFrame:
    view = CompressedView(5, "lens", "jpeg", memoryview(data))
    return CameraFrame(camera, 5, 6, ImageLoader(camera, view), "lens")


@pytest.fixture
def early():
    decoder = EarlyDecoder(LEAST)
    yield decoder
    decoder.close()


def sent(frames: list[CameraFrame]) -> list[CameraFrame]:
    """As the planner's process has them."""
    region = Region()
    packed = pack_frames(frames, region)
    history = EgoHistory((EgoState(7, 0, 0, 0, 1.0),))
    return list(unpack_frames(PlanRequest(1, packed, 5, (), history, Command.NONE, None), region).frames)


@pytest.mark.parametrize("process", ["own", "another"])
def test_images_are_those_that_the_planner_decodes(early, process):
    plain = [frame("front", jpeg(1)), frame("back", jpeg(2))]
    begun = [early.begin(each) for each in plain]
    for each in begun:
        each.load._decoding.result()
    known = [(each.camera, each.stamp_ns, each.received_ns, each.frame_id) for each in begun]
    assert known == [("front", 5, 6, "lens"), ("back", 5, 6, "lens")]
    decoder = ImageDecoder(LEAST)
    wanted, found = decoder.decode(plain), decoder.decode(begun if process == "own" else sent(begun))
    for one, other in zip(wanted, found, strict=True):
        assert one.size == other.size == (900, 1600) and one.pixels.shape == (225, 400, 3)
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_in_another_process_nothing_is_decoded_again(early):
    begun = early.begin(frame("front", jpeg(1)))
    begun.load._decoding.result()
    (there,) = sent([begun])
    assert isinstance(there.load, DecodedImage)


@pytest.mark.parametrize("process", ["own", "another"])
def test_what_no_thread_has_begun_is_left_to_the_planner(process):
    early, hold = EarlyDecoder(LEAST, threads=1), threading.Event()
    early._pool.submit(hold.wait, 30)
    begun = early.begin(frame("front", jpeg(3)))
    read = [begun] if process == "own" else sent([begun])
    (found,) = ImageDecoder(LEAST).decode(read)
    assert found.pixels.shape == (225, 400, 3) and begun.load._decoding.cancelled()
    hold.set()
    early.close()


def test_decoded_images_of_two_sets_are_held_at_most(early):
    begun = [early.begin(frame(camera, jpeg(1))) for _ in range(3) for camera in LEAST]
    assert [each.load._decoding is None for each in begun] == [True, True, False, False, False, False]
    decoded = ImageDecoder(LEAST).decode(begun[:1])[0], ImageDecoder(LEAST).decode(sent(begun[1:2]))[0]
    assert {image.pixels.shape for image in decoded} == {(225, 400, 3)}


def test_a_png_which_may_be_huge_when_it_is_decoded_is_left_alone(early):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((9, 16, 3), np.uint8)).save(buffer, "PNG")
    png = frame("front", buffer.getvalue())
    assert early.begin(png) is png and (early.begun, early.left) == (0, 1)


def test_while_a_set_waits_for_the_planner_images_are_left_alone(early):
    one, unknown = frame("front", jpeg(1)), frame("side", jpeg(1))
    assert early.begin(one, busy=True) is one and early.begin(unknown) is unknown
    assert isinstance(early.begin(one).load, EarlyImage)
    assert (early.begun, early.left) == (1, 1)


@pytest.mark.parametrize("process", ["own", "another"])
def test_a_damaged_image_is_refused_by_name(early, process):
    begun = early.begin(frame("back", jpeg(1)[:300]))
    begun.load._decoding.exception()
    with pytest.raises(ImageError, match=r"^back: data: 300 bytes are not a complete JPEG or PNG"):
        ImageDecoder(LEAST).decode([begun] if process == "own" else sent([begun]))


def test_the_whole_image_is_still_there_for_pictures(early):
    begun = early.begin(frame("front", jpeg(4)))
    assert begun.load().shape == (900, 1600, 3)


def test_another_model_with_larger_images_decodes_again_or_refuses(early):
    begun = early.begin(frame("front", jpeg(4)))
    begun.load._decoding.result()
    larger = ImageDecoder({"front": (400, 800)})
    assert larger.decode([begun])[0].pixels.shape == (450, 800, 3)
    with pytest.raises(ImageError, match=r"^front: was decoded for 224x112 px, and 800x400 are needed; the next set"):
        larger.decode(sent([begun]))
    assert ImageDecoder({"front": (100, 200)}).decode(sent([begun]))[0].pixels.shape == (225, 400, 3)


def test_an_image_that_cannot_be_smaller_serves_every_model():
    whole = DecodedImage(LoadedImage(np.zeros((50, 80, 3), np.uint8), (50, 80)), (112, 224))
    assert whole().shape == whole.scaled((448, 896)).pixels.shape == (50, 80, 3)
