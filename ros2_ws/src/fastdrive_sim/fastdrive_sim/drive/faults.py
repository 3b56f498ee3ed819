"""Faults that a run can be given: of the camera stream, of the ego state, of the latency.

The three families of Bench2Drive-Robust. A new fault is a class here and an entry in ``FAULTS``. Every fault draws its
random numbers from the seed of the run, so that all rows meet the same ones.
"""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np

from fastdrive_node.errors import UsageError
from fastdrive_sim.drive.types import EgoStep

Images = list[np.ndarray | None]  # of each camera, uint8 [H, W, 3]; None: nothing is sent


class Fault:
    """No fault. ``severity`` is in ``unit``, from ``least`` to ``most``; at ``neutral`` nothing changes."""

    name = ""
    unit = ""
    least, most = 0.0, 1.0
    whole = False  # only whole numbers
    neutral = 0.0
    summary = "no fault"

    def __init__(self, severity: float = 0.0):
        self.severity = severity
        self.begin(0)

    def begin(self, seed: int) -> None:
        """A new run."""
        self.rng = np.random.default_rng((zlib.crc32(self.name.encode()), seed))

    def images(self, images: Images) -> Images:
        """What the node gets in place of a frame set, once a planning tick."""
        return images

    def odometry(self, ego: EgoStep) -> EgoStep:
        """What the node gets in place of the true state."""
        return ego

    @property
    def held_ticks(self) -> int:
        """Planning periods for which a plan is held back."""
        return 0


class Burst(Fault):
    name, unit = "burst", "ticks that show the same images"
    least, most, whole = 1.0, 20.0, True
    neutral = 1.0
    summary = "only every n-th frame set is new, the ones between repeat it with new stamps"

    def begin(self, seed: int) -> None:
        super().begin(seed)
        self._cached: Images = []
        self._left = 0

    def images(self, images: Images) -> Images:
        if self._left <= 0:
            self._cached, self._left = images, max(round(self.severity), 1)
        self._left -= 1
        return self._cached


class Frozen(Fault):
    name, unit, most = "frozen", "fraction of the cameras", 1.0
    summary = "from the third tick on some cameras repeat one image"

    def begin(self, seed: int) -> None:
        super().begin(seed)
        self._ticks = 0
        self._held: dict[int, np.ndarray | None] = {}

    def images(self, images: Images) -> Images:
        if self._ticks == 2:
            self._held = {index: images[index] for index in _some(self.rng, len(images), self.severity)}
        self._ticks += 1
        return [self._held.get(index, image) for index, image in enumerate(images)]


class Dropped(Fault):
    name, unit, most = "dropped", "probability that a frame set lacks a camera", 1.0
    summary = "frame sets without one of their cameras; the node refuses them unless it may plan without"

    def images(self, images: Images) -> Images:
        lost, camera = self.rng.random() < self.severity, int(self.rng.integers(len(images)))
        return [None if lost and index == camera else image for index, image in enumerate(images)]


class Black(Fault):
    name, unit, most = "black", "fraction of the cameras", 1.0
    summary = "some cameras are black for the whole run"

    def begin(self, seed: int) -> None:
        super().begin(seed)
        self._which: list[int] | None = None

    def images(self, images: Images) -> Images:
        if self._which is None:
            self._which = _some(self.rng, len(images), self.severity)
        dark = set(self._which)
        return [image if image is None or index not in dark else image * 0 for index, image in enumerate(images)]


class Swapped(Fault):
    name, unit = "swapped", "pairs of cameras"
    most, whole = 3.0, True
    summary = "pairs of cameras have changed their places, the front camera among the first pair"

    def begin(self, seed: int) -> None:
        super().begin(seed)
        self._order: list[int] | None = None

    def images(self, images: Images) -> Images:
        if self._order is None:
            order = list(range(len(images)))
            rest = [0, *(1 + self.rng.permutation(len(images) - 1)).tolist()]
            for pair in range(min(round(self.severity), len(images) // 2)):
                a, b = rest[2 * pair], rest[2 * pair + 1]
                order[a], order[b] = b, a
            self._order = order
        return [images[index] for index in self._order]


class PositionNoise(Fault):
    name, unit, most = "position-noise", "m, standard deviation", 10.0
    summary = "white noise on the position of the odometry"

    def odometry(self, ego: EgoStep) -> EgoStep:
        x, y = self.rng.normal(0.0, self.severity, 2) if self.severity else (0.0, 0.0)
        return replace(ego, x=ego.x + float(x), y=ego.y + float(y))


class SpeedScale(Fault):
    name, unit, most = "speed-scale", "factor", 4.0
    neutral = 1.0
    summary = "the speed of the odometry is multiplied; positions stay true"

    def odometry(self, ego: EgoStep) -> EgoStep:
        return replace(ego, speed=ego.speed * self.severity)


class LatencyFault(Fault):
    name, unit = "latency", "planning periods"
    most, whole = 20.0, True
    summary = "every plan is held back for n planning periods, while others are made (a queue before the controller)"

    @property
    def held_ticks(self) -> int:
        return round(self.severity)


_ALL = (Burst, Frozen, Dropped, Black, Swapped, PositionNoise, SpeedScale, LatencyFault)
FAULTS: dict[str, type[Fault]] = {fault.name: fault for fault in _ALL}


def parse_fault(text: str) -> tuple[str, float]:
    """``NAME:SEVERITY`` as (name, severity). Raises UsageError."""
    name, _, number = text.partition(":")
    if name not in FAULTS:
        raise UsageError(f"--fault {name}: unknown; give one of {', '.join(FAULTS)}, as in frozen:0.5")
    fault = FAULTS[name]
    try:
        severity = float(number)
    except ValueError:
        severity = -1.0
    if not fault.least <= severity <= fault.most or (fault.whole and severity != round(severity)):
        number = "a whole number from" if fault.whole else "a number from"
        raise UsageError(
            f"--fault {text}: give {name}:SEVERITY, {number} {fault.least:g} to {fault.most:g} ({fault.unit})"
        )
    return name, severity


def make_fault(name: str, severity: float) -> Fault:
    """The fault of a row; "" is none."""
    return FAULTS[name](severity) if name else Fault()


def _some(rng: np.random.Generator, count: int, fraction: float) -> list[int]:
    """At least one of ``count`` indices where the fraction is above 0; the first one, the front camera, always."""
    number = min(int(np.ceil(fraction * count)), count)
    return [0, *(1 + rng.permutation(count - 1)).tolist()][:number]
