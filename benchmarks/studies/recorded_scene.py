"""Keyframes of a bag with their recorded futures and a map mask, as a dataset that `fastdrive evaluate` reads.

The bag holds images of the six cameras and odometry in the frame of the map. TRUTH.json says what came after:
``frames``, one for each frame set of the bag in its order, with ``future_xy_0p5s`` (up to six [x, y] in the ego frame),
and ``drivable``: ``file`` beside it (north up, white where one may drive), ``px_m``, ``world_left_x`` and
``world_bottom_y``, the outer edges of the mask in the map's frame. Objects are not known: collision is not judged.

Example:
    python -m benchmarks.studies.recorded_scene bag truth.json data/recorded --topics config/topics_nuscenes.yaml
    fastdrive evaluate data/recorded --json -
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from pyquaternion import Quaternion
from rosbags.typesys import Stores, get_typestore

from fastdrive_node.errors import FastDriveError, InputError
from fastdrive_node.replay.bag import ODOMETRY_TYPE
from fastdrive_node.types import CAMERAS, EgoState
from fastdrive_training.data.adapters.base import FUTURE_POINTS
from fastdrive_training.data.image_sets import BagSets

VERSION, SCENE = "v1.0-recorded", "recorded"
LARGEST_OFFSET_S = 0.1  # between a frame set and the odometry that is its ego pose
JPEG_QUALITY = 95


@dataclass(frozen=True)
class Truth:
    """What TRUTH.json says."""

    futures: tuple[np.ndarray, ...]  # of each frame set, float64 [up to 6, 2]
    mask: Path
    corner_m: tuple[float, float]  # in the map's frame: where the dataset's own frame has its origin

    @classmethod
    def load(cls, path: Path) -> Truth:
        """Raises InputError: a field is missing or wrong."""
        try:
            content = json.loads(path.read_text())
            futures = [np.array(frame["future_xy_0p5s"], np.float64).reshape(-1, 2) for frame in content["frames"]]
            drivable = content["drivable"]
            left, bottom, side = (float(drivable[name]) for name in ("world_left_x", "world_bottom_y", "px_m"))
            mask = path.parent / Path(drivable["file"]).name
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: needs frames with future_xy_0p5s, and drivable ({error!r})") from None
        if abs(side - 0.1) > 1e-9:
            raise InputError(f"{path}: drivable.px_m: is {side}, map masks of the nuScenes schema have 0.1")
        if not mask.is_file():
            raise InputError(f"{path}: drivable.file: {mask} is missing")
        # the schema rounds a coordinate to a pixel, so its origin is the middle of the pixel outside of the corner
        return cls(tuple(futures), mask, (left + side / 2, bottom - side / 2))


def write_dataset(bag: Path, truth_file: Path, topics: Path | None, out: Path) -> int:
    """Write the dataset. Returns the number of keyframes with a full future. Raises InputError for unusable input."""
    truth = Truth.load(truth_file)
    sets = BagSets.open(bag, topics, CAMERAS)
    poses = [_pose_at(sets, t0_ns) for t0_ns in sets.t0_ns]
    if len(truth.futures) != len(sets):
        raise InputError(f"{truth_file}: frames: {len(truth.futures)}, but {bag} has {len(sets)} frame sets")
    (out / "maps").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(truth.mask, out / "maps" / f"{SCENE}.png")
    sizes = list(_write_images(sets, out))
    tables = _tables(poses, truth.corner_m, sizes)
    (out / VERSION).mkdir(exist_ok=True)
    for name, rows in tables.items():
        (out / VERSION / f"{name}.json").write_text(json.dumps(rows, indent=1))
    extras = {
        _token(index): {"future_xy": future.tolist() if len(future) == FUTURE_POINTS else None}
        for index, future in enumerate(truth.futures)
    }
    (out / "extras.json").write_text(json.dumps(extras, indent=1))
    return sum(entry["future_xy"] is not None for entry in extras.values())


def _pose_at(sets: BagSets, t0_ns: int) -> EgoState:
    """The odometry nearest to a frame set."""
    store = get_typestore(Stores.ROS2_JAZZY)
    topic = sets.recording.topics.odometry
    states = [
        _state(store.deserialize_cdr(message.raw, ODOMETRY_TYPE)) for message in sets.recording.bag.messages([topic])
    ]
    nearest = min(states, key=lambda state: abs(state.stamp_ns - t0_ns))
    if abs(nearest.stamp_ns - t0_ns) > LARGEST_OFFSET_S * 1e9:
        raise InputError(f"{sets.recording.bag.path}: {topic}: none within {LARGEST_OFFSET_S} s of set {t0_ns}")
    return nearest


def _state(message) -> EgoState:
    """Position and heading of an odometry message."""
    position, turn = message.pose.pose.position, message.pose.pose.orientation
    yaw = Quaternion(turn.w, turn.x, turn.y, turn.z).yaw_pitch_roll[0]
    stamp = message.header.stamp
    return EgoState(stamp.sec * 10**9 + stamp.nanosec, position.x, position.y, yaw, message.twist.twist.linear.x)


def _write_images(sets: BagSets, out: Path) -> Iterator[list[tuple[int, ...]]]:
    """Write the images. Gives (height, width) of each camera, set after set."""
    for index, (_, images) in enumerate(sets.read(range(len(sets)))):
        for camera, image in zip(CAMERAS, images, strict=True):
            path = out / _filename(camera, index)
            path.parent.mkdir(parents=True, exist_ok=True)
            if not cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]):
                raise InputError(f"{path}: cannot be written")
        yield [image.shape[:2] for image in images]


def _tables(
    poses: Sequence[EgoState], corner_m: tuple[float, float], sizes: Sequence[list[tuple[int, ...]]]
) -> dict[str, list[dict]]:
    tokens = [_token(index) for index in range(len(poses))]
    stamps_us = [pose.stamp_ns // 1000 for pose in poses]
    tables: dict[str, list[dict]] = {
        name: [] for name in ("attribute", "category", "instance", "sample_annotation", "visibility", "sample_data")
    }
    tables["sensor"] = [{"token": camera, "channel": camera, "modality": "camera"} for camera in CAMERAS]
    tables["calibrated_sensor"] = [
        {"token": camera, "sensor_token": camera, "translation": [0, 0, 0], "rotation": [1, 0, 0, 0]}
        for camera in CAMERAS
    ]
    tables["log"] = [{"token": SCENE, "logfile": SCENE, "location": SCENE}]
    tables["map"] = [{"token": SCENE, "log_tokens": [SCENE], "filename": f"maps/{SCENE}.png"}]
    tables["scene"] = [{"token": SCENE, "name": SCENE, "log_token": SCENE, "first_sample_token": tokens[0]}]
    tables["sample"] = [
        {"token": token, "timestamp": stamp, "scene_token": SCENE, **_links(tokens, index)}
        for index, (token, stamp) in enumerate(zip(tokens, stamps_us, strict=True))
    ]
    tables["ego_pose"] = [
        {
            "token": token,
            "timestamp": stamp,
            "translation": [pose.x_m - corner_m[0], pose.y_m - corner_m[1], 0.0],
            "rotation": [math.cos(pose.yaw_rad / 2), 0.0, 0.0, math.sin(pose.yaw_rad / 2)],
        }
        for token, stamp, pose in zip(tokens, stamps_us, poses, strict=True)
    ]
    for number, camera in enumerate(CAMERAS):
        names = [f"{token}-{camera}" for token in tokens]
        tables["sample_data"] += [
            {
                "token": names[index],
                "sample_token": token,
                "ego_pose_token": token,
                "calibrated_sensor_token": camera,
                "timestamp": stamps_us[index],
                "is_key_frame": True,
                "filename": _filename(camera, index),
                "height": sizes[index][number][0],
                "width": sizes[index][number][1],
                **_links(names, index),
            }
            for index, token in enumerate(tokens)
        ]
    return tables


def _token(index: int) -> str:
    return f"keyframe-{index:04d}"


def _filename(camera: str, index: int) -> str:
    return f"samples/{camera}/{_token(index)}.jpg"


def _links(tokens: Sequence[str], index: int) -> dict[str, str]:
    padded = ["", *tokens, ""]
    return {"prev": padded[index], "next": padded[index + 2]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bag", type=Path)
    parser.add_argument("truth", type=Path, metavar="TRUTH.json")
    parser.add_argument("out", type=Path)
    parser.add_argument("--topics", type=Path, help="topic map of the bag (the simulator's)")
    args = parser.parse_args()
    try:
        count = write_dataset(args.bag, args.truth, args.topics, args.out)
    except FastDriveError as error:
        print(f"recorded_scene: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {count} keyframes with a full future", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
