"""Angles and planar frames, written once for node, training and simulator. Pure numpy."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np

Angle = TypeVar("Angle", float, np.ndarray)


def wrap_angle(angle_rad: Angle) -> Angle:
    """An angle, or an array of them, in [-pi, pi)."""
    return (angle_rad + math.pi) % (2 * math.pi) - math.pi
