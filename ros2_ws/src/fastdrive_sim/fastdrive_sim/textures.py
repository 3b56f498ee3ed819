"""Small procedural textures, one layer each of a texture array. A layer multiplies the color of a surface by 0..2."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

SIDE = 128  # pixels
FLAT, GRAIN, GRASS, FOLIAGE, CONCRETE, CLOUD, STRIPES, PAVING = range(8)
FACADE, FACADES = 8, 6
BILLBOARD, BILLBOARDS = FACADE + FACADES, 8
STOP = BILLBOARD + BILLBOARDS
CURVE_LEFT, CURVE_RIGHT, NOTICE, LIMIT = STOP + 1, STOP + 2, STOP + 3, STOP + 4
LIMITS = ("", "20", "30", "40", "50", "60", "70", "80", "100", "120")
LAYERS = LIMIT + len(LIMITS)


def _noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Smooth noise in -1..1 that tiles, [SIDE, SIDE]."""
    grid = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    padded = np.pad(grid, 2, mode="wrap")
    scale = SIDE // cells
    big = cv2.resize(padded, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    return big[2 * scale : 2 * scale + SIDE, 2 * scale : 2 * scale + SIDE]


def _fractal(rng: np.random.Generator, cells: int, gain: float) -> np.ndarray:
    """Octaves of noise from ``cells`` per side to one per pixel, standard deviation 1, [SIDE, SIDE]."""
    total, amplitude = np.zeros((SIDE, SIDE), np.float32), 1.0
    while cells <= SIDE:
        total += amplitude * _noise(rng, cells)
        cells, amplitude = cells * 2, amplitude * gain
    return (total - total.mean()) / total.std()


def _tinted(noise: np.ndarray, contrast: float, tint: tuple[float, float, float]) -> np.ndarray:
    return 0.5 + contrast * noise[..., None] * np.array(tint, np.float32)


def _grass(rng: np.random.Generator) -> np.ndarray:
    earth = np.clip(_fractal(rng, 4, 0.6) - 0.4, 0, 1.5)[..., None]
    return _tinted(_fractal(rng, 8, 0.9), 0.10, (1, 1, 0.7)) + earth * np.array([0.10, 0.0, 0.01], np.float32)


def _paving(rng: np.random.Generator) -> np.ndarray:
    image = _tinted(_fractal(rng, 16, 0.9), 0.03, (1, 1, 1))
    image[::32] *= 0.72
    image[:, ::32] *= 0.72
    return image


def _facade(rng: np.random.Generator, style: int) -> np.ndarray:
    """Four by four windows in a wall; the window's size, its frame and the wall's bands differ by style."""
    image = _tinted(_fractal(rng, 16, 0.9), 0.035, (1, 1, 1))
    cell, wide, high = SIDE // 4, (14, 20, 28, 12, 24, 17)[style], (18, 16, 20, 24, 13, 22)[style]
    if style in (2, 4):
        image[::cell] *= 0.6
    for row in range(4):
        for column in range(4):
            y, x = row * cell + (cell - high) // 2, column * cell + (cell - wide) // 2
            image[y - 2 : y + high + 2, x - 2 : x + wide + 2] *= 1.25 if style % 2 else 0.8
            glass = np.array([0.13, 0.17, 0.22]) * rng.uniform(0.5, 1.5)
            if rng.random() < 0.12:
                glass = np.array([0.62, 0.52, 0.30])
            image[y : y + high, x : x + wide] = glass
            image[y : y + high // 3, x : x + wide] *= rng.uniform(1.0, 1.7)
            image[y : y + high, x + wide // 2] = 0.35
    return image


def _color(rng: np.random.Generator) -> tuple[float, ...]:
    return tuple(float(c) for c in rng.choice([0.05, 0.15, 0.3, 0.45, 0.5], 3))


def _billboard(rng: np.random.Generator) -> np.ndarray:
    """Discs, bars, large letters: conspicuous, and irrelevant for driving."""
    image = _plain(_color(rng))
    for _ in range(9):
        (x, y, w), h = rng.integers(0, SIDE, 3).tolist(), int(rng.integers(6, 48))
        shape = rng.integers(0, 3)
        if shape == 0:
            cv2.circle(image, (x, y), 5 + w // 4, _color(rng), -1)
        elif shape == 1:
            cv2.rectangle(image, (x, y), (x + w, y + h), _color(rng), -1)
        else:
            points = rng.integers(0, SIDE, (3, 2)).astype(np.int32)
            cv2.fillConvexPoly(image, points, _color(rng))
    word = "".join(rng.choice(list("ABDEKLMORSTXZ"), 5))
    cv2.putText(image, word, (8, int(rng.integers(30, 120))), cv2.FONT_HERSHEY_DUPLEX, 1.2, _color(rng), 3, cv2.LINE_AA)
    return image


def _plain(color: tuple[float, ...]) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), color, np.float32)


def _lettered(
    ground: tuple[float, float, float], ink: tuple[float, float, float], text: str, scale: float
) -> np.ndarray:
    image = _plain(ground)
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, scale, 7)
    origin = ((SIDE - width) // 2, (SIDE + height) // 2)
    return cv2.putText(image, text, origin, cv2.FONT_HERSHEY_DUPLEX, scale, ink, 7, cv2.LINE_AA)


def _stop() -> np.ndarray:
    return _lettered((0.42, 0.01, 0.02), (0.5, 0.5, 0.5), "STOP", 1.35)


def _limit(digits: str) -> np.ndarray:
    image = _lettered((0.5, 0.5, 0.5), (0.02, 0.02, 0.02), digits, 2.3 if len(digits) < 3 else 1.6)
    return cv2.circle(image, (SIDE // 2, SIDE // 2), 56, (0.45, 0.01, 0.02), 15, cv2.LINE_AA)


def _curve(left: bool) -> np.ndarray:
    image = _plain((0.5, 0.36, 0.0))
    for x in (30, 70):
        points = np.array([[x + 34, 14], [x, 64], [x + 34, 114]], np.int32)
        cv2.polylines(image, [points], False, (0.02, 0.02, 0.02), 15, cv2.LINE_AA)
    return image if left else image[:, ::-1]


def _notice() -> np.ndarray:
    image = _plain((0.03, 0.14, 0.42))
    cv2.rectangle(image, (56, 28), (72, 100), (0.5, 0.5, 0.5), -1)
    return cv2.rectangle(image, (36, 28), (92, 42), (0.5, 0.5, 0.5), -1)


def _stripes() -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    red = ((x + y) // 32 % 2 == 0)[..., None]
    return np.where(red, (0.45, 0.02, 0.02), (0.5, 0.5, 0.5))


@cache
def layers() -> np.ndarray:
    """All layers, uint8 [LAYERS, SIDE, SIDE, 4]; 128 keeps a color as it is. The same on every machine and run."""
    rng = np.random.default_rng(20)
    images = [
        np.full((SIDE, SIDE, 3), 128 / 255, np.float32),
        _tinted(_fractal(rng, 8, 1.0), 0.045, (1, 1, 1)),
        _grass(rng),
        _tinted(_fractal(rng, 8, 0.9), 0.16, (1, 1, 0.8)),
        _tinted(_fractal(rng, 4, 0.8), 0.05, (1, 1, 1)),
        _tinted(_fractal(rng, 4, 0.55), 0.25, (1, 1, 1)),
        _stripes(),
        _paving(rng),
        *(_facade(rng, style) for style in range(FACADES)),
        *(_billboard(rng) for _ in range(BILLBOARDS)),
        _stop(),
        _curve(True),
        _curve(False),
        _notice(),
        *(_limit(digits) for digits in LIMITS),
    ]
    out = np.full((LAYERS, SIDE, SIDE, 4), 255, np.uint8)
    out[..., :3] = np.clip(np.stack(images) * 255 + 0.5, 0, 255)
    return out
