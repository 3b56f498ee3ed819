"""The faults of the matrix. To add one, add a line to a list here, or a list of your own to ``FAULTS``:

    Fault("a camera dies", "cameras", traffic(skip=("CAM_BACK",)), code="frames")

``inject`` is called with the ``Scene``: change its ``traffic``, its stand-in ``planner``, call a service, or set a
parameter. ``Scene.calm`` ends what was changed in traffic and planner; what else was changed, ``undo`` ends. ``mode``
and ``code`` are what ~/output/status must say; mode "nominal" means that the fault is handled and plans go on.
``scene`` is a set of parameters of the node (``SCENES`` in ``harness.py``), ``quick`` makes it a test of the suite.

``python -m tests.faults.matrix --out docs/faults.md`` runs all and writes the page; ``--only TEXT`` runs some.
"""

from __future__ import annotations

import math
import signal

import numpy as np

from fastdrive_node.errors import AnswerError, ImageError, ModelError
from fastdrive_node.types import CAMERAS
from tests.faults.catalog_checks import INPUT_CHECKS
from tests.faults.harness import Fault
from tests.faults.inject import (
    BACK,
    activate,
    alternate,
    break_model,
    break_update,
    clean_up,
    deactivate,
    exchange,
    flood,
    freeze,
    hang,
    image,
    jump_back,
    mend_update,
    odometry,
    once,
    parameter,
    planner,
    planner_signal,
    plans,
    publish,
    raises,
    restart,
    start,
    traffic,
    transition,
)
from tests.ros.conftest import jpeg_image, stamp_message

SPARE = 24 * 96  # bytes of the image that a camera sends
GONE = "no_images|no_set"  # the cause is told as soon as the camera's own silence is long enough
HANGS = "planner_busy|planning_deadline"
LOST = "planner_exit|planner_restarting|planner_starting"
HUNG = f"{HANGS}|planner_hang|{LOST}"
STALE = "age|frames|odometry|no_images|no_set|no_plan|planner_busy|planning_deadline"
LATER = stamp_message(4 * 10**18)


IMAGES = [
    Fault("the step is too small", "images", image(step=90), code="image", quick=True),
    Fault("the encoding is unknown", "images", image(encoding="rgb99"), code="image"),
    Fault("the encoding is empty", "images", image(encoding=""), code="image"),
    Fault("the height is 0", "images", image(height=0), code="image|frames"),
    Fault("the width is 0", "images", image(width=0), code="image|frames"),
    Fault("the size is 2^32 - 1", "images", image(height=2**32 - 1, width=2**32 - 1), code="image|frames", quick=True),
    Fault("there is no data", "images", image(data=b""), code="image|frames"),
    Fault("a byte of the data is missing", "images", image(data=bytes(SPARE - 1)), code="image|frames"),
    Fault("every camera's images are damaged", "images", traffic(bad={c: {"step": 1} for c in CAMERAS}), code="image"),
    Fault("one image of one camera is damaged", "images", once(image(step=90)), mode="nominal", quick=True),
    *[
        Fault(name, "images", image(data=data), code="image|frames", scene="compressed", quick=quick)
        for name, data, quick in (
            ("a JPEG is cut", jpeg_image()[:200], True),
            ("a JPEG is a text", b"this is no image", False),
            ("a JPEG has no bytes", b"", False),
            ("a JPEG is zeros", bytes(5000), False),
            ("a PNG is its header alone", b"\x89PNG\r\n\x1a\n", False),
            ("a JPEG's markers are damaged", jpeg_image().replace(b"\xff\xda", b"\x00\x00"), False),
        )
    ],
]
CAMERA_FAULTS = [
    Fault("a camera dies", "cameras", traffic(skip=(BACK,)), code="frames", quick=True),
    Fault("two cameras die", "cameras", traffic(skip=CAMERAS[:2]), code="frames"),
    Fault("three cameras die", "cameras", traffic(skip=CAMERAS[:3]), code="frames"),
    Fault("five cameras die", "cameras", traffic(skip=CAMERAS[1:]), code=GONE, quick=True),
    Fault("all cameras die", "cameras", traffic(skip=CAMERAS), code=GONE, quick=True),
    Fault("all inputs die", "cameras", traffic(skip=CAMERAS, odometry=False), code=GONE),
    Fault("a camera repeats one stamp", "cameras", traffic(stamp_ns={BACK: 10**18}), code="frames|no_set"),
    Fault("a camera is 0.3 s late", "cameras", traffic(shift_s={BACK: -0.3}), code="frames|no_set"),
    Fault("a camera sends every tenth image", "cameras", traffic(every={BACK: 10}), code="frames"),
    Fault("a camera misses one set", "cameras", once(traffic(skip=(BACK,))), mode="nominal"),
    Fault("a camera sends ten images for one", "cameras", flood, mode="nominal", quick=True),
    Fault(
        "one dies where one may be missing",
        "cameras",
        traffic(skip=(BACK,)),
        mode="degraded",
        code="cameras",
        scene="degraded",
        quick=True,
    ),
    Fault(
        "two cameras die where one may be missing",
        "cameras",
        traffic(skip=CAMERAS[:2]),
        code="frames",
        scene="degraded",
    ),
    Fault(
        "five cameras die where one may be missing", "cameras", traffic(skip=CAMERAS[1:]), code=GONE, scene="degraded"
    ),
]
TIME = [
    # first: jumps of the faults before would make it a repeated one
    Fault("a set of half a minute ago comes", "time", jump_back, mode="nominal"),
    Fault("all stamps are 0", "time", traffic(stamp_ns={"all": 0}), code="frames|no_set|odometry"),
    Fault("all stamps are 2 s old", "time", traffic(shift_s={"all": -2.0}), code="frames", quick=True),
    Fault("all stamps are 1 s ahead", "time", traffic(shift_s={"all": 1.0}), code="frames|odometry"),
    Fault("all stamps are 1 h ahead", "time", traffic(shift_s={"all": 3600.0}), code="frames|odometry", quick=True),
    Fault("a camera's clock is 1 h ahead", "time", traffic(shift_s={BACK: 3600.0}), code="frames|no_set"),
    Fault("a camera's clock is 1 h behind", "time", traffic(shift_s={BACK: -3600.0}), code="frames|no_set"),
]
ODOMETRY = [
    Fault("odometry ends", "odometry", traffic(odometry=False), code="odometry", quick=True),
    Fault("odometry is 1 s late", "odometry", traffic(shift_s={"odometry": -1.0}), code="odometry"),
    Fault("odometry is 1 h behind", "odometry", traffic(shift_s={"odometry": -3600.0}), code="odometry"),
    Fault("odometry is 1 h ahead", "odometry", traffic(shift_s={"odometry": 3600.0}), code="odometry"),
    Fault("odometry repeats one stamp", "odometry", traffic(stamp_ns={"odometry": 10**18}), code="odometry"),
    Fault("x is not a number", "odometry", odometry("pose.pose.position.x", math.nan), code="odometry", quick=True),
    Fault("y is infinite", "odometry", odometry("pose.pose.position.y", math.inf), code="odometry"),
    Fault("the speed is not a number", "odometry", odometry("twist.twist.linear.x", math.nan), code="odometry"),
    Fault("the yaw rate is infinite", "odometry", odometry("twist.twist.angular.z", -math.inf), code="odometry"),
    Fault("the orientation is 0", "odometry", odometry("pose.pose.orientation.w", 0.0), code="odometry"),
    Fault(
        "the orientation is 1e200", "odometry", odometry("pose.pose.orientation.x", 1e200), code="odometry", quick=True
    ),
    Fault("two frames alternate", "odometry", alternate, mode="degraded", code="odometry.frame"),
    Fault("one message is not a number", "odometry", once(odometry("pose.pose.position.x", math.nan)), mode="nominal"),
    Fault("one message is a century ahead", "odometry", once(odometry("header.stamp", LATER)), mode="nominal"),
]
PLANNER = [
    Fault("the planner hangs", "planner", hang, code=HANGS, quick=True),
    Fault("a plan takes 1.5 s", "planner", planner(delay_s=1.5), code=HANGS),
    Fault("a plan takes 0.12 s", "planner", planner(delay_s=0.12), mode="nominal"),
    Fault("the answer is no plan", "planner", planner(refuse=True), code="answer", quick=True),
    Fault("the planner divides by zero", "planner", planner(crash=True), code="internal"),
    Fault("memory is full", "planner", raises(MemoryError("full")), code="internal"),
    Fault("the planner recurses without end", "planner", raises(RecursionError("depth")), code="internal"),
    Fault("a library calls exit", "planner", raises(SystemExit(3)), code="internal", quick=True),
    Fault("a library raises an interrupt", "planner", raises(KeyboardInterrupt()), code="internal"),
    Fault("the model is no longer usable", "planner", raises(ModelError("scores: not finite")), code="model"),
    Fault("an image does not decode in the planner", "planner", raises(ImageError("CAM_BACK: cut")), code="image"),
    Fault("an error has no text", "planner", raises(AnswerError()), code="answer"),
    Fault("an error has many lines", "planner", raises(RuntimeError("a\n" * 20)), code="internal"),
    Fault("the planner returns nothing", "planner", planner(plan=lambda *_: None), code="internal", quick=True),
    Fault(
        "a waypoint is not a number", "planner", plans(waypoints_m=np.full((6, 2), np.nan)), code="answer", quick=True
    ),
    Fault("a plan has no waypoints", "planner", plans(waypoints_m=np.zeros((0, 2))), code="answer"),
    Fault("a plan's step is 0 s", "planner", plans(dt_s=0.0), code="answer"),
    Fault("a plan is of another set", "planner", plans(t0_ns=10**18), code="answer"),
    Fault("the answer is no plan, with brake", "planner", planner(refuse=True), code="answer", scene="brake"),
    Fault("the planner hangs, with brake", "planner", hang, code=HANGS, scene="brake", quick=True),
]
AGES = [
    Fault(
        "a plan is older than max_plan_age_s when it is ready",
        "ages",
        lambda scene: (parameter("max_plan_age_s", 0.1, True)(scene), planner(delay_s=0.15)(scene)),
        code="age",
        undo=parameter("max_plan_age_s", 1.0, True),
        quick=True,
    ),
    Fault(
        "sets are older than max_set_age_s",
        "ages",
        lambda scene: (parameter("max_set_age_s", 0.05, True)(scene), traffic(shift_s={"all": -0.1})(scene)),
        code="frames",
        undo=parameter("max_set_age_s", 1.0, True),
    ),
    Fault("a plan takes 0.12 s, with compensate", "ages", planner(delay_s=0.12), mode="nominal", scene="compensate"),
    Fault("odometry ends, with compensate", "ages", traffic(odometry=False), code="odometry", scene="compensate"),
    Fault("the process stands still for 2 s", "ages", freeze(2.0), code=STALE, scene="process"),
]
MODEL = [
    Fault("one camera's encoding is unknown", "model", image(encoding="rgb99"), code="image", scene="model"),
    Fault("a speed of 1e9 m/s", "model", odometry("twist.twist.linear.x", 1e9), code="odometry.speed", scene="model"),
    Fault("a camera dies", "model", traffic(skip=(BACK,)), code="frames", scene="model"),
    Fault("all inputs die", "model", traffic(skip=CAMERAS, odometry=False), code=GONE, scene="model"),
]
PROCESS = [
    Fault("it is killed", "planner's process", planner_signal(signal.SIGKILL), code=LOST, scene="supervised"),
    Fault("it stands still", "planner's process", planner_signal(signal.SIGSTOP), code=HUNG, scene="supervised"),
    Fault(
        "it has a segmentation fault",
        "planner's process",
        planner_signal(signal.SIGSEGV),
        code=LOST,
        scene="supervised",
    ),
    Fault(
        "it ends too often",
        "planner's process",
        planner_signal(signal.SIGKILL),
        mode="fault",
        code="planner_down",
        scene="supervised",
        undo=restart,
    ),
    Fault("an exchange has no weights", "planner's process", exchange("unusable"), mode="nominal", scene="supervised"),
    Fault("it ends while an exchange loads", "planner's process", exchange("dies"), mode="nominal", scene="supervised"),
]
LIFECYCLE = [
    Fault("deactivated", "lifecycle", deactivate, mode="inactive", code="inactive", undo=activate, quick=True),
    Fault("cleaned up", "lifecycle", clean_up, mode="inactive", code="unconfigured", undo=start),
    Fault(
        "the model cannot be loaded", "lifecycle", break_model, mode="fault", code="configure", undo=start, quick=True
    ),
    Fault("activate while active", "lifecycle", transition(3, False), mode="nominal", quick=True),
    Fault("configure while active", "lifecycle", transition(1, False), mode="nominal"),
    Fault("clean up while active", "lifecycle", transition(2, False), mode="nominal"),
    Fault("a transition that no node has", "lifecycle", transition(250, False), mode="nominal"),
]
PARAMETER_FAULTS = [
    Fault("drop out of range", "parameters", parameter("drop", 0.99), mode="nominal"),
    Fault("drop is not a number", "parameters", parameter("drop", math.nan), mode="nominal"),
    Fault("drop that the planner refuses", "parameters", parameter("drop", -0.5), mode="nominal"),
    Fault("a text for a number", "parameters", parameter("max_spread_s", "wide"), mode="nominal"),
    Fault("a parameter that is read only", "parameters", parameter("device", "cuda"), mode="nominal", quick=True),
    Fault("an age of 1e308 s", "parameters", parameter("max_set_age_s", 1e308), mode="nominal"),
    Fault(
        "a change is accepted and cannot be applied",
        "parameters",
        break_update,
        mode="degraded",
        code="parameter",
        undo=mend_update,
        quick=True,
    ),
]
COMMANDS = [
    Fault("a word that is no command", "command", publish("command", data="sideways"), mode="nominal"),
    Fault("a command of 1 MB", "command", publish("command", data="left" * 250_000), mode="nominal"),
]
FAULTS: list[Fault] = [
    *IMAGES,
    *CAMERA_FAULTS,
    *TIME,
    *ODOMETRY,
    *PLANNER,
    *AGES,
    *MODEL,
    *PROCESS,
    *LIFECYCLE,
    *PARAMETER_FAULTS,
    *COMMANDS,
    *INPUT_CHECKS,
]
