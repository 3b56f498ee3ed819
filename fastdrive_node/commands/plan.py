"""``fastdrive plan``: one set of images to one plan."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fastdrive_node.cli import write_json
from fastdrive_node.commands.options import add_engine_arguments, add_model_arguments, check_engine_arguments
from fastdrive_node.errors import InputError, UsageError
from fastdrive_node.record import PlanRecord
from fastdrive_node.types import CameraFrame, Command, EgoHistory, EgoState, FrameSet, Plan

EXAMPLE = """example:
  fastdrive plan drive/*__CAM_*.jpg --speed 8.3 --command left --picture plan.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Plan a trajectory from one image of each camera. Files whose names hold their camera's name (CAM_FRONT, "
        "CAM_FRONT_LEFT, ...) may come in any order; others come in the VLA's camera order."
    )
    parser.epilog = EXAMPLE
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGES", help="one image file of each camera")
    add_model_arguments(parser)
    add_engine_arguments(parser)
    parser.add_argument("--speed", type=float, default=0.0, metavar="V", help="current speed in m/s (default: 0)")
    parser.add_argument(
        "--command",
        type=Command,
        choices=list(Command),
        default=Command.NONE,
        metavar="C",
        help="driving command: left, straight, right or none (default: none)",
    )
    parser.add_argument("--picture", type=Path, metavar="F", help="write a picture of the plan (PNG or JPEG)")
    parser.add_argument("--json", metavar="F", help="write the plan as JSON; '-' is standard output")


def run(args: argparse.Namespace) -> None:
    from fastdrive_node.engines.language_engine import LanguageChoice
    from fastdrive_node.engines.vision_engine import choose_engine
    from fastdrive_node.planning.loading import open_pipeline  # heavy imports, not needed for --help

    check_engine_arguments(args.backend, args.engine)
    if args.engine is None and args.backend not in (None, "torch"):
        raise UsageError(
            f"--backend {args.backend}: give the engine file with --engine; make it by fastdrive export build"
        )
    engine = choose_engine(args.backend or "torch", args.engine)
    language = None if args.language_engine is None else LanguageChoice(args.language_engine)
    pipeline = open_pipeline(args.vla, args.pruner, args.drop, engine=engine, language_engine=language)
    files = order_images(args.images, pipeline.vla.spec.cameras)
    frames = tuple(image_frame(camera, file) for camera, file in zip(pipeline.vla.spec.cameras, files, strict=True))
    pipeline.warm_up()  # so that the times are those of a running vehicle
    history = standing_start(args.speed, pipeline.vla.spec.history.interval_s)
    plan = pipeline.plan(FrameSet(frames, t0_ns=0), history, args.command)
    print(table(plan), file=sys.stderr if args.json == "-" else sys.stdout)
    write_json(plan_json(plan), args.json)
    if args.picture is not None:
        from fastdrive_node.visualization.layout import save_image
        from fastdrive_node.visualization.plan_image import draw_plan

        images = [read_image(file) for file in files]
        picture = draw_plan(plan, images, pipeline.vla.spec.cameras, args.speed, args.command)
        save_image(args.picture, picture)


def order_images(files: Sequence[Path], cameras: Sequence[str]) -> list[Path]:
    """The files in camera order, by the camera names in their names, or as given where none holds one.

    Raises:
        InputError: another number of files than cameras, or names that do not give each camera one file.
    """
    if len(files) != len(cameras):
        raise InputError(f"{len(files)} images for {len(cameras)} cameras; give one each of {', '.join(cameras)}")
    named = {file: _camera_in_name(file, cameras) for file in files}
    if not any(named.values()):
        return list(files)
    by_camera = {camera: file for file, camera in named.items() if camera}
    missing = [camera for camera in cameras if camera not in by_camera]
    if missing:
        raise InputError(f"no image name holds {missing[0]}, though others hold their camera's; name all or none")
    return [by_camera[camera] for camera in cameras]


def _camera_in_name(file: Path, cameras: Sequence[str]) -> str | None:
    """The longest camera name in the file's name: CAM_FRONT_LEFT holds CAM_FRONT too."""
    return max((camera for camera in cameras if camera in file.name), key=len, default=None)


def image_frame(camera: str, file: Path) -> CameraFrame:
    return CameraFrame(camera, stamp_ns=0, received_ns=0, load=lambda: read_image(file))


def read_image(file: Path) -> np.ndarray:
    """An image file as uint8 RGB [H, W, 3].

    Raises:
        InputError: it cannot be read or is cut off.
    """
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow raises many kinds for damaged data
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise InputError(f"{file}: not a readable image ({reason})") from error


def standing_start(speed_mps: float, interval_s: float) -> EgoHistory:
    """The ego history of a single frame set: the current speed and no past."""
    return EgoHistory((EgoState(0, 0.0, 0.0, 0.0, speed_mps),), interval_s)


def plan_json(plan: Plan) -> dict:
    """The plan with its tokens and times."""
    record = PlanRecord(plan)
    assert plan.kept is not None  # a pipeline's plan has its tokens
    tokens = {"total_tokens": plan.kept.total, "kept_tokens": plan.kept.kept}
    stage_ms = {name: round(ms, 3) for name, ms in plan.stage_ms.items()}
    return {"kind": record.kind, **record.line(), **tokens, "stage_ms": stage_ms}


def table(plan: Plan) -> str:
    """The plan in lines for people."""
    assert plan.kept is not None
    lines = ["  t [s]   x [m]   y [m]"]
    for index, (x, y) in enumerate(plan.waypoints_m, start=1):
        lines.append(f"{index * plan.dt_s:7.1f} {x:7.2f} {y:7.2f}")
    lines.append(f"{plan.kept.kept} of {plan.kept.total} visual tokens, {plan.stage_ms['total']:.0f} ms")
    return "\n".join(lines)
