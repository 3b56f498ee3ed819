"""Frames are decoded at once, in their order, to the part of their size that is needed."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from fastdrive_node.errors import ImageError
from fastdrive_node.planning.images import ImageDecoder, LoadedImage
from fastdrive_node.types import CAMERAS, CameraFrame

LEAST = (112, 224)


class Load:
    """Of a camera's image of one value; ``together`` images are decoded at once, or the test ends with an error."""

    def __init__(self, value: int, together: threading.Barrier | None = None):
        self.value, self._together = value, together

    def __call__(self) -> np.ndarray:
        if self._together is not None:
            self._together.wait(20)
        return np.full((900, 1600, 3), self.value, np.uint8)

    def scaled(self, least: tuple[int, int]) -> LoadedImage:
        assert least == LEAST
        return LoadedImage(self()[::4, ::4], (900, 1600))


def frames(loads) -> list[CameraFrame]:
    return [CameraFrame(camera, 0, 0, load) for camera, load in zip(CAMERAS, loads, strict=True)]


def test_images_are_decoded_at_once_and_come_in_the_order_of_the_frames():
    together = threading.Barrier(6)
    found = ImageDecoder(threads=6).decode(frames(Load(value, together) for value in range(6)))
    assert [image.pixels[0, 0, 0] for image in found] == list(range(6))
    assert {image.pixels.shape for image in found} == {(900, 1600, 3)}


def test_a_decoder_serves_two_threads_at_once():
    decoder, found = ImageDecoder(threads=3), {}

    def decode(first: int) -> None:
        found[first] = decoder.decode(frames(Load(first + value) for value in range(6)))

    threads = [threading.Thread(target=decode, args=(first,)) for first in (0, 100)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(20)
    for first, images in found.items():
        assert [image.pixels[0, 0, 0] for image in images] == [first + value for value in range(6)]
    assert len(found) == 2


@pytest.mark.parametrize("threads", [1, 2])
def test_what_can_be_scaled_is_and_its_size_is_told(threads):
    whole = [Load(value) for value in range(5)] + [lambda: np.zeros((450, 800, 3), np.uint8)]
    found = ImageDecoder(dict.fromkeys(CAMERAS, LEAST), threads).decode(frames(whole))
    assert [image.pixels.shape[:2] for image in found] == [(225, 400)] * 5 + [(450, 800)]
    assert [image.size for image in found] == [(900, 1600)] * 5 + [(450, 800)]


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_camera_that_cannot_be_decoded_is_named(threads):
    def broken():
        raise OSError("cut short")

    loads = [Load(0), lambda: np.zeros((2, 2), np.uint8), broken, Load(0), Load(0), broken]
    with pytest.raises(ImageError, match=rf"^{CAMERAS[1]}: expected a uint8 RGB image, got uint8 \(2, 2\)"):
        ImageDecoder(threads=threads).decode(frames(loads))
    with pytest.raises(ImageError, match=rf"^{CAMERAS[2]}: cut short"):
        ImageDecoder(threads=threads).decode(frames([Load(0), Load(0), *loads[2:]]))
