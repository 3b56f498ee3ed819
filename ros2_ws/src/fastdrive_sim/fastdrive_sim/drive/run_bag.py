"""A rosbag2 (MCAP) of a recorded run, for Foxglove, RViz and other tools; docs/closed_loop.md has its topics.

It holds the lines of the run's file too, so that a bag alone can be scored.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.interfaces import QosDurability
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from fastdrive_node.errors import InputError, SimError
from fastdrive_sim.bag import (
    EPOCH_NS,
    camera_info_message,
    connect,
    header_message,
    image_message,
    image_topic,
    odometry_message,
    rig_message,
)
from fastdrive_sim.drive.film import Film
from fastdrive_sim.drive.storage import lines
from fastdrive_sim.drive.types import EgoStep, Other, PlanStep, RunRecord, RunStep
from fastdrive_sim.geometry import quaternion_of_yaw, to_ego
from fastdrive_sim.types import Camera, EgoPose

RECORD_TOPIC = "/drive/record"
PATH_TOPIC, OBJECTS_TOPIC = "/fastdrive/output/path", "/ground_truth/objects"
_STORE = get_typestore(Stores.ROS2_JAZZY)
_TYPE: dict[str, Any] = _STORE.types
_TOPICS = {
    "/tf": "tf2_msgs/msg/TFMessage",
    "/odom": "nav_msgs/msg/Odometry",
    "/driving_command": "std_msgs/msg/String",
    PATH_TOPIC: "nav_msgs/msg/Path",
    OBJECTS_TOPIC: "visualization_msgs/msg/MarkerArray",
    RECORD_TOPIC: "std_msgs/msg/String",
}
SIZE = (448, 252)  # of rendered images, width and height
_CUBE = 1  # visualization_msgs/Marker
Messages = Iterator[tuple[float, str, Any]]  # time, topic, message


def write_run_bag(
    run: RunRecord, out: Path, cameras: Sequence[Camera] = (), size: tuple[int, int] = SIZE, anew: bool = False
) -> None:
    """Write the bag of a run; the folder appears when it is whole.

    Args:
        cameras: rendered anew, at the planning ticks; none by default.
        size: of their images, width and height.
        anew: in place of a bag that is there, which goes when the new one is whole.

    Raises:
        SimError: ``out`` exists, or the machine cannot render.
    """
    if out.exists() and not anew:
        raise SimError(f"{out}: exists already; give a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as partial:
        folder = Path(partial) / out.name  # rosbag2 names the file within after its folder
        with Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            _write(writer, run, cameras, size)
        if out.exists():
            shutil.rmtree(out)
        folder.rename(out)


def has_images(bag: Path, cameras: Sequence[Camera]) -> bool:
    """Whether a bag has images of these cameras; one that is damaged has none."""
    try:
        with Reader(bag) as reader:
            topics = {each.topic for each in reader.connections}
    except Exception:  # of many kinds
        return False
    return topics >= {image_topic(camera.name, "raw") for camera in cameras}


def read_run_lines(bag: Path) -> list[str]:
    """The lines of the run's file from its bag. Raises InputError where they are not there."""
    try:
        with Reader(bag) as reader:
            chosen = [each for each in reader.connections if each.topic == RECORD_TOPIC]
            found = [
                str(_STORE.deserialize_cdr(raw, each.msgtype).data)  # pyright: ignore[reportAttributeAccessIssue]
                for each, _, raw in reader.messages(connections=chosen)
            ]
    except Exception as error:  # of many kinds, for a folder that is no bag and for a damaged one
        raise InputError(f"{bag}: not a readable rosbag2 ({error})") from error
    if not found:
        raise InputError(f"{bag}: no messages on {RECORD_TOPIC}; give a bag of `fastdrive sim drive`")
    kinds = [json.loads(line)["type"] for line in found]
    return [line for kind in ("run", "step", "plan") for line, each in zip(found, kinds, strict=True) if each == kind]


def _write(writer: Writer, run: RunRecord, cameras: Sequence[Camera], size: tuple[int, int]) -> None:
    static = connect(writer, "/tf_static", "tf2_msgs/msg/TFMessage", QosDurability.TRANSIENT_LOCAL)
    connections = {topic: connect(writer, topic, kind) for topic, kind in _TOPICS.items()}
    for camera in cameras:
        topic = image_topic(camera.name, "raw")
        connections[topic] = connect(writer, topic, "sensor_msgs/msg/Image")
        info = f"/{camera.name}/camera_info"
        connections[info] = connect(writer, info, "sensor_msgs/msg/CameraInfo")
    writer.write(static, EPOCH_NS, _STORE.serialize_cdr(rig_message(cameras, EPOCH_NS), static.msgtype))
    found = [*_record(run), *_states(run), *_plans(run), *(_images(run, cameras, size) if cameras else ())]
    for order, (time_s, topic, message) in enumerate(sorted(found, key=lambda each: each[0])):
        connection = connections[topic]
        # 1 ns apart, so that every reader keeps their order
        writer.write(connection, _ns(time_s) + order + 1, _STORE.serialize_cdr(message, connection.msgtype))


def _ns(time_s: float) -> int:
    return EPOCH_NS + round(time_s * 1e9)


def _record(run: RunRecord) -> Messages:
    latest: dict[str, float] = {}  # by type of the line, so that lines of one type keep their order
    for line in lines(run):
        values = json.loads(line)
        kind, at = values["type"], float(values.get("time_s", 0.0))
        latest[kind] = max(latest.get(kind, 0.0), at)
        yield latest[kind], RECORD_TOPIC, _TYPE["std_msgs/msg/String"](data=line)


def _states(run: RunRecord) -> Messages:
    start = _pose(run.steps[0].ego) if run.steps else EgoPose(0, 0, 0, 0)
    command = ""
    for step in run.steps:
        at, stamp_ns = step.time_s, _ns(step.time_s)
        odometry = odometry_message(_pose(step.ego), start, stamp_ns)
        yield at, "/odom", odometry
        yield at, "/tf", _transform(odometry)
        yield at, OBJECTS_TOPIC, _markers(step, start, stamp_ns)
        if step.command != command:
            command = step.command
            yield at, "/driving_command", _TYPE["std_msgs/msg/String"](data=command)


def _plans(run: RunRecord) -> Messages:
    start = _pose(run.steps[0].ego) if run.steps else EgoPose(0, 0, 0, 0)
    for plan in run.plans:
        if plan.used_from_s is not None:
            yield plan.used_from_s, PATH_TOPIC, _path(plan, start)


def _images(run: RunRecord, cameras: Sequence[Camera], size: tuple[int, int]) -> Messages:
    ticks = {round(plan.time_s, 3) for plan in run.plans}
    with Film(run, cameras, size) as film:
        for step in run.steps:
            if round(step.time_s, 3) not in ticks:
                continue
            views = film.render(step)
            for camera, rgb in zip(cameras, views, strict=True):
                header = header_message(_ns(step.time_s), camera.name)
                yield step.time_s, image_topic(camera.name, "raw"), image_message(header, rgb)
                yield step.time_s, f"/{camera.name}/camera_info", camera_info_message(header, camera, *size)


def _pose(ego: EgoStep) -> EgoPose:
    return EgoPose(ego.x, ego.y, ego.yaw, ego.speed, ego.accel, ego.yaw_rate)


def _transform(odometry: Any) -> Any:
    place, geometry = odometry.pose.pose.position, "geometry_msgs/msg/"
    translation = _TYPE[f"{geometry}Vector3"](x=place.x, y=place.y, z=place.z)
    transform = _TYPE[f"{geometry}Transform"](translation=translation, rotation=odometry.pose.pose.orientation)
    stamped = _TYPE[f"{geometry}TransformStamped"](
        header=odometry.header, child_frame_id=odometry.child_frame_id, transform=transform
    )
    return _TYPE["tf2_msgs/msg/TFMessage"](transforms=[stamped])


def _located(start: EgoPose, x: float, y: float, yaw: float) -> Any:
    """geometry_msgs/Pose in the frame ``odom``."""
    local_x, local_y = to_ego(start, np.array([x, y]))
    w, qx, qy, qz = quaternion_of_yaw(yaw - start.yaw)
    return _TYPE["geometry_msgs/msg/Pose"](
        position=_TYPE["geometry_msgs/msg/Point"](x=float(local_x), y=float(local_y), z=0.0),
        orientation=_TYPE["geometry_msgs/msg/Quaternion"](x=qx, y=qy, z=qz, w=w),
    )


def _path(plan: PlanStep, start: EgoPose) -> Any:
    """nav_msgs/Path in ``odom``: the waypoints with their times, stamped with t0."""
    before = np.array([plan.ego.x, plan.ego.y]) if plan.ego is not None else plan.xy[0]
    steps = np.diff(np.concatenate([[before], plan.xy]), axis=0)
    poses = [
        _TYPE["geometry_msgs/msg/PoseStamped"](
            header=header_message(_ns(float(time_s)), "odom"),
            pose=_located(start, float(x), float(y), float(np.arctan2(dy, dx))),
        )
        for (x, y), (dx, dy), time_s in zip(plan.xy, steps, plan.times_s, strict=True)
    ]
    return _TYPE["nav_msgs/msg/Path"](header=header_message(_ns(plan.time_s), "odom"), poses=poses)


def _markers(step: RunStep, start: EgoPose, stamp_ns: int) -> Any:
    markers = [_marker(other, start, stamp_ns) for other in step.others]
    return _TYPE["visualization_msgs/msg/MarkerArray"](markers=markers)


def _marker(other: Other, start: EgoPose, stamp_ns: int) -> Any:
    height = 1.75 if other.kind in ("pedestrian", "cyclist") else 1.6
    pose = _located(start, other.x, other.y, other.yaw)
    pose.position.z = height / 2
    time = _TYPE["builtin_interfaces/msg/Duration"](sec=0, nanosec=200_000_000)
    color = _TYPE["std_msgs/msg/ColorRGBA"](r=0.2, g=0.4, b=0.9, a=0.8)
    scale = _TYPE["geometry_msgs/msg/Vector3"](x=other.length, y=other.width, z=height)
    return _fill_marker(header_message(stamp_ns, "odom"), other, pose, scale, color, time)


def _fill_marker(header: Any, other: Other, pose: Any, scale: Any, color: Any, lifetime: Any) -> Any:
    empty_file = _TYPE["visualization_msgs/msg/MeshFile"](filename="", data=np.zeros(0, np.uint8))
    texture = _TYPE["sensor_msgs/msg/CompressedImage"](header=header, format="", data=np.zeros(0, np.uint8))
    return _TYPE["visualization_msgs/msg/Marker"](
        header=header,
        ns=other.kind,
        id=other.instance,
        type=_CUBE,
        action=0,
        pose=pose,
        scale=scale,
        color=color,
        lifetime=lifetime,
        frame_locked=False,
        points=[],
        colors=[],
        texture_resource="",
        texture=texture,
        uv_coordinates=[],
        text="",
        mesh_resource="",
        mesh_file=empty_file,
        mesh_use_embedded_materials=False,
    )
