"""The dataclasses that cross the modules of the simulator. SI units; world frame x east, y north, z up, yaw CCW."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

SPLITS = ("train", "val", "test")  # of a dataset
STORAGES, TRANSPORTS = ("mcap", "sqlite3"), ("raw", "compressed")  # of a bag: its files, and the images in it


class Label(IntEnum):
    """Class of a pixel. The foreground groups of nuScenes-FG are in ``FOREGROUND_GROUPS``."""

    SKY = 0
    GROUND = 1
    ROAD = 2
    LANE_MARK = 3
    SIDEWALK = 4
    BUILDING = 5
    VEGETATION = 6
    BILLBOARD = 7
    VEHICLE = 8
    PEDESTRIAN = 9
    TRAFFIC_LIGHT = 10
    TRAFFIC_SIGN = 11
    BARRIER = 12
    POLE = 13


FOREGROUND_GROUPS = {
    "human": (Label.PEDESTRIAN,),
    "road": (Label.ROAD, Label.LANE_MARK),
    "vehicle": (Label.VEHICLE,),
    "traffic_sign": (Label.TRAFFIC_LIGHT, Label.TRAFFIC_SIGN),
    "traffic_barrier": (Label.BARRIER,),
}

# Kinds of things that stand or move; each has a mesh in the renderer and a label.
KINDS = {
    "building": Label.BUILDING,
    "tree": Label.VEGETATION,
    "bush": Label.VEGETATION,
    "billboard": Label.BILLBOARD,
    "lamp_post": Label.POLE,
    "car": Label.VEHICLE,
    "truck": Label.VEHICLE,
    "bus": Label.VEHICLE,
    "pedestrian": Label.PEDESTRIAN,
    "cyclist": Label.PEDESTRIAN,
    "traffic_light": Label.TRAFFIC_LIGHT,
    "traffic_sign": Label.TRAFFIC_SIGN,
    "barrier": Label.BARRIER,
    "traffic_cone": Label.BARRIER,
}


@dataclass(frozen=True)
class Surface:
    """A flat piece of ground: triangles at one height."""

    label: Label
    triangles: np.ndarray  # float32 [T, 3, 2], xy
    z_m: float  # marks lie a few centimetres above the road, the road above the ground
    color: tuple[int, int, int]


@dataclass(frozen=True)
class Thing:
    """A thing at one instant. ``size``: length (along yaw), width, height; (x, y, z): middle of its footprint."""

    instance: int  # unique in its world, from 1; 0 is "no instance"
    kind: str  # a key of KINDS
    x: float
    y: float
    yaw: float
    size: tuple[float, float, float]
    color: tuple[int, int, int]
    z: float = 0.0
    speed: float = 0.0  # along yaw, m/s
    # vehicles: "" | "brake"; lights: "red" | "red_yellow" | "green" | "yellow"; signs: "stop" | "limit" | ...
    state: str = ""
    variant: int = 0  # a seed for the look: windows of a building, pattern of a billboard


@dataclass(frozen=True)
class EgoPose:
    """The ego vehicle at one instant: rear axle on the ground."""

    x: float
    y: float
    yaw: float
    speed: float
    accel: float = 0.0
    yaw_rate: float = 0.0


@dataclass(frozen=True)
class World:
    """What does not move. ``sun_deg``, ``haze`` and ``domain`` vary the light and how images look, and nothing else."""

    seed: int
    surfaces: tuple[Surface, ...]
    things: tuple[Thing, ...]  # buildings, trees, parked vehicles, signs, ...
    drivable: tuple[np.ndarray, ...] = ()  # polygons float64 [V, 2]
    sun_deg: float = 45.0
    haze: float = 0.0  # 0 clear .. 1
    sky: tuple[int, int, int] = (135, 180, 220)
    domain: str = "day"  # a key of domains.DOMAINS


@dataclass(frozen=True)
class Snapshot:
    """The world at one instant."""

    time_s: float
    ego: EgoPose
    things: tuple[Thing, ...]  # what moves or changes: vehicles, pedestrians, traffic lights
    command: str  # "left" | "straight" | "right", the way at the next junction within reach
    route: np.ndarray  # float64 [R, 2] the way ahead, world xy
    # what the expert reacts to: light, light_gap_m, vehicle_gap_m, pedestrian_gap_m
    ahead: dict = field(default_factory=dict)
    observed: tuple = ()  # by the scenario, for its log


@dataclass(frozen=True)
class Keyframe:
    """A moment of a recording that is written to a dataset."""

    step: int  # index of its snapshot
    future: np.ndarray | None = None  # float64 [6, 2] what the expert would do, world xy; None: what follows
    entries: dict = field(default_factory=dict)  # more of it for extras.json


@dataclass(frozen=True)
class SceneRecording:
    """What happened in a world, and the moments of it that a dataset holds."""

    world: World
    snapshots: Sequence[Snapshot]  # at 20 Hz; 3 s or more before the first keyframe
    keyframes: Sequence[Keyframe]  # in time
    about: dict = field(default_factory=dict)  # its entries in sim.json
    counts: dict[str, int] = field(default_factory=dict)  # figures that are summed over a dataset


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with nuScenes' conventions: optical axis z, x right, y down."""

    name: str
    intrinsic: np.ndarray  # float64 [3, 3] at 1600x900
    rotation: np.ndarray  # float64 [3, 3], camera to ego
    translation: np.ndarray  # float64 [3], camera in the ego frame

    def scaled(self, width: int, height: int) -> np.ndarray:
        """The intrinsic matrix for an image of another size, [3, 3]. The field of view stays."""
        return np.diag([width / 1600, height / 900, 1.0]) @ self.intrinsic


@dataclass(frozen=True)
class Views:
    """What the cameras see at one instant; the first axis is the camera, in the order of the rig."""

    rgb: np.ndarray  # uint8 [C, H, W, 3]
    label: np.ndarray  # uint8 [C, H, W], a Label
    instance: np.ndarray  # uint16 [C, H, W]
    # float32 [C, H, W] m along the axis; inf: sky
    depth: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
