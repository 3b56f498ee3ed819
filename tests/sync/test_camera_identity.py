"""The image on a camera's topic is that camera's, or it is told whose."""

from __future__ import annotations

import pytest

from fastdrive_node.errors import EgoStateError, ImageError, InputError
from fastdrive_node.sync.camera_identity import CameraInfo, InputChecks, camera_problems, parse_frame_ids
from fastdrive_node.sync.health import InputLimits
from fastdrive_node.types import CameraFrame, EgoHistory, EgoState, FrameSet

CAMERAS = ("CAM_FRONT", "CAM_BACK")
HISTORY = EgoHistory((EgoState(1, 0, 0, 0, 5.0),))


def frame_set(front: str, back: str, missing: tuple[str, ...] = ()) -> FrameSet:
    ids = zip(CAMERAS, (front, back), strict=True)
    return FrameSet(tuple(CameraFrame(camera, 1, 1, lambda: None, frame_id) for camera, frame_id in ids), 1, missing)


def warnings(checks: InputChecks, frames: FrameSet, limits: InputLimits | None = None, change: str = "") -> list[str]:
    return list(checks.check(frames, HISTORY, limits or InputLimits(), change)[1])


@pytest.mark.parametrize(
    "ids", [("", ""), ("a", "b"), ("camera", "camera"), CAMERAS, ("/cam_front_optical_frame", "x")]
)
def test_frame_ids_that_stay_are_told_of_nothing(ids):
    checks = InputChecks(CAMERAS)
    assert not [line for _ in range(3) for line in warnings(checks, frame_set(*ids))]


@pytest.mark.parametrize(
    "back", ["CAM_FRONT", "cam_front", "/cam_front", "cam_front_optical_frame", "cam_front_link", "Cam_Front_optical"]
)
def test_the_name_of_another_camera_is_told_from_the_first_image_on(back):
    (line,) = warnings(InputChecks(CAMERAS), frame_set("CAM_FRONT", back))
    assert line.startswith("image.frame_id: CAM_BACK: frame_id ") and line.endswith(" is that of CAM_FRONT")


def test_cameras_that_are_swapped_during_the_drive_are_told_with_their_owners():
    checks = InputChecks(CAMERAS)
    assert not warnings(checks, frame_set("lens_1", "lens_2"))
    assert warnings(checks, frame_set("lens_2", "lens_1")) == [
        "image.frame_id: CAM_FRONT: frame_id 'lens_2', not 'lens_1': that of CAM_BACK",
        "image.frame_id: CAM_BACK: frame_id 'lens_1', not 'lens_2': that of CAM_FRONT",
    ]
    assert warnings(checks, frame_set("lens_1", "lens_3")) == [
        "image.frame_id: CAM_BACK: frame_id 'lens_3', not 'lens_2'"
    ]
    assert not warnings(checks, frame_set("lens_1", "lens_2"))


def test_frame_ids_that_are_given_are_expected_from_the_first_image_on():
    limits = InputLimits(frame_ids={"CAM_FRONT": "lens_1", "CAM_BACK": "cam_front"})
    assert not warnings(InputChecks(CAMERAS), frame_set("lens_1", "cam_front"), limits)
    (line,) = warnings(InputChecks(CAMERAS), frame_set("lens_2", "cam_front"), limits)
    assert line.startswith("image.frame_id: CAM_FRONT: frame_id 'lens_2', not 'lens_1'")


def test_the_action_decides_and_a_black_image_in_place_of_a_camera_is_not_looked_at():
    foreign = frame_set("CAM_FRONT", "CAM_FRONT")
    with pytest.raises(ImageError, match=r"^CAM_BACK: ") as caught:
        warnings(InputChecks(CAMERAS), foreign, InputLimits(frame_id="refuse"))
    assert caught.value.code == "image.frame_id"
    assert not warnings(InputChecks(CAMERAS), foreign, InputLimits(frame_id="off"))
    assert not warnings(InputChecks(CAMERAS), frame_set("CAM_FRONT", "CAM_FRONT", missing=("CAM_BACK",)))


def test_camera_info_gives_the_size_and_tells_another_frame_id():
    checks = InputChecks(CAMERAS)
    checks.tell_camera_info("CAM_FRONT", CameraInfo("CAM_FRONT", (90, 160)))
    checks.tell_camera_info("CAM_BACK", CameraInfo("lens_2", (0, 0)))
    frames, lines = checks.check(frame_set("CAM_FRONT", "CAM_BACK"), HISTORY, InputLimits())
    assert [frame.expected_size for frame in frames.frames] == [(90, 160), None]
    assert lines == ("image.camera_info: CAM_BACK: frame_id 'CAM_BACK', and its CameraInfo has 'lens_2'",)


def test_more_than_one_publisher_of_cameras_or_odometry_is_told():
    checks = InputChecks(CAMERAS)
    checks.publishers = {"CAM_FRONT": 1, "CAM_BACK": 2, "odometry": 3, "command": 4}
    assert warnings(checks, frame_set("", "")) == [
        "image.publishers: CAM_BACK: 2 nodes publish its topic",
        "odometry.publishers: 3 nodes publish its topic",
    ]
    with pytest.raises(ImageError, match=r"^CAM_BACK: 2 nodes"):
        warnings(checks, frame_set("", ""), InputLimits(publishers="refuse"))


def test_a_change_of_the_odometrys_frames_is_told_or_refused():
    (line,) = warnings(InputChecks(CAMERAS), frame_set("", ""), change="frame_id 'map' after 'odom'")
    assert line == "odometry.frame: frame_id 'map' after 'odom'"
    with pytest.raises(EgoStateError, match=r"^odometry: frame_id 'map'") as caught:
        warnings(InputChecks(CAMERAS), frame_set("", ""), InputLimits(odometry_frame="refuse"), "frame_id 'map'")
    assert caught.value.code == "odometry.frame"


def test_problems_by_camera_are_read_from_codes_and_texts():
    lines = [
        "image.dark: CAM_BACK: the mean",
        "image.size: CAM_BACK: x",
        "plan.jerk: CAM_FRONT",
        "image: CAM_FRONT: cut",
    ]
    assert camera_problems(lines, CAMERAS) == {"CAM_BACK": "dark"}


def test_frame_ids_are_pairs():
    assert parse_frame_ids("A=x  B=/y/z") == {"A": "x", "B": "y/z"} and parse_frame_ids("") == {}
    for wrong in ("A", "A=", "=x", "A=x A=y", "A=x,B=y"):
        with pytest.raises(InputError, match="is not one frame_id of one camera"):
            parse_frame_ids(wrong)
