"""A small world made by hand, for tests of the renderer."""

from __future__ import annotations

import math

import numpy as np

from fastdrive_sim.types import EgoPose, Label, Snapshot, Surface, Thing, World


def rectangle(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """Two triangles, float32 [2, 3, 2]."""
    a, b, c, d = (x0, y0), (x1, y0), (x1, y1), (x0, y1)
    return np.array([[a, b, c], [a, c, d]], np.float32)


def street() -> World:
    """A straight road along x with dashes, kerbs, houses, trees, a billboard and signs."""
    dashes = np.concatenate([rectangle(x, -0.08, x + 3, 0.08) for x in range(-150, 150, 9)])
    edges = np.concatenate([rectangle(-200, y - 0.06, 200, y + 0.06) for y in (-3.6, 3.6)])
    surfaces = (
        Surface(Label.ROAD, np.concatenate([rectangle(-200, -4, 200, 4)]), 0.01, (78, 78, 82)),
        Surface(Label.SIDEWALK, rectangle(-200, 4, 200, 6.5), 0.03, (150, 146, 140)),
        Surface(Label.SIDEWALK, rectangle(-200, -6.5, 200, -4), 0.03, (150, 146, 140)),
        Surface(Label.LANE_MARK, np.concatenate([dashes, edges]), 0.03, (225, 225, 220)),
    )
    rng = np.random.default_rng(3)
    things: list[Thing] = []

    def add(kind: str, x: float, y: float, size: tuple[float, float, float], **more) -> None:
        color = (
            tuple(int(c) for c in rng.integers(110, 200) + rng.integers(-25, 25, 3))
            if "color" not in more
            else more.pop("color")
        )
        more = {"yaw": 0.0, "variant": int(rng.integers(0, 60)), **more}
        things.append(Thing(instance=len(things) + 100, kind=kind, x=x, y=y, size=size, color=color, **more))

    for x in range(-140, 150, 20):
        for side in (-1, 1):
            add("building", x, side * 19, (14.0, 10.0, float(rng.uniform(5, 25))))
            green = (int(rng.integers(50, 90)), int(rng.integers(95, 130)), 50)
            add("tree", x + 8, side * 8.5, (4.0, 4.0, float(rng.uniform(5, 9))), color=green)
            add("bush", x + 3, side * 8, (1.5, 1.5, 1.0), color=green)
        add("lamp_post", x + 5, 7.0, (0.2, 0.2, 7.0), yaw=-math.pi / 2)
    add("billboard", 35, -9, (0.4, 6.0, 5.0), yaw=math.pi)
    add("billboard", -25, 9, (0.4, 6.0, 5.0))
    for i, state in enumerate(("stop", "limit30", "limit50", "curve_left", "curve_right")):
        add("traffic_sign", 12.0 + 7 * i, -5.0, (0.1, 0.8, 2.8), yaw=math.pi, state=state)
    for x in range(10, 24, 2):
        add("barrier", x, 5.5, (2.0, 0.6, 0.9), variant=x // 2, color=(190, 188, 180))
    for x in range(-10, 10, 3):
        add("traffic_cone", x, -3.9, (0.4, 0.4, 0.7))
    add("car", -8, 2.9, (4.4, 1.8, 1.5), color=(150, 30, 30))
    return World(seed=5, surfaces=surfaces, things=tuple(things))


def traffic(**changes: str) -> Snapshot:
    """The ego vehicle in the right lane behind a car; ``changes`` are states by name: lead=brake, light=red."""
    at = lambda i, kind, x, y, yaw, size, color, **m: Thing(i, kind, x, y, yaw, size, color, **m)  # noqa: E731
    things = (
        at(1, "car", 14.0, -1.8, 0.0, (4.5, 1.8, 1.5), (40, 80, 160), speed=8.0, state=changes.get("lead", "")),
        at(2, "bus", 26.0, 1.8, math.pi, (12, 2.55, 3.2), (210, 150, 30), speed=8.0),
        at(3, "truck", -14.0, -1.8, 0.0, (8, 2.5, 3.3), (60, 110, 70), variant=1),
        at(4, "pedestrian", 9.0, 2.4, -1.6, (0.5, 0.6, 1.75), (180, 60, 60), speed=1.4, variant=7),
        at(5, "pedestrian", 11.0, -5.2, 0.3, (0.5, 0.6, 1.7), (60, 60, 180), variant=13),
        at(6, "traffic_light", 24.0, -4.6, math.pi, (0.4, 0.9, 5.0), (60, 60, 60), state=changes.get("light", "red")),
        at(7, "car", 3.5, 5.5, -0.9, (4.2, 1.75, 1.5), (200, 200, 205), variant=1),
    )
    return Snapshot(2.0, EgoPose(0.0, -1.8, 0.0, 8.0), things, "straight", np.zeros((2, 2)))
