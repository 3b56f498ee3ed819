"""A recorded run as pictures: the front camera rendered anew with the plan's kept tokens, and a bird's-eye view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from fastdrive_node.errors import SimError
from fastdrive_node.visualization.overlay import overlay
from fastdrive_sim.drive.families import FAMILIES
from fastdrive_sim.drive.scene import DriveScene
from fastdrive_sim.drive.types import RECORD_S, EgoStep, Light, PlanStep, RunRecord, RunStep, ego_corners, other_corners
from fastdrive_sim.geometry import to_ego
from fastdrive_sim.render import Renderer
from fastdrive_sim.rig import DEFAULT_RIG, RIGS
from fastdrive_sim.types import Camera, EgoPose, Snapshot, Thing

CAMERA_PX = (640, 384)  # width, height
MAP_PX, MAP_M = 384, 56.0  # side of the bird's-eye view; the vehicle is in its lower third
AHEAD_M = 18.0  # from the rear axle to the middle of the view
_RGB = {
    "ground": (236, 238, 232), "road": (176, 180, 186), "center": (245, 245, 245), "ego": (20, 90, 200),
    "plan": (230, 60, 40), "route": (120, 170, 120), "other": (60, 60, 70), "person": (200, 60, 160),
    "obstacle": (150, 130, 110),
}  # fmt: skip
_FRONT = tuple(camera for camera in RIGS[DEFAULT_RIG] if camera.name == "CAM_FRONT")
_LIGHTS = {"red": (220, 30, 30), "red_yellow": (240, 130, 20), "yellow": (240, 190, 20), "green": (30, 170, 60)}


class Film:
    """Draws the steps of a run; a context manager that holds the renderer.

    Args:
        cameras: that are rendered; the first one is that of ``frame``.
        size: of their images, width and height.
    """

    def __init__(self, run: RunRecord, cameras: Sequence[Camera] = _FRONT, size: tuple[int, int] = CAMERA_PX):
        if run.family not in FAMILIES:
            raise SimError(f"run of the family {run.family}: this version does not have it; it cannot be shown")
        self.run, self._cameras, self._size = run, cameras, size
        self._scene: DriveScene = FAMILIES[run.family].scene(run.seed)
        self._looks = {user.instance: user.thing() for user in self._scene.users()}

    def __enter__(self) -> Film:
        self._renderer = Renderer(*self._size, self._cameras)
        self._renderer.load(self._scene.world)
        return self

    def __exit__(self, *_: object) -> None:
        self._renderer.close()

    def frame(self, step: RunStep) -> np.ndarray:
        """uint8 [384, 1024, 3] RGB: camera, bird's-eye view, and a line of text.

        In the camera's image the tokens that the plan in use did not keep are gray, where that is known.
        """
        plan = self.run.plans[step.plan] if step.plan >= 0 else None
        camera = self._marked(self.render(step)[0], plan)
        picture = np.concatenate([camera, self.birds_eye(step)], axis=1)
        ego = step.ego
        age = f"plan {step.plan_age_s:.1f} s old" if plan is not None else "no plan"
        if plan is not None and plan.total_tokens:
            age += f", {plan.kept_tokens} of {plan.total_tokens} tokens"
        text = f"{step.time_s:5.1f} s  {3.6 * ego.speed:4.0f} km/h  {ego.accel:+.1f} m/s2  {step.command}  {age}"
        _write(picture, f"{self.run.row.name}  {self.run.family} {self.run.seed}", 22)
        _write(picture, text, 44)
        return picture

    def _marked(self, image: np.ndarray, plan: PlanStep | None) -> np.ndarray:
        mask = None if plan is None else plan.kept.get(self._cameras[0].name)
        return image if mask is None or mask.all() else overlay(image, mask)

    def render(self, step: RunStep) -> np.ndarray:
        """uint8 [C, H, W, 3] RGB, what each camera sees at a step."""
        return self._renderer.render_color(self.snapshot(step))

    def snapshot(self, step: RunStep) -> Snapshot:
        """What the cameras see at a step."""
        states = {light.instance: light.state for light in step.lights}
        things = [self._placed(each.instance, each.x, each.y, each.yaw, each.speed) for each in step.others]
        for light in self._scene.lights:
            things += [replace(thing, state=states[light.instances[0]]) for thing in light.things()]
        ego = step.ego
        pose = EgoPose(ego.x, ego.y, ego.yaw, ego.speed, ego.accel, ego.yaw_rate)
        return Snapshot(step.time_s, pose, tuple(things), step.command, np.zeros((0, 2)))

    def _placed(self, instance: int, x: float, y: float, yaw: float, speed: float) -> Thing:
        return replace(self._looks[instance], x=x, y=y, yaw=yaw, speed=speed)

    def birds_eye(self, step: RunStep) -> np.ndarray:
        """uint8 [384, 384, 3]; the vehicle drives upwards."""
        view = _GroundView(step.ego)
        for polygon in self.run.map.drivable:
            view.fill(polygon, _RGB["road"])
        for polygon in self.run.map.junctions:
            view.fill(polygon, _RGB["road"])
        for lane in self.run.map.lanes:
            view.line(lane.polygon[: len(lane.center)], _RGB["center"])
        view.line(self.run.map.route, _RGB["route"])
        for obstacle in self.run.map.obstacles:
            view.fill(other_corners(obstacle), _RGB["obstacle"])
        for light in step.lights:
            self._draw_light(view, light)
        for other in step.others:
            person = other.kind in ("pedestrian", "cyclist")
            view.fill(other_corners(other), _RGB["person" if person else "other"])
        view.fill(ego_corners(step.ego, self.run.vehicle), _RGB["ego"])
        if step.plan >= 0:
            plan = self.run.plans[step.plan]
            view.line(plan.xy, _RGB["plan"], 2)
            view.dots(plan.xy, _RGB["plan"])
        return view.pixels

    @staticmethod
    def _draw_light(view: _GroundView, light: Light) -> None:
        view.line(np.array(light.stop_line), _LIGHTS[light.state], 3)


class _GroundView:
    """An image of the ground around the vehicle."""

    def __init__(self, ego: EgoStep):
        self._pose = EgoPose(ego.x, ego.y, ego.yaw, ego.speed)
        self.pixels = np.full((MAP_PX, MAP_PX, 3), _RGB["ground"], np.uint8)

    def _at(self, xy: np.ndarray) -> np.ndarray:
        local = to_ego(self._pose, np.asarray(xy, np.float64))
        scale = MAP_PX / MAP_M
        columns, rows = MAP_PX / 2 - local[:, 1] * scale, MAP_PX / 2 - (local[:, 0] - AHEAD_M) * scale
        return np.clip(np.round(16 * np.stack([columns, rows], 1)), -(2**24), 2**24).astype(np.int32)

    def fill(self, xy: np.ndarray, color: tuple[int, int, int]) -> None:
        cv2.fillPoly(self.pixels, [self._at(xy)], color, lineType=cv2.LINE_AA, shift=4)

    def line(self, xy: np.ndarray, color: tuple[int, int, int], width: int = 1) -> None:
        cv2.polylines(self.pixels, [self._at(xy)], False, color, width, cv2.LINE_AA, shift=4)

    def dots(self, xy: np.ndarray, color: tuple[int, int, int]) -> None:
        for x, y in self._at(xy).tolist():
            cv2.circle(self.pixels, (x, y), 48, color, -1, cv2.LINE_AA, shift=4)


def frames(run: RunRecord, every: int = 1) -> Iterator[np.ndarray]:
    """The pictures of a run, one for each ``every``-th step of its record. Raises SimError where none can be drawn."""
    with Film(run) as film:
        for step in run.steps[::every]:
            yield film.frame(step)


def _require_steps(run: RunRecord) -> None:
    if not run.steps:
        reason = f" ({run.reason})" if run.reason else ""
        raise SimError(
            f"{run.row.name}, {run.family} {run.seed}: the run has no steps{reason}; there is nothing to show"
        )


def write_video(run: RunRecord, path: Path) -> int:
    """An MP4 of a run at its own pace. Returns the number of pictures.

    Raises:
        SimError: the run has no steps, none can be drawn, or the file cannot be written.
    """
    _require_steps(run)
    size, count = (CAMERA_PX[0] + MAP_PX, MAP_PX), 0
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 1 / RECORD_S, size)
    if not writer.isOpened():
        raise SimError(f"{path}: the video cannot be written; choose another folder")
    try:
        for picture in frames(run):
            writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            count += 1
    finally:
        writer.release()
    return count


def write_sheet(run: RunRecord, path: Path, every: int = 20, columns: int = 2) -> None:
    """A JPEG with a picture every ``every`` steps. Raises SimError as ``write_video``."""
    _require_steps(run)
    pictures = list(frames(run, every))
    blank = np.full_like(pictures[0], 255)
    pictures += [blank] * (-len(pictures) % columns)
    rows = [np.concatenate(pictures[i : i + columns], axis=1) for i in range(0, len(pictures), columns)]
    sheet = cv2.resize(np.concatenate(rows), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    if not cv2.imwrite(str(path), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR)):
        raise SimError(f"{path}: the picture cannot be written; choose another folder")


def _write(picture: np.ndarray, text: str, row: int) -> None:
    for color, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(picture, text, (8, row), cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, width, cv2.LINE_AA)
