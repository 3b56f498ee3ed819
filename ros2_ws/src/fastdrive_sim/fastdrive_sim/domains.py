"""Light and weather of a dataset: by day, at night, in rain. What a world holds, and so every label, stays the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fastdrive_sim.types import World

if TYPE_CHECKING:
    from fastdrive_sim.scene import Illumination

DEFAULT_DOMAIN = "day"
_DARK = np.zeros(3, np.float32)


@dataclass(frozen=True)
class Domain:
    """``light`` replaces a world's light. ``look`` is what the camera adds to an image, uint8 [H, W, 3] to the same;
    its generators are the same for all images of a camera in a scene (the lens), and new with each (the frame)."""

    summary: str
    light: Callable[[Illumination], Illumination] = lambda light: light
    look: Callable[[np.ndarray, np.random.Generator, np.random.Generator], np.ndarray] | None = None


def light_of(world: World) -> Illumination:
    """The light of a world in its domain."""
    from fastdrive_sim.scene import Illumination  # it needs OpenCV, which the names of the domains do not

    return DOMAINS[world.domain].light(Illumination.of(world))


def look_of(world: World, time_s: float, images: np.ndarray) -> np.ndarray:
    """What the cameras of ``world.domain`` make of rendered images, uint8 [C, H, W, 3]; the same where called again."""
    look = DOMAINS[world.domain].look
    if look is None:
        return images
    moment = round(time_s * 1000) % (1 << 32)
    seen = []
    for camera, image in enumerate(images):
        lens = np.random.default_rng((world.seed, 1, camera))
        frame = np.random.default_rng((world.seed, 2, camera, moment))
        seen.append(look(image, lens, frame))
    return np.stack(seen)


def _night_light(light: Illumination) -> Illumination:
    """No sun, a seventh of the ambient light, bluish, and headlights."""
    return replace(
        light,
        sun_color=_DARK,
        ambient=np.array([0.46, 0.56, 0.80], np.float32),
        sky=np.array([0.015, 0.02, 0.05], np.float32),
        haze=np.array([0.035, 0.04, 0.06], np.float32),
        cloud=np.array([0.06, 0.06, 0.075], np.float32),
        level=0.14,
        headlights=np.array([2.7, 2.1, 1.3], np.float32),
    )


def _noise(image: np.ndarray, lens: np.random.Generator, frame: np.random.Generator) -> np.ndarray:
    """Noise of a sensor at high gain: read noise of 4 levels, and shot noise that grows with the light."""
    light = image.astype(np.float32)
    sigma = np.sqrt(16.0 + 0.35 * light)
    return np.clip(light + sigma * frame.standard_normal(image.shape, np.float32) + 0.5, 0, 255).astype(np.uint8)


def _rain_light(light: Illumination) -> Illumination:
    """Overcast, wet ground, and less sight than in any world of the day, where half is haze at 380 m or more."""
    gray = np.array([0.57, 0.59, 0.61], np.float32)
    return replace(
        light,
        sun_color=_DARK,
        ambient=np.array([0.60, 0.63, 0.67], np.float32),
        sky=gray * 0.92,
        haze=gray,
        cloud=gray * 0.85,
        haze_half_m=120.0,
        ground=0.62,
    )


def _rain(image: np.ndarray, lens: np.random.Generator, frame: np.random.Generator) -> np.ndarray:
    """Streaks, and a few drops on the lens that blur what is behind them."""
    import cv2

    height, width = image.shape[:2]
    seen = image.astype(np.float32)
    streaks = np.zeros((height, width), np.uint8)
    slant = lens.uniform(-0.25, 0.25)
    for _ in range(round(110 * width / height)):
        x, y, length = frame.uniform(0, width), frame.uniform(-0.1, 1) * height, frame.uniform(0.03, 0.13) * height
        top, low = ((round(16 * (x + slant * part)), round(16 * (y + part))) for part in (0.0, length))
        cv2.line(streaks, top, low, (int(frame.integers(25, 95)),), max(1, height // 250), cv2.LINE_AA, 4)
    seen += (225.0 - seen) * (cv2.GaussianBlur(streaks, (3, 3), 0)[..., None] / np.float32(255))
    drops = np.zeros((height, width), np.float32)
    for _ in range(lens.integers(3, 8)):
        x, y, radius = lens.uniform(0, width), lens.uniform(0, height), lens.uniform(0.025, 0.07) * height
        cv2.circle(drops, (round(16 * x), round(16 * y)), round(16 * radius), (1.0,), -1, cv2.LINE_8, 4)
    drops = cv2.GaussianBlur(drops, (0, 0), height / 120)[..., None]
    seen += (cv2.GaussianBlur(seen, (0, 0), height / 30) * 1.06 - seen) * drops
    return np.clip(seen + 0.5, 0, 255).astype(np.uint8)


DOMAINS = {
    DEFAULT_DOMAIN: Domain("sun, and haze in some worlds"),
    "night": Domain("headlights, and noise of the sensor", _night_light, _noise),
    "rain": Domain("gray haze, wet ground, streaks, and drops on the lens", _rain_light, _rain),
}
