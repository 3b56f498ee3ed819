"""Whether images show anything: dark, saturated, frozen, of another size than before. No ROS.

Of each image only a grid of 64 x 36 green values is looked at, a few microseconds of work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fastdrive_node.errors import ImageError
from fastdrive_node.sync.health import Action

_COLUMNS, _ROWS = 64, 36
MOVING_MPS = 0.5  # a vehicle that stands in a simulator sees the same image again and again


@dataclass(frozen=True)
class ImageLimits:
    """What is done with such an image, and when it is one."""

    action: Action = "warn"
    dark: float = 8.0  # mean of the green values, 0 to 255, below which an image is dark
    saturated: float = 0.9  # fraction of them at 250 or more, above which it is saturated
    frozen_sets: int = 3  # equal images in a row, while the vehicle moves


@dataclass
class _Seen:
    grid: bytes
    size: tuple[int, int]
    stamp_ns: int
    equal: int = 1


class ImageHealth:
    """Looks at the images of one set after the other."""

    def __init__(self, limits: ImageLimits):
        self.limits = limits
        self._seen: dict[str, _Seen] = {}

    def check(self, images: Mapping[str, tuple[int, np.ndarray]], speed_mps: float) -> tuple[str, ...]:
        """Look at a set.

        Args:
            images: stamp and uint8 [H, W, 3] by camera.

        Returns:
            The warnings, "code: camera: text" each; codes are image.dark, image.saturated, image.frozen, image.size.

        Raises:
            ImageError: the same, where the action is "refuse".
        """
        if self.limits.action == "off":
            return ()
        found = []
        for camera, (stamp_ns, image) in images.items():
            problem = self._look(camera, stamp_ns, image, speed_mps)
            if problem:
                code, text = problem
                if self.limits.action == "refuse":
                    raise ImageError(f"{camera}: {text}", code=code)
                found.append(f"{code}: {camera}: {text}")
        return tuple(found)

    def _look(self, camera: str, stamp_ns: int, image: np.ndarray, speed_mps: float) -> tuple[str, str] | None:
        height, width = image.shape[:2]
        rows = np.linspace(0, height - 1, min(_ROWS, height)).astype(int)
        columns = np.linspace(0, width - 1, min(_COLUMNS, width)).astype(int)
        green = image[rows[:, None], columns[None, :], 1]
        now, before = _Seen(green.tobytes(), (height, width), stamp_ns), self._seen.get(camera)
        self._seen[camera] = now
        if before is not None and now.size != before.size:
            old = before.size
            return "image.size", f"{width} x {height} pixels after {old[1]} x {old[0]}"
        mean = float(green.mean())
        if mean < self.limits.dark:
            return "image.dark", f"the mean is {mean:.1f} of 255"
        bright = float((green >= 250).mean())
        if bright > self.limits.saturated:
            return "image.saturated", f"{bright:.0%} of the pixels are at the top"
        if before is not None and now.grid == before.grid and stamp_ns > before.stamp_ns and speed_mps > MOVING_MPS:
            now.equal = before.equal + 1
            if now.equal >= self.limits.frozen_sets:
                return "image.frozen", f"{now.equal} equal images in a row, the vehicle moves at {speed_mps:.1f} m/s"
        return None
