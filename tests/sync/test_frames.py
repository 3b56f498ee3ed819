"""Six streams to frame sets: completeness, order, loss, loops, ages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdrive_node.errors import InputError
from fastdrive_node.sync.frames import DEPTH, FrameBuffer, FrameLimits
from fastdrive_node.types import CAMERAS, CameraFrame, FrameSet, Refusal

MS = 1_000_000
START = 1_533_151_603_000 * MS


def frame(camera: str, stamp_ms: float, received_ms: float | None = None) -> CameraFrame:
    stamp = START + round(stamp_ms * MS)
    received = stamp if received_ms is None else START + round(received_ms * MS)
    return CameraFrame(camera, stamp, received, lambda: np.zeros((2, 2, 3), np.uint8))


def now(ms: float) -> int:
    return START + round(ms * MS)


def add_round(buffer: FrameBuffer, at_ms: float, skip: tuple[str, ...] = (), step_ms: float = 8) -> list[FrameSet]:
    found = [buffer.add(frame(c, at_ms + step_ms * i)) for i, c in enumerate(CAMERAS) if c not in skip]
    return [frames for frames in found if frames]


def test_a_set_is_complete_with_the_last_camera_and_stamped_with_the_oldest_exposure():
    buffer = FrameBuffer(CAMERAS)
    for index, camera in enumerate(reversed(CAMERAS)):
        found = buffer.add(frame(camera, 10 * index))
        assert (found is not None) == (index == 5)
    taken = buffer.take(now(60))
    assert taken is found
    assert taken.t0_ns == now(0)
    assert tuple(f.camera for f in taken.frames) == CAMERAS
    assert taken.spread_s == pytest.approx(0.05)
    assert buffer.take(now(60)) is None


def test_a_wider_spread_than_allowed_is_not_a_set_until_the_laggard_catches_up():
    buffer = FrameBuffer(CAMERAS)
    buffer.add(frame("CAM_FRONT", 0))
    for camera in CAMERAS[1:]:
        assert buffer.add(frame(camera, 151)) is None
    assert buffer.add(frame("CAM_FRONT", 140)).t0_ns == now(140)


def test_the_newest_set_wins_and_the_superseded_one_is_reported():
    buffer = FrameBuffer(CAMERAS)
    add_round(buffer, 0)
    add_round(buffer, 500)
    assert buffer.take(now(560)).t0_ns == now(500)
    (report,) = buffer.drain_reports()
    assert (report.t0_ns, report.stage) == (now(0), "superseded")
    assert (buffer.counters.sets, buffer.counters.superseded) == (2, 1)


def test_a_stale_set_is_refused_naming_the_oldest_camera():
    buffer = FrameBuffer(CAMERAS, FrameLimits(max_age_s=1.0))
    add_round(buffer, 0)
    refusal = buffer.take(now(1001))
    assert isinstance(refusal, Refusal)
    assert "stale: CAM_FRONT is 1.00 s old" in refusal.reason
    assert buffer.counters.refused == 1


def test_a_set_from_the_future_is_refused():
    buffer = FrameBuffer(CAMERAS)
    add_round(buffer, 5000)
    refusal = buffer.take(now(0))
    assert "CAM_FRONT_LEFT is stamped 5.04 s ahead" in refusal.reason


def test_frames_out_of_order_still_make_their_set():
    buffer = FrameBuffer(CAMERAS)
    add_round(buffer, 0, skip=("CAM_BACK",))
    add_round(buffer, 500, skip=("CAM_BACK", "CAM_FRONT"))
    assert buffer.add(frame("CAM_BACK", 24)).t0_ns == now(0)
    buffer.add(frame("CAM_BACK", 524))
    assert buffer.add(frame("CAM_FRONT", 500)).t0_ns == now(500)


def test_a_camera_with_a_long_delay_is_paired_with_its_own_round():
    buffer = FrameBuffer(CAMERAS)
    spreads = []
    for k in range(12):
        found = add_round(buffer, 100 * k, skip=("CAM_BACK",))
        if k >= 2 and (late := buffer.add(frame("CAM_BACK", 100 * (k - 2) + 24))):
            found.append(late)
        spreads += [frames.spread_s for frames in found]
    assert len(spreads) == 10
    assert max(spreads) == pytest.approx(0.04)


def test_duplicates_are_ignored_and_counted():
    buffer = FrameBuffer(CAMERAS)
    for _ in range(2):
        buffer.add(frame("CAM_BACK", 0))
    add_round(buffer, 0)
    assert buffer.add(frame("CAM_FRONT", 0)) is None
    assert buffer.counters.duplicates == 2
    assert buffer.counters.sets == 1


def test_a_late_frame_never_makes_an_older_set():
    buffer = FrameBuffer(CAMERAS)
    add_round(buffer, 500)
    assert add_round(buffer, 300) == []
    assert buffer.counters.late == 6


def test_after_a_lost_frame_the_cameras_do_not_stay_one_round_apart():
    buffer = FrameBuffer(CAMERAS)
    add_round(buffer, 0)
    add_round(buffer, 100, skip=("CAM_FRONT",))
    for k in range(2, 6):
        found = add_round(buffer, 100 * k)
    assert found[-1].spread_s == pytest.approx(0.04)


def test_a_jump_back_in_time_starts_anew():
    buffer = FrameBuffer(CAMERAS)
    add_round(buffer, 10_000)
    (again,) = add_round(buffer, 0)
    assert again.t0_ns == now(0)
    assert buffer.counters.resets == 1
    assert [report.stage for report in buffer.drain_reports()] == ["superseded"]


def test_a_clock_that_jumps_after_the_first_frames_of_a_loop_does_not_lose_them():
    buffer = FrameBuffer(CAMERAS)
    add_round(buffer, 10_000)
    buffer.take(now(10_000))
    buffer.add(frame("CAM_FRONT", 0))
    buffer.reset(keep_until_ns=now(20))
    assert add_round(buffer, 0, skip=("CAM_FRONT",))[0].t0_ns == now(0)


def test_a_clock_that_jumps_after_a_whole_set_of_a_loop_does_not_plan_it_twice():
    buffer = FrameBuffer(CAMERAS)
    add_round(buffer, 10_000)
    buffer.take(now(10_000))
    add_round(buffer, 0)
    buffer.reset(keep_until_ns=now(50))
    assert buffer.take(now(50)).t0_ns == now(0)
    assert buffer.counters.superseded == 0
    buffer.reset(keep_until_ns=now(60))
    assert buffer.take(now(60)) is None
    assert add_round(buffer, 500)[0].t0_ns == now(500)


def test_a_clock_that_jumps_first_forgets_the_frames_of_the_future():
    buffer = FrameBuffer(CAMERAS)
    add_round(buffer, 10_000, skip=("CAM_BACK",))
    buffer.reset(keep_until_ns=now(0))
    assert buffer.add(frame("CAM_BACK", 10_024)) is None
    assert add_round(buffer, 0)[0].t0_ns == now(0)


def test_a_missing_camera_is_named_after_the_timeout_and_the_next_set_is_not_affected():
    buffer = FrameBuffer(CAMERAS, FrameLimits(missing_timeout_s=0.3))
    add_round(buffer, 0)
    buffer.take(now(50))
    add_round(buffer, 500, skip=("CAM_BACK",))
    buffer.expire(now(839))
    assert not buffer.reports
    buffer.expire(now(841))
    (report,) = buffer.drain_reports()
    assert report.t0_ns == now(500)
    assert "CAM_BACK missing (its last is 0.48 s before t0)" in report.reason
    assert report.stage == "frames"
    assert add_round(buffer, 1000)[0].spread_s == pytest.approx(0.04)


def test_a_camera_that_never_came_is_named():
    buffer = FrameBuffer(CAMERAS)
    add_round(buffer, 0, skip=("CAM_BACK_LEFT",))
    buffer.expire(now(1000))
    assert "CAM_BACK_LEFT missing (none yet)" in buffer.drain_reports()[0].reason


def test_degraded_mode_plans_with_a_black_image_and_names_it():
    buffer = FrameBuffer(CAMERAS, FrameLimits(max_missing_cameras=1))
    add_round(buffer, 0, skip=("CAM_BACK",))
    found = buffer.expire(now(400))
    assert buffer.take(now(400)) is found
    assert found.missing == ("CAM_BACK",)
    black = found.frames[CAMERAS.index("CAM_BACK")].load()
    assert black.dtype == np.uint8 and black.shape[2] == 3 and not black.any()
    assert found.spread_s == pytest.approx(0.04)
    assert buffer.counters.degraded == 1


def test_a_late_camera_after_a_degraded_set_never_makes_an_older_one():
    buffer = FrameBuffer(CAMERAS, FrameLimits(max_missing_cameras=1))
    add_round(buffer, 0, skip=("CAM_BACK",))
    assert buffer.expire(now(400)).t0_ns == now(0)
    assert buffer.add(frame("CAM_BACK", -1)) is None
    assert add_round(buffer, 90, skip=("CAM_BACK",)) == []


def test_frames_of_one_camera_out_of_order_are_given_up_oldest_first():
    buffer = FrameBuffer(CAMERAS[:2], FrameLimits(max_spread_s=0.05))
    for stamp_ms in (400, 100, 300):
        buffer.add(frame("CAM_FRONT", stamp_ms))
    buffer.expire(now(1000))
    assert [report.t0_ns for report in buffer.drain_reports()] == [now(100), now(300), now(400)]


def test_degraded_mode_has_a_limit():
    buffer = FrameBuffer(CAMERAS, FrameLimits(max_missing_cameras=1))
    add_round(buffer, 0, skip=("CAM_BACK", "CAM_FRONT"))
    assert buffer.expire(now(400)) is None
    assert "CAM_FRONT missing" in buffer.drain_reports()[0].reason


def test_a_dead_camera_does_not_hold_frames_for_ever():
    buffer = FrameBuffer(CAMERAS, FrameLimits(missing_timeout_s=60.0))
    for k in range(50):
        add_round(buffer, 500 * k, skip=("CAM_BACK",))
    assert max(len(stream.frames) for stream in buffer._streams.values()) <= DEPTH
    assert len(buffer.drain_reports()) == 50 - DEPTH


def test_ages_and_rates_are_those_of_each_camera():
    buffer = FrameBuffer(CAMERAS)
    for k in range(5):
        buffer.add(frame("CAM_FRONT", 100 * k))
    status = buffer.status(now(500))
    assert status["CAM_FRONT"].age_s == pytest.approx(0.1)
    assert status["CAM_FRONT"].rate_hz == pytest.approx(10.0)
    assert status["CAM_BACK"].age_s is None and status["CAM_BACK"].rate_hz == 0.0


def test_an_unknown_camera_is_an_input_error():
    with pytest.raises(InputError, match="CAM_ROOF: not a camera of the model"):
        FrameBuffer(CAMERAS).add(frame("CAM_ROOF", 0))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(CAMERAS[:3]), st.integers(0, 40), st.booleans()),
        max_size=120,
    )
)
def test_whatever_arrives_sets_are_complete_narrow_newer_and_counted(events):
    limits = FrameLimits(max_spread_s=0.15, max_age_s=100.0, max_ahead_s=100.0)
    buffer = FrameBuffer(CAMERAS[:3], limits)
    taken, reports, time_ms = [], [], 0
    for camera, late_ms, take in events:
        time_ms += 20
        buffer.add(frame(camera, time_ms - late_ms * 10, received_ms=time_ms))
        buffer.expire(now(time_ms))
        reports += buffer.drain_reports()
        if take and (found := buffer.take(now(time_ms))):
            taken.append(found)
    for found in taken:
        assert tuple(f.camera for f in found.frames) == CAMERAS[:3]
        assert found.spread_s <= limits.max_spread_s
    stamps = [found.t0_ns for found in taken]
    assert stamps == sorted(set(stamps))
    superseded = [report for report in reports if report.stage == "superseded"]
    assert buffer.counters.sets == len(taken) + len(superseded) + (buffer.pending is not None)
