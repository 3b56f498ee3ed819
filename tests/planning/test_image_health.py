"""Images that show nothing, or the same again, are told by camera."""

from __future__ import annotations

import numpy as np
import pytest

from fastdrive_node.errors import ImageError
from fastdrive_node.planning.image_health import ImageHealth, ImageLimits

RANDOM = np.random.default_rng(0)


def picture(size=(90, 160)) -> np.ndarray:
    return RANDOM.integers(0, 256, (*size, 3), dtype=np.uint8)


def codes(health: ImageHealth, image: np.ndarray, stamp_ns: int = 1, speed_mps: float = 8.0) -> list[str]:
    return [line.partition(":")[0] for line in health.check({"CAM_FRONT": (stamp_ns, image)}, speed_mps)]


@pytest.mark.parametrize(
    ("image", "code"),
    [(np.zeros((90, 160, 3), np.uint8), "image.dark"), (np.full((1, 1, 3), 255, np.uint8), "image.saturated")],
)
def test_an_image_that_shows_nothing_is_told_with_its_camera(image, code):
    assert codes(ImageHealth(ImageLimits()), image) == [code]
    with pytest.raises(ImageError, match=r"^CAM_FRONT: ") as caught:
        codes(ImageHealth(ImageLimits(action="refuse")), image)
    assert caught.value.code == code
    assert codes(ImageHealth(ImageLimits(action="off")), image) == []


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
