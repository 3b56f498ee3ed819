"""The dataclasses that cross packages.

Units are SI; the ego frame is x forward, y left, origin on the ground under the rear axle (nuScenes).
``_ns`` marks nanoseconds since the clock's epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:  # `fastdrive COMMAND --help` works where nothing is installed
    import numpy as np

CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK_RIGHT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_FRONT_LEFT",
)
VisionBackendName = Literal["torch", "onnxruntime", "tensorrt"]
VISION_BACKENDS: tuple[str, ...] = get_args(VisionBackendName)
ENGINE_OPERATORS = ("standard", "onnxruntime")  # of ONNX alone, or onnxruntime's own too
OnnxProviderName = Literal["auto", "cpu", "cuda", "tensorrt"]
ONNX_PROVIDERS: tuple[str, ...] = get_args(OnnxProviderName)
MAX_DROP = 0.95  # the largest pruning ratio that the node, the commands and the evaluation take
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]  # auto: bfloat16 on a GPU, float32 on a CPU
DTYPES: tuple[str, ...] = get_args(DtypeName)
JUMP_BACK_S = 0.5  # a clock or stamp that goes back by at least this has jumped (a bag starts again); less is jitter
MAP_FRAME = "map"  # the fixed frame of odometry that names none
TEMPORAL_RANGES = {"change": (0.0, 10.0), "memory": (0.0, 0.95), "max_gap_s": (0.01, 2.0)}  # of TemporalSettings
SUPERSEDED = "superseded"  # stage of a set that a newer one replaced before it was planned, or that a time jump ended


class Command(str, Enum):
    """The navigation command. ``NONE`` where the vehicle gives none."""

    LEFT = "left"
    STRAIGHT = "straight"
    RIGHT = "right"
    NONE = "none"


class PruningRatio(float):
    """The pruning ratio p of the paper: the fraction of the visual tokens that is dropped, in [0, ``MAX_DROP``].

    Raises:
        ValueError: not a number in this range.
    """

    def __new__(cls, value: float | str) -> PruningRatio:
        ratio = super().__new__(cls, value)
        if not 0 <= ratio <= MAX_DROP:
            raise ValueError(f"drop: {value} is not in [0, {MAX_DROP}]")
        return ratio

    def keep_count(self, total: int) -> int:
        """K = floor(N (1 - p)): tokens kept of ``total``. Raises ValueError where nothing would be kept."""
        keep = math.floor(total * (1 - self) + 1e-9)  # 10 * (1 - 0.9) is 0.99...98 in floating point
        if keep < 1:
            raise ValueError(f"drop: {self:g} keeps none of {total} tokens")
        return keep


@dataclass(frozen=True)
class CameraFrame:
    """One image of one camera. It is decoded when its set is planned; most frames never are."""

    camera: str
    stamp_ns: int  # exposure, from the message header
    received_ns: int  # the node's clock at arrival
    load: Callable[[], np.ndarray]  # -> uint8 [H, W, 3] RGB; raises InputError
    frame_id: str = ""  # of the message header
    expected_size: tuple[int, int] | None = None  # height, width by the camera's CameraInfo, where there is one


@dataclass(frozen=True)
class FrameSet:
    """The frames of every camera, in the VLA's camera order."""

    frames: tuple[CameraFrame, ...]  # one of each camera
    t0_ns: int  # the oldest exposure of the set: a plan is never younger than its oldest image
    missing: tuple[str, ...] = ()  # cameras replaced by black in the degraded mode

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(frame.camera for frame in self.frames)

    @property
    def spread_s(self) -> float:
        stamps = [frame.stamp_ns for frame in self.frames]
        return (max(stamps) - min(stamps)) * 1e-9

    def age_s(self, now_ns: int) -> dict[str, float]:
        """Age of each camera's frame in seconds at ``now_ns``."""
        return {frame.camera: (now_ns - frame.stamp_ns) * 1e-9 for frame in self.frames}


@dataclass(frozen=True)
class Vehicle:
    """Dimensions of the ego vehicle in metres. The defaults are those of nuScenes' car, a Renault Zoe."""

    length_m: float = 4.084
    width_m: float = 1.85
    rear_overhang_m: float = 0.657  # from the rear bumper to the rear axle, under which the ego frame's origin is
    wheel_base_m: float = 2.588  # from the rear axle to the front axle

    @property
    def center_m(self) -> float:
        """x of the vehicle's center in the ego frame."""
        return self.length_m / 2 - self.rear_overhang_m


@dataclass(frozen=True)
class EgoState:
    """Ego motion at one instant, in a fixed world or odometry frame."""

    stamp_ns: int
    x_m: float
    y_m: float
    yaw_rad: float  # counter-clockwise
    speed_mps: float
    accel_mps2: float = 0.0  # along x
    yaw_rate_radps: float = 0.0
    z_m: float = 0.0  # of the ground under the rear axle
    frame: str = MAP_FRAME  # name of the fixed frame
    child_frame: str = ""  # name of the vehicle's frame, as the odometry tells it
    accel_measured: bool = False  # ``accel_mps2`` is from a sensor, not from differences of the speed
    # What the vehicle does not tell is None; ``families.prompt`` derives it from the motion.
    accel_y_mps2: float | None = None
    speed_y_mps: float | None = None
    steer_rad: float | None = None  # of the front wheels, positive to the left


@dataclass(frozen=True)
class VehicleSignal:
    """What one message of the vehicle tells beside the odometry; None is not told."""

    stamp_ns: int
    steer_rad: float | None = None  # of the front wheels, positive to the left
    accel_mps2: float | None = None  # along x
    accel_y_mps2: float | None = None


@dataclass(frozen=True)
class EgoHistory:
    """States at t0, t0 - dt, t0 - 2 dt ... (newest first); shorter where the vehicle has just started."""

    states: tuple[EgoState, ...]
    interval_s: float = 0.5
    wheel_base_m: float = Vehicle.wheel_base_m  # steering that is not told is derived with it

    @property
    def now(self) -> EgoState:
        return self.states[0]


@dataclass(frozen=True)
class KeptTokens:
    """Which visual tokens the language model sees. N counts all cameras, camera after camera, raster order."""

    indices: np.ndarray  # int64 [K], ascending
    scores: np.ndarray | None  # float32 [N]; None for pruners without scores
    grid: tuple[int, int, int]  # cameras, rows, columns; N is their product
    temporal: str = "off"  # "off", or what became of the set before: "new" (none), "used", "dropped: <reason>"
    # Of VLAs that read several frames: which of the grid's images are those of t0, in camera order. None: all are.
    current: tuple[int, ...] | None = None
    # Of images of different sizes: rows and columns of each. ``grid`` is then (1, 1, N).
    grids: tuple[tuple[int, int], ...] | None = None

    @property
    def total(self) -> int:
        return math.prod(self.grid)

    @property
    def kept(self) -> int:
        return len(self.indices)

    def masks(self) -> list[np.ndarray]:
        """bool [rows, columns] of each image of t0, in camera order: True where the token was kept."""
        import numpy as np

        flat = np.zeros(self.total, dtype=bool)
        flat[self.indices] = True
        return self.by_image(flat)

    def by_image(self, values: np.ndarray) -> list[np.ndarray]:
        """Values [N] of all tokens -> [rows, columns] of each image of t0, in camera order."""
        import numpy as np

        grids = self.grids or (self.grid[1:],) * self.grid[0]
        parts = np.split(values, np.cumsum([rows * columns for rows, columns in grids])[:-1])
        images = [part.reshape(grid) for part, grid in zip(parts, grids, strict=True)]
        return images if self.current is None else [images[index] for index in self.current]


@dataclass(frozen=True)
class Trajectory:
    """Points of a plan in the ego frame of t0, the first one at t0 + dt."""

    waypoints_m: np.ndarray  # float64 [points, 2], x forward, y left
    dt_s: float
    headings_rad: np.ndarray | None = None  # float64 [points], where the model states them
    speeds_mps: np.ndarray | None = None  # likewise
    rounding_m: float = 0.0  # largest error of a coordinate, or of a step's length, by the digits that were written


@dataclass(frozen=True)
class Draft:
    """Tokens that an answer may have."""

    ids: tuple[int, ...]  # the whole answer, those that are known first
    spans: tuple[tuple[int, int, int], ...]  # of each number behind what is known: its index, first and last token + 1


@dataclass(frozen=True)
class ModelOutput:
    """What the model was asked and what it wrote, whether that is a plan or not."""

    prompt: str  # with one ``<image>`` for each image
    text: str  # the whole answer
    answer_ids: tuple[int, ...]  # as generated, the stopping token included
    kept: KeptTokens
    stage_ms: dict[str, float]
    forwards: int = 0  # of the language model that wrote the answer, behind its prefill


@dataclass(frozen=True)
class DeadlineChoice:
    """How many tokens a plan keeps where it has a deadline, and why."""

    deadline_ms: float
    elapsed_ms: float  # since planning began, when K was chosen
    predicted_ms: float  # from then on, at most
    keep: int
    wanted: int  # K of the pruning ratio
    load: float  # how many times longer than at the start that is, by the encoder and the last plans

    @property
    def reason(self) -> str:
        """``drop`` where the pruning ratio decided, ``deadline`` where the time did."""
        return "drop" if self.keep == self.wanted else "deadline"


@dataclass(frozen=True)
class Plan:
    """A trajectory in the ego frame of t0."""

    t0_ns: int
    waypoints_m: np.ndarray  # float64 [points, 2], x forward, y left
    dt_s: float  # the first waypoint is at t0 + dt
    text: str  # the model's answer, whole
    mode: str = "nominal"  # or "degraded: <reason>"
    kept: KeptTokens | None = None
    stage_ms: dict[str, float] = field(default_factory=dict)  # wall time of each stage
    headings_rad: np.ndarray | None = None  # float64 [points], where the answer states them
    speeds_mps: np.ndarray | None = None  # likewise
    derived: tuple[str, ...] = ()  # markers of the prompt whose values no sensor gave
    output: ModelOutput | None = None
    warnings: tuple[str, ...] = ()  # "code: text" of each, like "plan.speed: 36.00 m/s at waypoint 6 ..."
    # Where odometry has moved the plan on: the time whose ego frame the waypoints are in, the first one dt later.
    shifted_ns: int | None = None
    deadline: DeadlineChoice | None = None
    reused_cameras: int = 0  # whose images were those of the set before, and so were their tokens

    @property
    def stamp_ns(self) -> int:
        """The time of the ego frame that the waypoints are in: t0, unless the plan was moved on."""
        return self.t0_ns if self.shifted_ns is None else self.shifted_ns


PlannerPhase = Literal["starting", "ready", "restarting", "down"]


@dataclass(frozen=True)
class PlannerState:
    """Whether a planner can plan. One in the node's own process is always ready."""

    phase: PlannerPhase = "ready"  # down: it is not restarted; the node must be configured again
    reason: str = ""  # why it is not ready, or what it did last that an operator should know
    busy_s: float | None = None  # time that the plan in progress has taken; None: no plan is in progress
    restarts: int = 0  # since the node was configured
    pid: int | None = None  # of the process; None: it has none of its own, or it is down


@dataclass(frozen=True)
class Refusal:
    """A frame set that gave no plan, and why."""

    t0_ns: int
    reason: str  # one line, naming the camera or field
    # SUPERSEDED, "internal", "age" (too old when it was ready), or that of an error: "frames", "odometry", "image",
    # "answer", "planner", "model", "input"
    stage: str
    code: str = ""  # the reason for machines, like "plan.speed"; empty: the stage says it
