"""Meshes of road vehicles at their reference size. Rear lamps are small and dim, or wide and bright when braking."""

from __future__ import annotations

from fastdrive_sim.meshes import MeshBuilder

_GLASS = (0.07, 0.09, 0.12)
_TYRE = (0.05, 0.05, 0.05)
_CHASSIS = (0.10, 0.10, 0.11)
_TRIM = (0.16, 0.16, 0.17)


def car(build: MeshBuilder, variant: int, braking: bool) -> None:
    """A saloon, an estate or a hatchback of 4.5 x 1.8 x 1.5 m."""
    rear = ((-2.15, -1.35), (-2.2, -2.0), (-2.1, -1.7))[variant % 3]
    build.box((-2.2, -0.82, 0.2), (2.2, 0.82, 0.4), color=_CHASSIS)
    hood = [(-2.25, 0.35), (2.25, 0.35), (2.22, 0.68), (1.0, 0.88), (-2.1, 0.92), (-2.25, 0.8)]
    build.extrude(hood, (-0.9, 0.9))
    roof = {"color": (-1.0, -1.0, -1.0)}
    build.frustum((rear[0], -0.84, 0.9), (1.05, 0.84, 1.5), (rear[1], -0.64), (0.2, 0.64), roof, color=_GLASS)
    for x in (-0.55, -0.47):
        for y in (-1, 1):
            build.face(_pillar(x, y))
    _wheels(build, (-1.4, 1.4), 0.9, 0.34)
    _lamps(build, (-2.25, 2.23), 0.86, (0.6, 0.8), braking)
    if braking:
        build.panel(rear[1] - 0.08, (-0.3, 0.3), (1.36, 1.46), back=True, color=(1.0, 0.08, 0.05), glow=True)


def truck(build: MeshBuilder, variant: int, braking: bool) -> None:
    """A cab and a box body (or a flat bed with a load) of 8 x 2.5 x 3.3 m."""
    build.box((-4.0, -1.1, 0.45), (4.0, 1.1, 0.95), color=_CHASSIS)
    build.frustum((2.1, -1.2, 0.6), (4.0, 1.2, 2.7), (2.1, -1.15), (3.8, 1.15))
    build.face([(3.93, -1.0, 1.6), (3.93, 1.0, 1.6), (3.86, 1.0, 2.4), (3.86, -1.0, 2.4)], color=_GLASS)
    for y in (-1, 1):
        points = [(2.6, y * 1.21, 1.6), (3.6, y * 1.21, 1.6), (3.5, y * 1.19, 2.3), (2.6, y * 1.19, 2.3)]
        build.face(points if y < 0 else points[::-1], color=_GLASS)
    if variant % 2:
        build.box((-4.0, -1.25, 0.95), (1.9, 1.25, 3.3), color=(0.82, 0.82, 0.80))
        build.panel(-4.01, (-1.0, 1.0), (1.2, 3.1), back=True, color=(0.7, 0.7, 0.69))
    else:
        build.box((-4.0, -1.25, 0.95), (1.9, 1.25, 3.3), shade=0.9)
        build.panel(-4.01, (-1.0, 1.0), (1.2, 3.1), back=True, shade=0.7)
    _wheels(build, (-2.9, -1.9, 2.9), 1.2, 0.5)
    _lamps(build, (-4.02, 4.0), 1.15, (0.7, 1.0), braking)


def bus(build: MeshBuilder, variant: int, braking: bool) -> None:
    """A city bus of 12 x 2.55 x 3.2 m with a band of windows."""
    build.box((-6.0, -1.27, 0.35), (6.0, 1.27, 3.2))
    for y in (-1, 1):
        for i in range(6):
            x = -5.7 + 1.95 * i
            points = [(x, y * 1.28, 1.35), (x + 1.7, y * 1.28, 1.35), (x + 1.7, y * 1.28, 2.6), (x, y * 1.28, 2.6)]
            build.face(points if y < 0 else points[::-1], color=_GLASS)
    build.panel(6.01, (-1.15, 1.15), (1.2, 2.8), color=_GLASS)
    build.panel(-6.01, (-1.05, 1.05), (1.7, 2.7), back=True, color=_GLASS)
    build.box((-5.5, -0.7, 3.2), (-2.5, 0.7, 3.4), shade=0.7)
    _wheels(build, (-3.6, 3.6), 1.27, 0.5)
    _lamps(build, (-6.02, 6.02), 1.2, (0.9, 1.25), braking)


def _pillar(x: float, side: int) -> list[tuple[float, float, float]]:
    low, high = side * 0.85, side * 0.66
    points = [(x, low, 0.9), (x + 0.08, low, 0.9), (x + 0.08, high, 1.5), (x, high, 1.5)]
    return points if side < 0 else points[::-1]


def _wheels(build: MeshBuilder, axles: tuple[float, ...], half_width: float, radius: float) -> None:
    octagon = [(0.92, 0.38), (0.38, 0.92), (-0.38, 0.92), (-0.92, 0.38), (-0.92, -0.38), (-0.38, -0.92)]
    octagon = [*octagon, (0.38, -0.92), (0.92, -0.38)]
    for x in axles:
        rim = [(x + radius * a, radius * (1 + b)) for a, b in octagon]
        hub = [(x + 0.55 * radius * a, radius * (1 + 0.55 * b)) for a, b in octagon]
        for side in (-1, 1):
            inner, outer = sorted((side * (half_width - 0.25), side * (half_width + 0.03)))
            build.extrude(rim, (inner, outer), color=_TYRE)
            face = [(px, side * (half_width + 0.04), pz) for px, pz in hub]
            build.face(face if side < 0 else face[::-1], color=(0.45, 0.45, 0.47))


def _lamps(
    build: MeshBuilder, x: tuple[float, float], half_width: float, z: tuple[float, float], braking: bool
) -> None:
    """Rear lamps, headlamps and bumper strips at the rear and front ends ``x``."""
    wide, grow = (0.52, 0.12) if braking else (0.3, 0.0)
    look = {"color": (1.0, 0.06, 0.04), "glow": True} if braking else {"color": (0.34, 0.02, 0.03)}
    for side in (-1, 1):
        rear = sorted((side * half_width, side * (half_width - wide)))
        build.panel(x[0] - 0.02, rear, (z[0] - grow, z[1] + grow), back=True, **look)
        front = sorted((side * half_width, side * (half_width - 0.34)))
        build.panel(x[1] + 0.02, front, (z[0] - 0.06, z[1] - 0.06), color=(0.95, 0.95, 0.88), glow=True)
    low = z[0] - 0.2
    build.panel(x[0] - 0.015, (-half_width, half_width), (low - 0.12, low), back=True, color=_TRIM)
    build.panel(x[1] + 0.015, (-half_width, half_width), (low - 0.12, low + 0.06), color=_TRIM)
    build.panel(x[0] - 0.018, (-0.26, 0.26), (low + 0.02, low + 0.14), back=True, color=(0.8, 0.8, 0.75))
