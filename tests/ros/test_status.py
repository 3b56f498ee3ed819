"""~/output/status and the fallback of ``on_refusal``, over real topics."""

from __future__ import annotations

import json

import pytest

from tests.ros.conftest import RECORDS, connected, next_record, values

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from nav_msgs.msg import Path
from rclpy.qos import DurabilityPolicy, QoSProfile
from trajectory_msgs.msg import MultiDOFJointTrajectory

from fastdrive_node.record import PlanRecord
from fastdrive_node.ros.messages import stamp_ns

STATUS = "/fastdrive/output/status"
# deep enough that a test which reads late finds every message; readers elsewhere need the newest alone
LATCHED = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
PATH = "/fastdrive/output/path"


def until_mode(rig, mode: str, code: str = "") -> DiagnosticStatus:
    """The first status from now on with this mode and code."""
    seen = rig.messages[STATUS]
    start = len(seen)

    def found():
        return [each for each in seen[start:] if values(each)["mode"] == mode and code in values(each)["code"]]

    return rig.wait(found, f"status {mode} {code}")[0]


def watched(rig):
    rig.listen(DiagnosticStatus, STATUS, LATCHED)
    return rig


def test_the_status_follows_the_lifecycle_and_a_late_reader_gets_it(rig):
    rig = watched(rig(start=False))
    status = until_mode(rig, "inactive", "unconfigured")
    assert (status.level, status.name) == (DiagnosticStatus.WARN, "fastdrive: status")
    rig.call(rig.node.start)
    assert until_mode(rig, "starting").level == DiagnosticStatus.WARN
    rig.call(rig.node.trigger_deactivate)
    assert until_mode(rig, "inactive", "inactive").message.startswith("inactive")


def test_a_configure_that_fails_is_a_fault_with_its_reason(rig):
    rig = watched(rig(start=False, trajectory_type="autoware"))
    if rig.call(rig.node.start):
        pytest.skip("autoware_planning_msgs is installed")
    status = until_mode(rig, "fault", "configure")
    assert status.level == DiagnosticStatus.ERROR and "autoware_planning_msgs" in status.message


def test_a_plan_is_nominal_and_silence_is_refusing_in_status_record_and_diagnostics(rig):
    rig = watched(connected(rig(diagnostics_period_s=0.1)))
    rig.listen(DiagnosticArray, "/diagnostics")
    t0 = rig.now_ns()
    rig.send_set(t0)
    next_record(rig, 1)
    nominal = values(until_mode(rig, "nominal"))
    assert nominal["last_t0_ns"] == str(t0) and nominal["cam_front.state"] == "ok" and nominal["plans"] == "1"
    status = until_mode(rig, "refusing", "no_images")
    assert status.level == DiagnosticStatus.ERROR and "no image of any camera" in status.message

    def planner():
        return next(s for s in rig.messages["/diagnostics"][-1].status if s.name == "fastdrive: planner")

    rig.wait(lambda: planner().level == DiagnosticStatus.ERROR, "the planner's ERROR")
    modes = [record for message in rig.messages[RECORDS] if (record := json.loads(message.data))["kind"] == "mode"]
    told = [(each["mode"], each["fallback"]) for each in modes]
    assert ("nominal", "none") in told and told[-1] == ("refusing", "none")  # "degraded" may come between


def test_a_planner_that_hangs_is_told_while_it_hangs(rig):
    rig = watched(connected(rig(planning_deadline_s=0.2)))
    rig.planner.hold.clear()
    rig.send_set(rig.now_ns())
    assert until_mode(rig, "refusing", "planning_deadline").level == DiagnosticStatus.ERROR
    assert float(values(rig.messages[STATUS][-1])["planning_s"]) > 0.2


def test_brake_is_a_stop_along_the_last_path_while_no_plan_comes(rig):
    rig = watched(connected(rig(on_refusal="brake", brake_decel_mps2=2.0, max_odometry_age_s=5.0)))
    paths = rig.listen(Path, PATH)
    rig.send_set(rig.now_ns(), speed=4.0)
    next_record(rig, 1)
    rig.wait(lambda: paths, "the plan")
    rig.planner.refuse = True
    for count in (2, 3):
        rig.send_set(rig.now_ns(), speed=4.0)
        next_record(rig, count)
    assert values(until_mode(rig, "refusing", "answer"))["fallback"] == "brake"
    rig.wait(lambda: len(paths) > 3, "stops")
    stop = paths[-1]
    # at rest after 2 s and 4 m; odometry that is missing for a moment is carried on at constant speed
    assert [pose.pose.position.x for pose in stop.poses] == pytest.approx([1.75, 3.0, 3.75, 4.0], abs=1e-6)
    assert abs(stamp_ns(stop.header.stamp) - rig.now_ns()) < 5e9
    # every stop is announced by its stamp, and no plan is
    stops = {str(stamp_ns(path.header.stamp)) for path in paths[1:-1]}

    def told(name: str) -> set[str | None]:
        return {values(each).get(name) for each in rig.messages[STATUS]}

    rig.wait(lambda: stops <= told("fallback_stamp_ns"), f"status with each of {stops}")
    assert told("last_stamp_ns") - {None} == {str(stamp_ns(paths[0].header.stamp))}


def test_empty_is_an_empty_path_and_trajectory_with_the_stamp(rig):
    rig = watched(connected(rig(on_refusal="empty")))
    paths = rig.listen(Path, PATH)
    trajectories = rig.listen(MultiDOFJointTrajectory, "/fastdrive/output/trajectory")
    rig.planner.refuse = True
    t0 = rig.now_ns()
    rig.send_set(t0)
    rig.wait(lambda: len(paths) > 1 and trajectories, "empty messages")
    assert stamp_ns(paths[0].header.stamp) == t0 and not any(path.poses for path in paths)
    assert paths[0].header.frame_id == "base_link" and not trajectories[0].points
    assert values(until_mode(rig, "refusing", "answer"))["fallback"] == "empty"


def test_a_compensated_plan_is_stamped_when_it_is_published_and_the_record_has_both_stamps(rig):
    rig = connected(rig(compensate=True, max_odometry_age_s=5.0))
    paths = rig.listen(Path, PATH)
    rig.planner.delay_s = 0.2
    t0 = rig.now_ns()
    rig.send_set(t0)
    record = next_record(rig, 1)
    rig.wait(lambda: paths, "the plan")
    assert record["t0_ns"] == t0 and record["stamp_ns"] == stamp_ns(paths[0].header.stamp) >= t0 + 200_000_000
    # 8 m/s straight on: what is left of the plan starts 4 m ahead again, and one point fewer is left
    assert [pose.pose.position.x for pose in paths[0].poses] == pytest.approx([4.0, 8.0, 12.0, 16.0, 20.0], abs=1e-6)
    assert PlanRecord.from_dict(record).line()["stamp_ns"] == record["stamp_ns"]
