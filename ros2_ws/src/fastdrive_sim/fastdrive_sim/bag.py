"""A rosbag2 of one simulated drive, with the topics that a vehicle would publish.

Images and camera info at the keyframe rate, odometry at 20 Hz, the driving command with each image set, the rig on
``/tf_static``. The frame tree follows REP 105: ``odom`` (the ego pose at the start) -> ``base_link`` (rear axle on the
ground) -> one optical frame per camera, named as the camera.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags.interfaces import Connection, Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from tqdm import tqdm

from fastdrive_node.errors import SimError, UsageError
from fastdrive_sim.geometry import quaternion_of_matrix, quaternion_of_yaw, to_ego
from fastdrive_sim.rig import RIGS
from fastdrive_sim.scenarios import CLOSED_LOOP
from fastdrive_sim.sources import ImageSpec, SourcesFactory, record, simulator_sources
from fastdrive_sim.types import STORAGES, TRANSPORTS, Camera, EgoPose, Snapshot

ODOMETRY_HZ = 20
EPOCH_NS = 1_700_000_000 * 1_000_000_000

_STORE = get_typestore(Stores.ROS2_JAZZY)
_TYPE: dict[str, Any] = _STORE.types  # a message's class by the name of its type
_FOREVER = QosTime(9223372036, 854775807)


@dataclass(frozen=True)
class BagSpec(ImageSpec):
    """What decides a bag's messages."""

    seconds: float
    hz: float
    storage: str = "mcap"
    transport: str = "raw"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scenario == CLOSED_LOOP:
            raise UsageError(f"--scenario {self.scenario}: bags of these come from `fastdrive sim drive --bags`")
        if not 0 < self.seconds <= 3600:
            raise UsageError(f"--seconds {self.seconds:g}: give more than 0, at most 3600")
        if not 0 < self.hz <= ODOMETRY_HZ or abs(ODOMETRY_HZ / self.hz - self.stride) > 1e-6:
            raise UsageError(
                f"--hz {self.hz:g}: image sets are taken from {ODOMETRY_HZ} Hz; give a rate that divides it"
            )
        if self.storage not in STORAGES:
            raise UsageError(f"--storage {self.storage}: give one of {', '.join(STORAGES)}")
        if self.transport not in TRANSPORTS:
            raise UsageError(f"--transport {self.transport}: give one of {', '.join(TRANSPORTS)}")

    @property
    def stride(self) -> int:
        """Odometry messages per image set."""
        return round(ODOMETRY_HZ / self.hz)

    @property
    def steps(self) -> int:
        """Odometry messages in the bag; their times are 0 <= t < seconds."""
        return max(1, int(np.ceil(self.seconds * ODOMETRY_HZ - 1e-6)))


def write_bag(out: Path, spec: BagSpec, factory: SourcesFactory = simulator_sources, progress: bool = True) -> dict:
    """Write a bag and return its counts: ``sets``, ``messages``, and ``topics`` {name: messages}.

    The folder appears when the bag is whole. Raises SimError where ``out`` exists or the world ends early.
    """
    out = Path(out)
    if out.exists():
        raise SimError(f"{out}: exists already; give a new folder")
    sources = factory()
    simulation = sources.simulation(spec.seed, spec.steps / ODOMETRY_HZ, spec.scenario)
    snapshots = record(simulation, spec.steps, ODOMETRY_HZ)
    renderer = sources.renderer(spec.width, spec.height, RIGS[spec.rig])
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        renderer.load(replace(simulation.world, domain=spec.domain))
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as partial:
            folder = Path(partial) / out.name  # rosbag2 names the file within after its folder
            with Writer(folder, version=9, storage_plugin=StoragePlugin[spec.storage.upper()]) as writer:
                recorder = _Recorder(writer, spec, snapshots[0].ego)
                bar = tqdm(snapshots, unit="step", mininterval=1, file=sys.stderr, disable=not progress)
                for step, snapshot in enumerate(bar):
                    images = renderer.render_color(snapshot) if step % spec.stride == 0 else None
                    recorder.add(step, snapshot, images)
            folder.rename(out)
    finally:
        renderer.close()
    return {"sets": recorder.sets, "messages": recorder.counts.total(), "topics": dict(sorted(recorder.counts.items()))}


def image_topic(camera: str, transport: str) -> str:
    return f"/{camera}/image_raw" + ("/compressed" if transport == "compressed" else "")


def connect(writer: Writer, topic: str, kind: str, durability: QosDurability = QosDurability.VOLATILE) -> Connection:
    """A topic of a bag, of a message type such as ``nav_msgs/msg/Odometry``; reliable."""
    qos = Qos(
        QosHistory.KEEP_LAST,
        10,
        QosReliability.RELIABLE,
        durability,
        _FOREVER,
        _FOREVER,
        QosLiveliness.AUTOMATIC,
        _FOREVER,
        False,
    )
    return writer.add_connection(topic, kind, typestore=_STORE, offered_qos_profiles=[qos])


class _Recorder:
    """Writes one step after another. Within a step messages are 1 ns apart, so that every reader keeps their order."""

    def __init__(self, writer: Writer, spec: BagSpec, start: EgoPose) -> None:
        self.counts: Counter[str] = Counter()
        self.sets = 0
        self._writer, self._spec, self._start = writer, spec, start
        self._rig = RIGS[spec.rig]
        self._connections: dict[str, Connection] = {}
        self._connect("/tf_static", "tf2_msgs/msg/TFMessage", QosDurability.TRANSIENT_LOCAL)
        self._connect("/odom", "nav_msgs/msg/Odometry")
        self._connect("/driving_command", "std_msgs/msg/String")
        image = "CompressedImage" if spec.transport == "compressed" else "Image"
        for camera in self._rig:
            self._connect(image_topic(camera.name, spec.transport), f"sensor_msgs/msg/{image}")
            self._connect(f"/{camera.name}/camera_info", "sensor_msgs/msg/CameraInfo")

    def _connect(self, topic: str, kind: str, durability: QosDurability = QosDurability.VOLATILE) -> None:
        self._connections[topic] = connect(self._writer, topic, kind, durability)

    def add(self, step: int, snapshot: Snapshot, images: np.ndarray | None) -> None:
        """Write what is published at one step; ``images`` [C, H, W, 3] RGB at the steps of an image set."""
        stamp_ns = EPOCH_NS + step * 1_000_000_000 // ODOMETRY_HZ
        for order, (topic, message) in enumerate(self._messages(step, stamp_ns, snapshot, images)):
            connection = self._connections[topic]
            self._writer.write(connection, stamp_ns + order, _STORE.serialize_cdr(message, connection.msgtype))
            self.counts[topic] += 1
        self.sets += images is not None

    def _messages(
        self, step: int, stamp_ns: int, snapshot: Snapshot, images: np.ndarray | None
    ) -> Iterator[tuple[str, Any]]:
        if step == 0:
            yield "/tf_static", rig_message(self._rig, stamp_ns)
        yield "/odom", odometry_message(snapshot.ego, self._start, stamp_ns)
        if images is None:
            return
        yield "/driving_command", _TYPE["std_msgs/msg/String"](data=snapshot.command)
        encode = jpeg_message if self._spec.transport == "compressed" else image_message
        for camera, rgb in zip(self._rig, images, strict=True):
            header = header_message(stamp_ns, camera.name)
            topic = image_topic(camera.name, self._spec.transport)
            yield topic, encode(header, rgb, self._spec.jpeg_quality)
            yield f"/{camera.name}/camera_info", camera_info_message(header, camera, rgb.shape[1], rgb.shape[0])


def header_message(stamp_ns: int, frame: str) -> Any:
    time = _TYPE["builtin_interfaces/msg/Time"](sec=stamp_ns // 1_000_000_000, nanosec=stamp_ns % 1_000_000_000)
    return _TYPE["std_msgs/msg/Header"](stamp=time, frame_id=frame)


def _vector(x: float, y: float, z: float, kind: str = "Vector3") -> Any:
    return _TYPE[f"geometry_msgs/msg/{kind}"](x=float(x), y=float(y), z=float(z))


def _quaternion(wxyz: Sequence[float]) -> Any:
    w, x, y, z = wxyz
    return _TYPE["geometry_msgs/msg/Quaternion"](x=x, y=y, z=z, w=w)


def image_message(header: Any, rgb: np.ndarray, _quality: int = 0) -> Any:
    """sensor_msgs/Image, rgb8, of uint8 [H, W, 3]."""
    height, width = rgb.shape[:2]
    return _TYPE["sensor_msgs/msg/Image"](
        header=header,
        height=height,
        width=width,
        encoding="rgb8",
        is_bigendian=0,
        step=3 * width,
        data=np.ascontiguousarray(rgb).reshape(-1),
    )


def jpeg_message(header: Any, rgb: np.ndarray, quality: int) -> Any:
    """sensor_msgs/CompressedImage, JPEG, of uint8 [H, W, 3] RGB."""
    encoded, data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not encoded:
        raise SimError(f"--size {rgb.shape[1]}x{rgb.shape[0]}: the image could not be encoded as JPEG")
    return _TYPE["sensor_msgs/msg/CompressedImage"](header=header, format="jpeg", data=data.reshape(-1))


def camera_info_message(header: Any, camera: Camera, width: int, height: int) -> Any:
    """sensor_msgs/CameraInfo of a pinhole camera without distortion."""
    intrinsic = camera.scaled(width, height)
    region = _TYPE["sensor_msgs/msg/RegionOfInterest"](x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    return _TYPE["sensor_msgs/msg/CameraInfo"](
        header=header,
        height=height,
        width=width,
        distortion_model="plumb_bob",
        d=np.zeros(5),
        k=intrinsic.reshape(-1),
        r=np.eye(3).reshape(-1),
        p=np.column_stack([intrinsic, np.zeros(3)]).reshape(-1),
        binning_x=0,
        binning_y=0,
        roi=region,
    )


def odometry_message(ego: EgoPose, start: EgoPose, stamp_ns: int) -> Any:
    """nav_msgs/Odometry: the pose relative to ``start``, the twist in the frame of the vehicle."""
    x, y = to_ego(start, np.array([ego.x, ego.y]))
    pose = _TYPE["geometry_msgs/msg/Pose"](
        position=_vector(x, y, 0.0, "Point"), orientation=_quaternion(quaternion_of_yaw(ego.yaw - start.yaw))
    )
    twist = _TYPE["geometry_msgs/msg/Twist"](linear=_vector(ego.speed, 0, 0), angular=_vector(0, 0, ego.yaw_rate))
    return _TYPE["nav_msgs/msg/Odometry"](
        header=header_message(stamp_ns, "odom"),
        child_frame_id="base_link",
        pose=_TYPE["geometry_msgs/msg/PoseWithCovariance"](pose=pose, covariance=np.zeros(36)),
        twist=_TYPE["geometry_msgs/msg/TwistWithCovariance"](twist=twist, covariance=np.zeros(36)),
    )


def rig_message(rig: Sequence[Camera], stamp_ns: int) -> Any:
    """tf2_msgs/TFMessage: base_link to each camera's optical frame."""
    transforms = [
        _TYPE["geometry_msgs/msg/TransformStamped"](
            header=header_message(stamp_ns, "base_link"),
            child_frame_id=camera.name,
            transform=_TYPE["geometry_msgs/msg/Transform"](
                translation=_vector(*camera.translation), rotation=_quaternion(quaternion_of_matrix(camera.rotation))
            ),
        )
        for camera in rig
    ]
    return _TYPE["tf2_msgs/msg/TFMessage"](transforms=transforms)
