"""One simulated scene on disk: images, masks, map, rows and extras.

A scene is simulated for 3 s before its first keyframe and 3 s after its last, so that every keyframe has a history and
a future of six points at 0.5 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from fastdrive_node.errors import SimError
from fastdrive_node.geometry import wrap_angle
from fastdrive_sim.drivable import draw_mask
from fastdrive_sim.geometry import to_ego
from fastdrive_sim.nuscenes_schema import CATEGORIES, SceneTables, annotated_things
from fastdrive_sim.rig import RIGS
from fastdrive_sim.scenarios import SCENARIOS
from fastdrive_sim.sources import ChoosesKeyframes, ImageSpec, RendererLike, SimulationLike, record
from fastdrive_sim.types import Camera, EgoPose, Keyframe, SceneRecording, Snapshot, World

SIM_HZ = 20
POINTS = 6  # of the history and of the future
INTERVAL_S = 0.5
_INTERVAL_STEPS = round(INTERVAL_S * SIM_HZ)
_MARGIN_STEPS = POINTS * _INTERVAL_STEPS  # before the first and after the last keyframe
_STEP_US = 1_000_000 // SIM_HZ
_DIGITS = 4


@dataclass(frozen=True)
class ScenePlan:
    """A scene to write. ``start_us`` is the time of the simulation's first step; of a recorded run ``keyframes`` is the
    most that it can have, and ``run`` its file."""

    name: str
    split: str
    world_seed: int
    keyframes: int
    start_us: int
    run: str = ""


def scene_steps(keyframes: int, hz: int) -> int:
    """Simulation steps that a scene of so many keyframes needs, warm-up and horizon included."""
    return _MARGIN_STEPS + (keyframes - 1) * (SIM_HZ // hz) + _MARGIN_STEPS + 1


def write_scene(
    out: Path,
    plan: ScenePlan,
    spec: ImageSpec,
    hz: int,
    simulation: SimulationLike | ChoosesKeyframes,
    renderer: RendererLike,
) -> dict:
    """Write a scene's images, masks and map under ``out``.

    Returns its ``tables`` (rows by table), ``extras`` (by sample token), ``classes`` (annotations by category),
    ``scene`` (its entry of ``sim.json``) and ``counts`` (figures of the scenario).
    Raises SimError where a file cannot be written or the world ends early.
    """
    recording = _record(simulation, plan.keyframes, hz)
    world, snapshots = recording.world, recording.snapshots
    mask = draw_mask(world.drivable, [snapshot.ego for snapshot in snapshots])
    _write_image(out / "maps" / f"{plan.name}.png", mask.pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    rig = RIGS[spec.rig]
    tables = SceneTables(plan.name, world, mask.origin, (spec.width, spec.height), rig)
    renderer.load(replace(world, domain=spec.domain))
    extras, log = {}, SCENARIOS[spec.scenario].open_log(rig)
    end = recording.keyframes[-1].step
    for keyframe in recording.keyframes:
        step = keyframe.step
        timestamp_us = plan.start_us + step * _STEP_US
        views = renderer.render(snapshots[step])
        sample = tables.add_keyframe(timestamp_us, snapshots[step], views)
        for camera, rgb, labels in zip(rig, views.rgb, views.label, strict=True):
            image = out / tables.image_name(camera.name, timestamp_us)
            _write_image(image, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, spec.jpeg_quality])
            _write_png(out, "masks", camera, sample, labels)
        extras[sample] = {**keyframe_extras(snapshots, step, keyframe.future), **keyframe.entries}
        if end - step < _MARGIN_STEPS < len(snapshots) - step:  # the annotations end sooner, the recording does not
            extras[sample] |= future_objects(world, snapshots, step)
        entries, images = log.add(snapshots[step], views)
        extras[sample] |= entries
        for folder, pixels in images.items():
            for camera, image in zip(rig, pixels, strict=True):
                if image.any():
                    _write_png(out, folder, camera, sample, image)
    scene = {"split": plan.split, "world_seed": plan.world_seed, "origin_in_world_m": list(mask.origin)}
    return {
        "tables": tables.rows(),
        "extras": extras,
        "classes": tables.class_counts(),
        "scene": {**scene, **recording.about, **log.counts()},
        "counts": {**recording.counts, **log.counts()},
    }


def _record(simulation: SimulationLike | ChoosesKeyframes, keyframes: int, hz: int) -> SceneRecording:
    if isinstance(simulation, ChoosesKeyframes):
        return simulation.choose(keyframes, hz)
    snapshots = record(simulation, scene_steps(keyframes, hz), SIM_HZ)
    steps = [_MARGIN_STEPS + number * (SIM_HZ // hz) for number in range(keyframes)]
    return SceneRecording(simulation.world, snapshots, [Keyframe(step) for step in steps])


def keyframe_extras(snapshots: Sequence[Snapshot], step: int, future: np.ndarray | None = None) -> dict:
    """The entry of ``extras.json`` for the keyframe at ``step`` of a recording at 20 Hz.

    ``future_xy``: six [x, y] at 0.5 s .. 3.0 s; ``history``: six [t, x, y, yaw, speed, accel] at -0.5 s .. -3.0 s; both
    in the ego frame of the keyframe, metres, radians, seconds. The future is ``future`` (world [6, 2]) where that is
    given. ``ahead``: ``Snapshot.ahead``, labels for training.
    A scene adds what ``future_objects`` gives to the keyframes of its last 3 s, and the scenario what its ``SceneLog``
    gives.
    """
    ego = snapshots[step].ego
    offsets = [_INTERVAL_STEPS * (point + 1) for point in range(POINTS)]
    if future is None:
        ahead = [snapshots[step + offset].ego for offset in offsets]
        future = np.array([(pose.x, pose.y) for pose in ahead])
    return {
        "command": snapshots[step].command,
        "speed_mps": round(ego.speed, _DIGITS),
        "accel_mps2": round(ego.accel, _DIGITS),
        "yaw_rate_radps": round(ego.yaw_rate, _DIGITS),
        "ahead": snapshots[step].ahead,
        "future_xy": [[round(float(x), _DIGITS), round(float(y), _DIGITS)] for x, y in to_ego(ego, future)],
        "history": [_past(ego, snapshots[step - offset].ego, -offset / SIM_HZ) for offset in offsets],
    }


def future_objects(world: World, snapshots: Sequence[Snapshot], step: int) -> dict[str, list]:
    """The annotated things 0.5 s .. 3.0 s after the keyframe at ``step`` of a recording at 20 Hz.

    ``future_boxes``: six lists of boxes [x, y, yaw, length, width], metres and radians, in the ego frame of the
    keyframe. ``future_vehicles``: six lists of bools, which of the boxes are vehicles.
    """
    ego, steps, vehicles = snapshots[step].ego, [], []
    for point in range(1, POINTS + 1):
        things = annotated_things(world, snapshots[step + _INTERVAL_STEPS * point])
        vehicles.append([CATEGORIES[thing.kind].startswith("vehicle.") for thing in things])
        positions = to_ego(ego, np.array([(thing.x, thing.y) for thing in things]).reshape(-1, 2))
        steps.append(
            [
                [round(float(value), _DIGITS) for value in (x, y, wrap_angle(thing.yaw - ego.yaw), *thing.size[:2])]
                for (x, y), thing in zip(positions, things, strict=True)
            ]
        )
    return {"future_boxes": steps, "future_vehicles": vehicles}


def _past(now: EgoPose, then: EgoPose, time_s: float) -> list[float]:
    x, y = to_ego(now, np.array([then.x, then.y]))
    values = (time_s, x, y, wrap_angle(then.yaw - now.yaw), then.speed, then.accel)
    return [round(float(value), _DIGITS) for value in values]


def _write_png(out: Path, folder: str, camera: Camera, sample: str, pixels: np.ndarray) -> None:
    _write_image(out / folder / camera.name / f"{sample}.png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def _write_image(path: Path, pixels: np.ndarray, options: list[int]) -> None:
    encoded, data = cv2.imencode(path.suffix, pixels, options)
    if not encoded:
        raise SimError(f"{path}: could not be encoded")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise SimError(f"{path}: could not be written ({error.strerror})") from error
