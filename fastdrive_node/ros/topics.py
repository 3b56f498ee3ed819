"""Topic maps: which topic carries which camera, the odometry and the driving command. YAML, no ROS."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fastdrive_node.errors import InputError
from fastdrive_node.types import CAMERAS
from fastdrive_node.validation import read_bytes, read_yaml

MAX_CAMERAS = 32
_CAMERA = re.compile(r"^[A-Za-z][A-Za-z0-9_]{0,63}$")  # it is a part of the names of topics
_FRAME = re.compile(r"^/?[A-Za-z0-9_]+(/[A-Za-z0-9_]+)*$")
_TOPIC = re.compile(r"^/[A-Za-z][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*$")
_OPTIONAL = ("command", "steering", "acceleration")
_KEYS = ("cameras", "odometry", *_OPTIONAL, "frame_ids")
_MAX_BYTES = 64 * 1024


@dataclass(frozen=True)
class TopicMap:
    """Absolute topic names."""

    cameras: Mapping[str, str]
    odometry: str
    command: str | None = None
    name: str = "topic map"  # for messages: the file, or what it stands for
    steering: str | None = None
    acceleration: str | None = None
    frame_ids: Mapping[str, str] = field(default_factory=dict)  # of the images, by camera

    def of_cameras(self, cameras: Sequence[str]) -> TopicMap:
        """The map with these cameras alone, in this order; a vehicle may have more than the model reads.

        Raises:
            InputError: one of them is not in the map.
        """
        for camera in cameras:
            if camera not in self.cameras:
                near = difflib.get_close_matches(camera, self.cameras, n=1)
                hint = f"did you write {near[0]} for it? " if near else ""
                raise InputError(
                    f"{self.name}: cameras: {camera} is missing, and the model reads it; {hint}the map has "
                    f"{', '.join(self.cameras)}; correct the map that --topics or topics:= gives"
                )
        return replace(self, cameras={camera: self.cameras[camera] for camera in cameras})

    def topics(self) -> list[str]:
        return [*self.cameras.values(), self.odometry, *self._optional().values()]

    def _optional(self) -> dict[str, str]:
        """Topics by the node's name for them."""
        named = {COMMAND_INPUT: self.command, STEERING_INPUT: self.steering, ACCELERATION_INPUT: self.acceleration}
        return {name: topic for name, topic in named.items() if topic}

    def parameters(self, steering: str = "float64") -> dict[str, object]:
        """Parameters of the node: inputs that are off by default, and the frame ids of the images."""
        values: dict[str, object] = {"steering_input": steering} if self.steering else {}
        if self.acceleration:
            values["acceleration_input"] = True
        if self.frame_ids:
            values["camera_frame_ids"] = " ".join(f"{camera}={frame}" for camera, frame in self.frame_ids.items())
        return values

    def remappings(self) -> list[tuple[str, str]]:
        """From the node's private names to these topics."""
        pairs = [(camera_input(camera), topic) for camera, topic in self.cameras.items()]
        pairs.append((ODOMETRY_INPUT, self.odometry))
        return [*pairs, *self._optional().items()]


ODOMETRY_INPUT = "~/input/odometry"
COMMAND_INPUT = "~/input/command"
STEERING_INPUT = "~/input/steering"
ACCELERATION_INPUT = "~/input/acceleration"


def camera_input(camera: str) -> str:
    """The node's name for a camera's image topic, whatever its transport."""
    return f"~/input/{camera.lower()}/image"


def camera_info_topic(image: str) -> str:
    """The CameraInfo topic beside an image topic, as image_transport finds it."""
    base = image.removesuffix("/compressed")
    return f"{base.rpartition('/')[0]}/camera_info"


def simulator_topics(compressed: bool = False) -> TopicMap:
    """The topics of the simulator's bags."""
    suffix = "/compressed" if compressed else ""
    cameras = {camera: f"/{camera}/image_raw{suffix}" for camera in CAMERAS}
    return TopicMap(cameras, "/odom", "/driving_command", "the simulator's topics")


def load_topic_map(path: str | Path) -> TopicMap:
    """Read ``cameras: {CAM_FRONT: /topic, ...}``, ``odometry: /topic``, and optionally ``command``, ``steering``,
    ``acceleration`` and ``frame_ids: {CAM_FRONT: front_optical, ...}``.

    Cameras have the names of the VLA's ``vla.json``, see ``of_cameras``.

    Raises:
        InputError: the file cannot be read, or a key, camera or topic name is wrong; the text names it.
    """
    path = Path(path)
    content = _read(path)
    unknown = [str(key) for key in content if key not in _KEYS]
    if unknown:
        raise InputError(f"{path}: {unknown[0][:60]}: unknown key; a topic map has {', '.join(_KEYS)}")
    cameras = content.get("cameras")
    if not isinstance(cameras, dict) or not cameras:
        raise InputError(f"{path}: cameras: missing; give one topic a camera, like CAM_FRONT: /camera/front/image_raw")
    check_camera_names(path, list(cameras))
    if "odometry" not in content:
        raise InputError(f"{path}: odometry: missing; give the topic of nav_msgs/Odometry")
    named = {**{f"cameras.{camera}": topic for camera, topic in cameras.items()}, "odometry": content["odometry"]}
    optional = {key: content[key] for key in _OPTIONAL if content.get(key) is not None}
    named |= optional
    for key, topic in named.items():
        if not isinstance(topic, str) or not _TOPIC.match(topic):
            given = repr(topic[:60]) if isinstance(topic, str) else f"a {type(topic).__name__}"
            raise InputError(f"{path}: {key}: {given} is no absolute topic name like /camera/front/image_raw")
    _refuse_doubles(path, named)
    frame_ids = _frame_ids(path, content.get("frame_ids"), list(cameras))
    return TopicMap(dict(cameras), content["odometry"], name=str(path), frame_ids=frame_ids, **optional)


def _frame_ids(path: Path, given: object, cameras: Sequence[str]) -> dict[str, str]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise InputError(f"{path}: frame_ids: give one frame_id a camera, like CAM_FRONT: camera_front_optical")
    for camera, frame in given.items():
        if camera not in cameras:
            raise InputError(f"{path}: frame_ids: {str(camera)[:60]} is not one of the cameras")
        if not isinstance(frame, str) or not _FRAME.match(frame):
            raise InputError(
                f"{path}: frame_ids.{camera}: {str(frame)[:60]!r} is no frame_id like camera_front_optical"
            )
    return given


def _read(path: Path) -> dict:
    try:
        content = read_yaml(read_bytes(path, _MAX_BYTES).decode())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); --topics needs a topic map in YAML") from error
    except ValueError as error:
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a topic map; it has the keys {', '.join(_KEYS)}")
    return content


def check_camera_names(source: object, cameras: Sequence[object]) -> None:
    """Raises InputError, with the source, for names that topics cannot have or that give one topic to two cameras."""
    if len(cameras) > MAX_CAMERAS:
        raise InputError(f"{source}: cameras: {len(cameras)} of them; give at most {MAX_CAMERAS}")
    lower: dict[str, str] = {}  # topics are in lower case
    for camera in cameras:
        if not isinstance(camera, str) or not _CAMERA.match(camera):
            raise InputError(f"{source}: cameras: {str(camera)[:60]!r} is no camera name; use letters, digits and '_'")
        if lower.setdefault(camera.lower(), camera) != camera:
            raise InputError(f"{source}: cameras: {camera} and {lower[camera.lower()]} differ only in case; rename one")


def _refuse_doubles(path: Path, named: Mapping[str, str]) -> None:
    seen: dict[str, str] = {}
    for key, topic in named.items():
        if topic in seen:
            raise InputError(f"{path}: {key}: {topic} is that of {seen[topic]} too; each input has its own topic")
        seen[topic] = key
