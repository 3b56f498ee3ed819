"""RViz markers of a plan, or of the reason why there is none."""

from __future__ import annotations

import math

from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Pose, Vector3
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from fastdrive_node.planning.motion import Motion
from fastdrive_node.ros.messages import duration_message, time_message, yaw_quaternion
from fastdrive_node.types import Plan, Refusal, Vehicle

LIFETIME_S = 2.0  # a plan that is not renewed disappears
_GREEN = ColorRGBA(r=0.28, g=0.81, b=0.68, a=0.9)
_AMBER = ColorRGBA(r=1.0, g=0.77, b=0.24, a=0.9)
_RED = ColorRGBA(r=1.0, g=0.32, b=0.47, a=1.0)


def marker_array(result: Plan | Refusal, frame: str, vehicle: Vehicle, motion: Motion | None = None) -> MarkerArray:
    """The path as a line, a ball at each waypoint, the vehicle at the last one; amber for a degraded plan.

    A refusal is a red text.

    Args:
        motion: of the plan; None for a refusal.
    """
    stamp = time_message(result.stamp_ns if isinstance(result, Plan) else result.t0_ns)
    if isinstance(result, Refusal):
        text = _marker("text", Marker.TEXT_VIEW_FACING, _RED, stamp, frame)
        text.text = f"{result.stage}: {result.reason[:80]}"
        return MarkerArray(markers=[text])
    assert motion is not None
    color = _GREEN if result.mode == "nominal" else _AMBER
    points = [Point(x=float(x), y=float(y), z=0.1) for x, y in result.waypoints_m]
    line = _marker("path", Marker.LINE_STRIP, color, stamp, frame)
    line.scale.x = 0.3
    line.points = [Point(z=0.1), *points]
    balls = _marker("waypoints", Marker.SPHERE_LIST, color, stamp, frame)
    balls.scale = Vector3(x=0.6, y=0.6, z=0.6)
    balls.points = points
    body = _marker("vehicle", Marker.CUBE, color, stamp, frame)
    body.scale = Vector3(x=vehicle.length_m, y=vehicle.width_m, z=0.1)
    x, y = result.waypoints_m[-1]
    yaw_rad = float(motion.headings_rad[-1])
    body.pose.position.x = float(x + vehicle.center_m * math.cos(yaw_rad))
    body.pose.position.y = float(y + vehicle.center_m * math.sin(yaw_rad))
    body.pose.orientation = yaw_quaternion(yaw_rad)
    text = _marker("text", Marker.TEXT_VIEW_FACING, color, stamp, frame)
    text.text = result.mode if result.mode != "nominal" else f"{result.stage_ms.get('total', 0.0):.0f} ms"
    return MarkerArray(markers=[line, balls, body, text])


def _marker(name: str, kind: int, color: ColorRGBA, stamp: Time, frame: str) -> Marker:
    marker = Marker(header=Header(stamp=stamp, frame_id=frame), ns=name, type=kind, action=Marker.ADD)
    marker.color, marker.lifetime, marker.pose = color, duration_message(LIFETIME_S), Pose()
    marker.pose.orientation.w = 1.0
    if kind == Marker.TEXT_VIEW_FACING:
        marker.scale.z, marker.pose.position.z = 0.6, 2.5
    return marker
