"""The rows of the nuScenes schema (nuscenes.org, v1.0: thirteen tables joined by tokens) for simulated scenes.

The global frame of a scene is the world's, moved so that the lower left corner of its map mask is the origin: this is
where nuscenes-devkit's MapMask looks for it. Timestamps are microseconds. Tokens are hashes of what they name, so that
the same arguments give the same tables.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fastdrive_sim.geometry import quaternion_of_matrix, quaternion_of_yaw
from fastdrive_sim.types import Camera, EgoPose, Snapshot, Thing, Views, World
from fastdrive_sim.visibility import LEVELS, visibility_tokens

VERSION = "v1.0-fastdrive_sim"
SCENE_TABLES = ("log", "map", "scene", "sample", "sample_data", "ego_pose", "instance", "sample_annotation")

CATEGORIES = {
    "car": "vehicle.car",
    "truck": "vehicle.truck",
    "bus": "vehicle.bus.rigid",
    "pedestrian": "human.pedestrian.adult",
    "cyclist": "vehicle.bicycle",
}
ATTRIBUTES = {
    "vehicle.moving": "Drives.",
    "vehicle.stopped": "Stands in traffic.",
    "vehicle.parked": "Stands at the kerb for the whole scene.",
    "pedestrian.moving": "Walks.",
    "pedestrian.standing": "Stands.",
    "cycle.with_rider": "Somebody rides it.",
}
ANNOTATION_RANGE_M = 60.0
_MOVING_MPS = 0.2
_DIGITS = 6  # of metres and of quaternions: micrometres


def token(*parts: object) -> str:
    """A token of 32 hexadecimal digits for the thing that ``parts`` name."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:32]


def shared_tables(width: int, height: int, rig: Sequence[Camera]) -> dict[str, list[dict]]:
    """The tables that all scenes share; the intrinsics are for images of ``width`` x ``height`` pixels."""
    return {
        "category": [
            {"token": token("category", name), "name": name, "description": f"Simulated {kind}.", "index": index}
            for index, (kind, name) in enumerate(CATEGORIES.items(), start=1)
        ],
        "attribute": [
            {"token": token("attribute", name), "name": name, "description": text} for name, text in ATTRIBUTES.items()
        ],
        "visibility": [
            {"token": str(index), "level": level, "description": f"{level[1:]} % of the object's pixels are seen"}
            for index, level in enumerate(LEVELS, start=1)
        ],
        "sensor": [
            {"token": token("sensor", camera.name), "channel": camera.name, "modality": "camera"} for camera in rig
        ],
        "calibrated_sensor": [_calibrated_sensor(camera, width, height) for camera in rig],
    }


def _calibrated_sensor(camera: Camera, width: int, height: int) -> dict:
    return {
        "token": token("calibrated_sensor", camera.name),
        "sensor_token": token("sensor", camera.name),
        "translation": _rounded(camera.translation),
        "rotation": _rounded(quaternion_of_matrix(camera.rotation)),
        "camera_intrinsic": [_rounded(row) for row in camera.scaled(width, height)],
    }


def _rounded(values: Sequence[float] | np.ndarray) -> list[float]:
    return [round(float(value), _DIGITS) for value in values]


@dataclass
class SceneTables:
    """The rows of one scene, filled keyframe by keyframe; ``rows`` links them."""

    name: str
    world: World
    origin: tuple[float, float]  # of the global frame, in the world [m]
    size: tuple[int, int]  # width and height of the images
    rig: Sequence[Camera]
    samples: list[dict] = field(default_factory=list)
    sample_data: dict[str, list[dict]] = field(default_factory=dict)  # by camera
    ego_poses: list[dict] = field(default_factory=list)
    annotations: dict[int, list[dict]] = field(default_factory=dict)  # by instance
    kinds: dict[int, str] = field(default_factory=dict)  # by instance

    def sample_token(self, index: int) -> str:
        return token(self.name, "sample", index)

    def image_name(self, camera: str, timestamp_us: int) -> str:
        """The path of an image, relative to the dataset."""
        return f"samples/{camera}/{self.name}__{camera}__{timestamp_us}.jpg"

    def add_keyframe(self, timestamp_us: int, snapshot: Snapshot, views: Views) -> str:
        """Add a keyframe's rows; returns its sample token."""
        sample = self.sample_token(len(self.samples))
        pose = token(self.name, "ego_pose", len(self.samples))
        self.samples.append({"token": sample, "timestamp": timestamp_us, "scene_token": token(self.name, "scene")})
        self.ego_poses.append(
            {
                "token": pose,
                "timestamp": timestamp_us,
                "translation": self._global(snapshot.ego.x, snapshot.ego.y, 0.0),
                "rotation": _rounded(quaternion_of_yaw(snapshot.ego.yaw)),
            }
        )
        for camera in self.rig:
            row = self._sample_data(camera.name, timestamp_us, sample, pose)
            self.sample_data.setdefault(camera.name, []).append(row)
        self._annotate(sample, snapshot, views)
        return sample

    def _sample_data(self, camera: str, timestamp_us: int, sample: str, pose: str) -> dict:
        return {
            "token": token(self.name, "sample_data", camera, len(self.samples) - 1),
            "sample_token": sample,
            "ego_pose_token": pose,
            "calibrated_sensor_token": token("calibrated_sensor", camera),
            "timestamp": timestamp_us,
            "fileformat": "jpg",
            "is_key_frame": True,
            "height": self.size[1],
            "width": self.size[0],
            "filename": self.image_name(camera, timestamp_us),
        }

    def _annotate(self, sample: str, snapshot: Snapshot, views: Views) -> None:
        parked = {thing.instance for thing in self.world.things}
        things = annotated_things(self.world, snapshot)
        levels = visibility_tokens(things, snapshot.ego, views, self.rig)
        for thing, level in zip(things, levels, strict=True):
            attribute = _attribute(thing, thing.instance in parked)
            self.kinds[thing.instance] = thing.kind
            self.annotations.setdefault(thing.instance, []).append(self._annotation(sample, thing, level, attribute))

    def _annotation(self, sample: str, thing: Thing, level: str, attribute: str) -> dict:
        length, width, height = thing.size
        return {
            "token": token(sample, "annotation", thing.instance),
            "sample_token": sample,
            "instance_token": self._instance_token(thing.instance),
            "visibility_token": level,
            "attribute_tokens": [token("attribute", attribute)],
            "translation": self._global(thing.x, thing.y, thing.z + height / 2),
            "size": _rounded((width, length, height)),
            "rotation": _rounded(quaternion_of_yaw(thing.yaw)),
            "num_lidar_pts": 0,
            "num_radar_pts": 0,
        }

    def _global(self, x: float, y: float, z: float) -> list[float]:
        return _rounded((x - self.origin[0], y - self.origin[1], z))

    def _instance_token(self, instance: int) -> str:
        return token(self.name, "instance", instance)

    def rows(self) -> dict[str, list[dict]]:
        """All rows of the scene by table, with their prev and next links."""
        return {
            **self._scene_rows(),
            "sample": _linked(self.samples),
            "sample_data": [row for chain in self.sample_data.values() for row in _linked(chain)],
            "ego_pose": self.ego_poses,
            "instance": [self._instance(instance) for instance in sorted(self.annotations)],
            "sample_annotation": [row for key in sorted(self.annotations) for row in _linked(self.annotations[key])],
        }

    def _scene_rows(self) -> dict[str, list[dict]]:
        log = token(self.name, "log")
        return {
            "log": [
                {
                    "token": log,
                    "logfile": self.name,
                    "vehicle": "fastdrive_sim",
                    "date_captured": "2023-11-14",
                    "location": self.name,
                }
            ],
            "map": [
                {
                    "token": token(self.name, "map"),
                    "log_tokens": [log],
                    "category": "semantic_prior",
                    "filename": f"maps/{self.name}.png",
                }
            ],
            "scene": [
                {
                    "token": token(self.name, "scene"),
                    "log_token": log,
                    "nbr_samples": len(self.samples),
                    "first_sample_token": self.samples[0]["token"],
                    "last_sample_token": self.samples[-1]["token"],
                    "name": self.name,
                    "description": f"Simulated world of seed {self.world.seed}",
                }
            ],
        }

    def _instance(self, instance: int) -> dict:
        annotations = self.annotations[instance]
        return {
            "token": self._instance_token(instance),
            "category_token": token("category", CATEGORIES[self.kinds[instance]]),
            "nbr_annotations": len(annotations),
            "first_annotation_token": annotations[0]["token"],
            "last_annotation_token": annotations[-1]["token"],
        }

    def class_counts(self) -> dict[str, int]:
        """Annotations by nuScenes category."""
        counts: Counter[str] = Counter()
        for instance, chain in self.annotations.items():
            counts[CATEGORIES[self.kinds[instance]]] += len(chain)
        return dict(sorted(counts.items()))


def _linked(chain: list[dict]) -> list[dict]:
    """The rows of one chain in time, each with the tokens of its neighbours ("" at the ends)."""
    tokens = ["", *(row["token"] for row in chain), ""]
    return [{**row, "prev": tokens[index], "next": tokens[index + 2]} for index, row in enumerate(chain)]


def annotated_things(world: World, snapshot: Snapshot) -> list[Thing]:
    """What is annotated at a moment: things of the categories, within ``ANNOTATION_RANGE_M`` of the vehicle."""
    return [
        thing
        for thing in (*world.things, *snapshot.things)
        if thing.kind in CATEGORIES and _within_range(thing, snapshot.ego)
    ]


def _within_range(thing: Thing, ego: EgoPose) -> bool:
    return math.hypot(thing.x - ego.x, thing.y - ego.y) <= ANNOTATION_RANGE_M


def _attribute(thing: Thing, parked: bool) -> str:
    moving = abs(thing.speed) > _MOVING_MPS
    if thing.kind == "pedestrian":
        return "pedestrian.moving" if moving else "pedestrian.standing"
    if thing.kind == "cyclist":
        return "cycle.with_rider"
    if parked:
        return "vehicle.parked"
    return "vehicle.moving" if moving else "vehicle.stopped"
