"""Frame sets from another process, with small images."""

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")

from benchmarks.robustness.reception import measure


def test_sets_of_another_process_are_counted_and_their_times_are_those_of_the_last_image():
    figures = measure(hz=20.0, seconds=0.5, size=(16, 12))
    assert figures["sent_sets"] == 10 and 0 < figures["planned_sets"] <= 10
    assert 0 < figures["complete_ms"]["p50"] <= figures["complete_ms"]["worst"]
    assert 0 <= figures["first_to_last_image_ms_p50"] <= figures["complete_ms"]["worst"]
