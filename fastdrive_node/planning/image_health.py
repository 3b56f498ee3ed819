"""Whether images show anything: dark, saturated, flat, noise, frozen, of another size than expected. No ROS.

Of each image a grid of 64 x 36 green values is looked at, and those right of and below them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from fastdrive_node.errors import ImageError
from fastdrive_node.planning.images import LoadedImage
from fastdrive_node.sync.health import Action, told
from fastdrive_node.types import CameraFrame

_COLUMNS, _ROWS = 64, 36
_TOP = 250  # values from here on are saturated
MOVING_MPS = 0.5  # a vehicle that stands in a simulator sees the same image again and again


@dataclass(frozen=True)
class ImageLimits:
    """When an image is dark, saturated, ..., and what is done with it then. Green values are 0 to 255."""

    dark_check: Action = "warn"
    dark: float = 8.0  # mean below which an image is dark
    saturated_check: Action = "warn"
    saturated: float = 0.9  # fraction at 250 or more, above which it is saturated
    flat_check: Action = "warn"
    flat: float = 1.5  # standard deviation below which it shows one color
    noise_check: Action = "warn"
    # Variance of the differences of neighbours over twice the variance: 1 for noise of independent pixels, 0.55 for
    # demosaiced noise, at most 0.11 in images of vehicles and of the simulator. Below 64 pixels it may be more.
    noise: float = 0.5
    frozen_check: Action = "warn"
    frozen_sets: int = 3  # equal images in a row, while the vehicle moves
    size_check: Action = "warn"  # the size of the image before
    camera_info_check: Action = "warn"  # the size that CameraInfo tells


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

    def check(self, images: Iterable[tuple[CameraFrame, LoadedImage]], speed_mps: float) -> tuple[str, ...]:
        """Look at a set.

        Args:
            images: frames, each with its decoded image.

        Returns:
            The warnings, "code: camera: text", at most one a camera. Codes are image.dark, image.saturated, image.flat,
            image.noise, image.frozen, image.size and image.camera_info.

        Raises:
            ImageError: the same, where the action of the check is "refuse".
        """
        warnings: tuple[str, ...] = ()
        for frame, image in images:
            for name, text in self._look(frame, image, speed_mps):
                action: Action = getattr(self.limits, f"{name}_check")
                if action != "off":
                    warnings += told(action, f"image.{name}", f"{frame.camera}: {text}", ImageError)
                    break
        return warnings

    def _look(self, frame: CameraFrame, loaded: LoadedImage, speed_mps: float) -> Iterator[tuple[str, str]]:
        """Name and text of each check that the image fails."""
        limits, image, size = self.limits, loaded.pixels, loaded.size
        rows, columns = _grid(image.shape[0], _ROWS), _grid(image.shape[1], _COLUMNS)
        green = image[rows[:, None], columns[None, :], 1]
        now, before = _Seen(green.tobytes(), size, frame.stamp_ns), self._seen.get(frame.camera)
        self._seen[frame.camera] = now
        if before is not None and now.grid == before.grid and now.stamp_ns > before.stamp_ns and speed_mps > MOVING_MPS:
            now.equal = before.equal + 1
        if frame.expected_size is not None and size != frame.expected_size:
            yield "camera_info", f"{_pixels(size)}, and its CameraInfo tells {_pixels(frame.expected_size)}"
        if before is not None and size != before.size:
            yield "size", f"{_pixels(size)} after {_pixels(before.size)}"
        mean, deviation, bright = float(green.mean()), float(green.std()), float((green >= _TOP).mean())
        if mean < limits.dark:
            yield "dark", f"the mean is {mean:.1f} of 255"
        if bright > limits.saturated:
            yield "saturated", f"{bright:.0%} of the pixels are at the top"
        if deviation < limits.flat:
            yield "flat", f"it shows one color, the standard deviation is {deviation:.1f} of 255"
        elif (noise := _noise(image, rows, columns)) > limits.noise:
            yield "noise", f"neighbouring pixels differ as those of noise do ({noise:.2f})"
        if now.equal >= limits.frozen_sets:
            yield "frozen", f"{now.equal} equal images in a row, the vehicle moves at {speed_mps:.1f} m/s"


def _grid(length: int, count: int) -> np.ndarray:
    """Indices of ``count`` pixels, each with a neighbour where there are two."""
    last = max(length - 2, 0)
    return np.linspace(0, last, min(count, last + 1)).astype(int)


def _noise(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> float:
    """See ``ImageLimits.noise``; 0 for images of one row or column."""
    if min(image.shape[:2]) < 2:
        return 0.0
    values, right, below = (
        image[rows[:, None] + down, columns[None, :] + aside, 1].astype(np.float32)
        for down, aside in ((0, 0), (0, 1), (1, 0))
    )
    differences = np.mean((values - right) ** 2 + (values - below) ** 2)
    return float(differences / (4 * max(float(values.var()), 1e-6)))


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]} pixels"
