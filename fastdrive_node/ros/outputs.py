"""Publishers of the node. ``publish`` runs in the worker's thread."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from nav_msgs.msg import Path
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import Header, String
from visualization_msgs.msg import MarkerArray

from fastdrive_node.planning.motion import Motion, motion_of
from fastdrive_node.record import PlanRecord
from fastdrive_node.ros.markers import marker_array
from fastdrive_node.ros.messages import (
    image_message,
    path_message,
    time_message,
    time_messages,
)
from fastdrive_node.ros.parameters import Settings
from fastdrive_node.ros.qos import RECORDS, QosLog, advertise
from fastdrive_node.ros.trajectories import trajectory_output
from fastdrive_node.sync.outcomes import Outcome
from fastdrive_node.types import SUPERSEDED, EgoState, FrameSet, Plan

RECORDS_TOPIC = "~/output/plan_json"


class Outputs:
    """Path, trajectory, record, markers, overlays and times.

    Raises:
        ModelError: the messages of ``trajectory_type`` are not installed.
    """

    def __init__(self, node: Node, cameras: Sequence[str], settings: Settings, log: QosLog):
        self._node = node
        self._frame = settings.base_frame
        self._vehicle = settings.vehicle()
        self._trajectories = trajectory_output(settings)
        self._path = advertise(node, log, Path, "~/output/path")
        self._trajectory = advertise(node, log, self._trajectories.kind, "~/output/trajectory")
        self._records = advertise(node, log, String, RECORDS_TOPIC, RECORDS)
        self._markers = advertise(node, log, MarkerArray, "~/debug/markers")
        time_type, self._time_message = time_messages()
        self._times = {
            name: advertise(node, log, time_type, f"~/debug/{name}")
            for name in ("processing_time_ms", "pipeline_latency_ms", "cyclic_time_ms")
        }
        self._overlays = {
            camera: advertise(node, log, Image, f"~/debug/overlay/{camera.lower()}") for camera in cameras
        }
        self._last_plan_at: float | None = None

    def publish_record(self, values: dict) -> None:
        """A record that is not of a frame set."""
        self._records.publish(String(data=json.dumps(values)))

    def publish_fallback(self, plan: Plan | None, ego: EgoState | None, stamp_ns: int) -> None:
        """A plan that no model made, as path and trajectory; None: an empty path and trajectory with the stamp."""
        if plan is not None:
            self._publish_motion(plan, motion_of(plan.waypoints_m, plan.dt_s), ego)
            return
        stamp = Header(stamp=time_message(stamp_ns), frame_id=self._frame)
        self._path.publish(Path(header=stamp))
        self._trajectory.publish(self._trajectories.empty(stamp))

    def readers(self) -> int:
        """Matched subscriptions of the records."""
        return self._records.get_subscription_count()

    def publish(self, outcome: Outcome) -> None:
        """Everything that an outcome gives; a superseded set gives its record only."""
        result = outcome.result
        motion = None
        if isinstance(result, Plan):
            motion = motion_of(result.waypoints_m, result.dt_s)
            self._publish_plan(result, motion, outcome)
        latency_ms = (self._node.get_clock().now().nanoseconds - result.t0_ns) * 1e-6
        self._records.publish(String(data=json.dumps(PlanRecord.of_outcome(outcome, latency_ms).to_dict())))
        if isinstance(result, Plan):
            self._publish_time("pipeline_latency_ms", latency_ms)
        if (isinstance(result, Plan) or result.stage != SUPERSEDED) and self._markers.get_subscription_count():
            self._markers.publish(marker_array(result, self._frame, self._vehicle, motion))
        if isinstance(result, Plan) and outcome.frames is not None:
            self._publish_overlays(result, outcome.frames)

    def destroy(self) -> None:
        publishers = [self._path, self._trajectory, self._records, self._markers]
        for publisher in [*publishers, *self._times.values(), *self._overlays.values()]:
            self._node.destroy_publisher(publisher)

    def _publish_plan(self, plan: Plan, motion: Motion, outcome: Outcome) -> None:
        self._publish_motion(plan, motion, outcome.ego_at_stamp)
        self._publish_time("processing_time_ms", outcome.planning_ms)
        now = time.monotonic()
        if self._last_plan_at is not None:
            self._publish_time("cyclic_time_ms", (now - self._last_plan_at) * 1e3)
        self._last_plan_at = now

    def _publish_time(self, name: str, milliseconds: float) -> None:
        self._times[name].publish(self._time_message(milliseconds, self._node.get_clock().now().to_msg()))

    def _publish_motion(self, plan: Plan, motion: Motion, ego: EgoState | None) -> None:
        self._path.publish(path_message(plan, motion, self._frame))
        if (trajectory := self._trajectories.message(plan, ego)) is not None:
            self._trajectory.publish(trajectory)

    def _publish_overlays(self, plan: Plan, frames: FrameSet) -> None:
        wanted = [camera for camera, publisher in self._overlays.items() if publisher.get_subscription_count()]
        if not wanted or plan.kept is None:
            return
        from fastdrive_node.visualization.overlay import overlay

        masks = plan.kept.masks()
        scores = None if plan.kept.scores is None else plan.kept.by_image(plan.kept.scores)
        for index, frame in enumerate(frames.frames):
            if frame.camera in wanted:
                image = overlay(frame.load(), masks[index], None if scores is None else scores[index])
                self._overlays[frame.camera].publish(image_message(image, frame.stamp_ns, frame.camera))
