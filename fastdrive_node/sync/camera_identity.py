"""Whether the image on a camera's topic is that camera's: ``frame_id`` and CameraInfo. No ROS."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fastdrive_node.errors import ImageError, InputError
from fastdrive_node.sync.health import InputLimits, check_odometry, check_publishers, check_stamps, told
from fastdrive_node.types import CameraFrame, EgoHistory, FrameSet

_SUFFIX = re.compile(r"(_(optical|frame|link))+$")  # of frame names beside the camera's name
_PAIR = re.compile(r"^([A-Za-z][A-Za-z0-9_]*)=([A-Za-z0-9_/]+)$")


@dataclass(frozen=True)
class CameraInfo:
    """What a sensor_msgs/CameraInfo tells of the images; (0, 0) is a size that is not told."""

    frame_id: str
    size: tuple[int, int]  # height, width, of the region of interest and after binning


def parse_frame_ids(text: str) -> dict[str, str]:
    """Frame ids by camera from "CAM_FRONT=front_optical CAM_BACK=back_optical".

    Raises:
        InputError: a word is no such pair, or a camera is there twice.
    """
    found: dict[str, str] = {}
    for word in text.split():
        pair = _PAIR.match(word)
        if pair is None or pair[1] in found:
            raise InputError(f"{word[:60]!r} is not one frame_id of one camera, like CAM_FRONT=camera_front_optical")
        found[pair[1]] = pair[2].lstrip("/")
    return found


def camera_problems(lines: Iterable[str], cameras: Sequence[str]) -> dict[str, str]:
    """By camera what is wrong with it, like "dark", from lines of the form "image.dark: CAM_BACK: text"."""
    found: dict[str, str] = {}
    for line in lines:
        code, _, rest = line.partition(": ")
        camera, colon, _ = rest.partition(": ")
        if "." in code and colon and camera in cameras:
            found.setdefault(camera, code.rpartition(".")[2])
    return found


class InputChecks:
    """Checks the frame sets of a vehicle, one after the other; learns which camera has which ``frame_id``."""

    def __init__(self, cameras: Sequence[str]):
        self.publishers: Mapping[str, int] = {}  # matched ones, by input
        self._names = {camera.lower(): camera for camera in cameras}
        self._infos: dict[str, CameraInfo] = {}
        self._learnt: dict[str, str] = {}

    def tell_camera_info(self, camera: str, info: CameraInfo) -> None:
        self._infos[camera] = info

    def check(
        self, frames: FrameSet, history: EgoHistory, limits: InputLimits, frame_change: str = ""
    ) -> tuple[FrameSet, tuple[str, ...]]:
        """
        Args:
            frame_change: see ``check_odometry``.

        Returns:
            The set with the sizes that CameraInfo tells, and the warnings, each "code: text".

        Raises:
            FrameSetError, ImageError, EgoStateError: a check whose action is "refuse" failed, see ``sync.health``.
                Codes of this class are "image.frame_id" and "image.camera_info".
        """
        real = [frame for frame in frames.frames if frame.camera not in frames.missing]
        warnings = (
            *check_stamps(real, (), limits),
            *self._check_frame_ids(real, limits),
            *check_publishers(self.publishers, frames.cameras, limits),
            *check_odometry(history, limits, frame_change),
        )
        return replace(frames, frames=tuple(map(self._with_size, frames.frames))), warnings

    def _with_size(self, frame: CameraFrame) -> CameraFrame:
        info = self._infos.get(frame.camera)
        return frame if info is None or 0 in info.size else replace(frame, expected_size=info.size)

    def _check_frame_ids(self, frames: Iterable[CameraFrame], limits: InputLimits) -> tuple[str, ...]:
        warnings: tuple[str, ...] = ()
        for frame in frames:
            frame_id, info = frame.frame_id.lstrip("/"), self._infos.get(frame.camera)
            if problem := self._foreign(frame.camera, frame_id, limits.frame_ids.get(frame.camera)):
                warnings += told(limits.frame_id, "image.frame_id", f"{frame.camera}: {problem}", ImageError)
            elif info is not None and frame_id and info.frame_id and frame_id != info.frame_id.lstrip("/"):
                text = f"{frame.camera}: frame_id {frame_id!r}, and its CameraInfo has {info.frame_id!r}"
                warnings += told(limits.camera_info, "image.camera_info", text, ImageError)
        return warnings

    def _foreign(self, camera: str, frame_id: str, given: str | None) -> str:
        """Why an image is not of this camera; empty: it may be."""
        expected = given or self._learnt.setdefault(camera, frame_id)
        named = self._names.get(_SUFFIX.sub("", frame_id.lower()))
        if frame_id == expected:
            return f"frame_id {frame_id!r} is that of {named}" if not given and named not in (None, camera) else ""
        owners = [other for other, learnt in self._learnt.items() if learnt == frame_id and other != camera]
        owner = named if named not in (None, camera) else owners[0] if len(owners) == 1 else None
        return f"frame_id {frame_id!r}, not {expected!r}" + (f": that of {owner}" if owner else "")
