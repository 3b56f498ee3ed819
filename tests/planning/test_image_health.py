"""Images that show nothing, noise, or the same again, are told by camera."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastdrive_node.errors import ImageError
from fastdrive_node.planning.image_health import ImageHealth, ImageLimits
from fastdrive_node.planning.images import LoadedImage, load_image
from fastdrive_node.replay.bag import Bag
from fastdrive_node.ros.images import COMPRESSED_TYPE, camera_frame
from fastdrive_node.types import CameraFrame

ROOT = Path(__file__).resolve().parents[2]
RANDOM = np.random.default_rng(0)
BAGS = [ROOT / "samples" / "city", ROOT.parent / "shared" / "data" / "nuscenes_scene0103_mcap"]
CHECKS = ("dark", "saturated", "flat", "noise", "frozen", "size", "camera_info")


def picture(size=(90, 160)) -> np.ndarray:
    """Steps of 16 pixels of random brightness."""
    steps = RANDOM.integers(20, 230, (size[0] // 16 + 1, size[1] // 16 + 1, 3), dtype=np.uint8)
    return steps.repeat(16, axis=0).repeat(16, axis=1)[: size[0], : size[1]]


def noise(size=(90, 160)) -> np.ndarray:
    return RANDOM.integers(0, 256, (*size, 3), dtype=np.uint8)


def codes(
    health: ImageHealth,
    image: np.ndarray,
    stamp_ns: int = 1,
    speed_mps: float = 8.0,
    expected_size: tuple[int, int] | None = None,
    size: tuple[int, int] | None = None,
) -> list[str]:
    frame = CameraFrame("CAM_FRONT", stamp_ns, stamp_ns, lambda: image, expected_size=expected_size)
    return [
        line.partition(":")[0]
        for line in health.check([(frame, LoadedImage(image, size or image.shape[:2]))], speed_mps)
    ]


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (np.zeros((90, 160, 3), np.uint8), "dark"),
        (np.full((1, 1, 3), 255, np.uint8), "saturated"),
        (np.full((90, 160, 3), 128, np.uint8), "flat"),
        (np.full((1, 1, 3), 128, np.uint8), "flat"),
        (noise(), "noise"),
        (noise() // 8 + 100, "noise"),
    ],
)
def test_an_image_that_shows_nothing_is_told_with_its_camera(image, name):
    assert codes(ImageHealth(ImageLimits()), image) == [f"image.{name}"]
    with pytest.raises(ImageError, match=r"^CAM_FRONT: ") as caught:
        codes(ImageHealth(ImageLimits(**{f"{name}_check": "refuse"})), image)
    assert caught.value.code == f"image.{name}"
    assert f"image.{name}" not in codes(ImageHealth(ImageLimits(**{f"{name}_check": "off"})), image)


def test_a_check_that_is_off_leaves_the_others():
    black = np.zeros((90, 160, 3), np.uint8)
    assert codes(ImageHealth(ImageLimits(dark_check="off")), black) == ["image.flat"]
    assert not codes(ImageHealth(ImageLimits(**{f"{name}_check": "off" for name in CHECKS})), black)


def test_pictures_are_not_noise_whatever_their_contrast():
    for contrast in (1, 4, 16):
        assert codes(ImageHealth(ImageLimits()), picture() // contrast + 20) == []


@pytest.mark.parametrize("path", BAGS, ids=lambda path: path.name)
def test_no_image_of_a_drive_is_told(path):
    if not path.exists():
        pytest.skip("the shared test data is not there")
    bag, health = Bag.open(path), ImageHealth(ImageLimits(frozen_check="off"))
    topics = [topic for topic, kind in bag.types.items() if kind == COMPRESSED_TYPE]
    for message in [*bag.messages(topics)][::5]:
        frame = camera_frame(message.topic, message.raw, message.stamp_ns, compressed=True)
        assert not health.check([(frame, load_image(frame))], 8.0)


def test_equal_images_of_a_moving_vehicle_are_frozen():
    image, health = picture(), ImageHealth(ImageLimits())
    assert [codes(health, image, stamp) for stamp in range(1, 5)] == [[], [], ["image.frozen"], ["image.frozen"]]
    assert codes(health, picture(), 5) == []


@pytest.mark.parametrize(("stamps", "speed"), [(range(1, 6), 0.0), ([1] * 5, 8.0)])
def test_equal_images_of_a_standing_vehicle_or_of_one_stamp_are_none(stamps, speed):
    image, health = picture(), ImageHealth(ImageLimits())
    assert not any(codes(health, image, stamp, speed) for stamp in stamps)


def test_a_size_that_changes_is_told_once():
    health = ImageHealth(ImageLimits())
    assert [codes(health, picture(size), number) for number, size in enumerate([(90, 160), (160, 90), (160, 90)])] == [
        [],
        ["image.size"],
        [],
    ]


def test_a_size_that_is_not_that_of_the_camera_info_is_told_of_every_image():
    health = ImageHealth(ImageLimits())
    for stamp in (1, 2):
        assert codes(health, picture(), stamp, expected_size=(160, 90)) == ["image.camera_info"]
    assert codes(health, picture(), 3, expected_size=(90, 160)) == []


def test_the_size_is_that_of_the_camera_not_that_of_the_part_that_was_decoded():
    health = ImageHealth(ImageLimits())
    assert codes(health, picture((225, 400)), 1, expected_size=(900, 1600), size=(900, 1600)) == []
    assert codes(health, picture((225, 400)), 2, size=(450, 800)) == ["image.size"]
