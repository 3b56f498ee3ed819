"""``fastdrive plan``: one set of images to one plan."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastdrive_node.cli import write_json
from fastdrive_node.commands.options import (
    add_device_arguments,
    add_engine_arguments,
    add_model_arguments,
    check_engine_arguments,
)
from fastdrive_node.errors import AnswerError, FastDriveError, InputError, UsageError
from fastdrive_node.types import CameraFrame, Command, EgoHistory, EgoState, FrameSet, ModelOutput, Plan

if TYPE_CHECKING:
    import numpy as np
    import torch

    from fastdrive_node.families.spec import VlaSpec

EXAMPLE = """examples:
  fastdrive plan drive/*__CAM_*.jpg --speed 8.3 --command left --picture plan.png
  fastdrive plan front.jpg --vla models/impromptu --history states.json --dtype bfloat16 --json plan.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Plan a trajectory from one image of each camera. Files whose names hold their camera's name (CAM_FRONT, "
        "CAM_FRONT_LEFT, ...) may come in any order; others come in the VLA's camera order. For a VLA that reads "
        "several frames give all of its sets, the oldest first."
    )
    parser.epilog = EXAMPLE
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGES", help="one image file of each camera")
    add_model_arguments(parser)
    add_engine_arguments(parser)
    add_device_arguments(parser)
    parser.add_argument("--speed", type=_speed, metavar="V", help="current speed in m/s (default: 0)")
    help_text = (
        "JSON list of states, newest last: t_s (<= 0), x, y, yaw, speed; where known ax, ay, vy, yaw_rate, steer"
    )
    parser.add_argument("--history", type=Path, metavar="F", help=help_text)
    parser.add_argument(
        "--command",
        type=Command,
        choices=list(Command),
        default=Command.NONE,
        metavar="C",
        help="driving command: left, straight, right or none (default: none)",
    )
    parser.add_argument("--picture", type=Path, metavar="F", help="write a picture of the plan (PNG or JPEG)")
    help_text = "plan on black images first: the times are those of a running vehicle"
    parser.add_argument("--warm-up", action="store_true", help=help_text)
    help_text = "decode the answer token by token; it is the same, only slower"
    parser.add_argument("--no-drafts", action="store_true", help=help_text)
    parser.add_argument("--json", metavar="F", help="write the plan, or the refusal, as JSON; '-' is standard output")


def _speed(text: str) -> float:
    """m/s; an argparse type."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) <= 100:
        raise argparse.ArgumentTypeError(f"{text}: give a speed in m/s, at most 100")
    return value


def run(args: argparse.Namespace) -> None:
    from rich.console import Console

    from fastdrive_node.devices import choose_device, choose_dtype
    from fastdrive_node.engines.language_engine import LanguageChoice
    from fastdrive_node.engines.vision_engine import choose_engine
    from fastdrive_node.families import read_config
    from fastdrive_node.families.spec import load_spec
    from fastdrive_node.planning.inspection import image_problems, small_images
    from fastdrive_node.planning.loading import default_vla_dir, open_pipeline  # heavy imports, not needed for --help

    check_engine_arguments(args.backend, args.engine)
    if args.engine is None and args.backend not in (None, "torch"):
        raise UsageError(
            f"--backend {args.backend}: give the engine file with --engine; make it by fastdrive export build"
        )
    engine = choose_engine(args.backend or "torch", args.engine)
    language = None if args.language_engine is None else LanguageChoice(args.language_engine)
    device = choose_device(args.device, "--device")
    folder = default_vla_dir() if args.vla is None else args.vla
    try:  # what can be wrong in the inputs is found before the model is loaded
        spec = load_spec(folder)
        sets = frame_sets(args.images, spec)
        family, config = read_config(folder)
        for problem in small_images(args.images, family.pixels_per_token(config)):
            raise InputError(problem)
        history = _history(args, spec)
    except FastDriveError as error:
        write_json(refusal_json(error, device), args.json)
        raise
    for problem in image_problems(order_images(args.images, spec.cameras) if len(sets) == 1 else [], spec):
        print(f"warning: {problem}", file=sys.stderr)
    with Console(stderr=True).status("loading") as shown:  # on a terminal only
        pipeline = open_pipeline(
            folder,
            args.pruner,
            args.drop,
            device=device,
            dtype=choose_dtype(args.dtype, device),
            engine=engine,
            language_engine=language,
            drafts=not args.no_drafts,
        )
        pipeline.generator.progress = lambda stage: shown.update(stage)
        if args.warm_up:
            pipeline.warm_up()
        try:
            for past in sets[:-1]:
                pipeline.remember(past)
            plan = pipeline.plan(sets[-1], history, args.command)
        except FastDriveError as error:
            write_json(refusal_json(error, device), args.json)
            raise
    print(table(plan), file=sys.stderr if args.json == "-" else sys.stdout)
    write_json(plan_json(plan, device), args.json)
    if args.picture is not None:
        from fastdrive_node.visualization.layout import save_image
        from fastdrive_node.visualization.plan_image import draw_plan

        images = [frame.load() for frame in sets[-1].frames]
        picture = draw_plan(plan, images, spec.cameras, history.now.speed_mps, args.command)
        save_image(args.picture, picture)


def _history(args: argparse.Namespace, spec: VlaSpec) -> EgoHistory:
    if args.history is None:
        return standing_start(args.speed or 0.0, spec.history.interval_s)
    if args.speed is not None:
        raise UsageError("--speed: is in the file that --history names; give one of them")
    from fastdrive_node.sync.ego_file import read_history

    return read_history(args.history, max(spec.history.steps, default=0), spec.history.interval_s)


def frame_sets(files: Sequence[Path], spec: VlaSpec) -> list[FrameSet]:
    """The frame sets that a VLA reads, oldest first: one, or as many as it reads frames.

    Raises:
        InputError: another number of files, or names that do not give each camera one file of a set.
    """
    count = spec.frames.count if spec.frames else 1
    size = len(spec.cameras)
    if count > 1 and len(files) != count * size:
        raise InputError(
            f"{len(files)} images for {count} frames of {size} cameras; give {count * size}, the oldest set first"
        )
    interval_s = spec.frames.interval_s if spec.frames else 0.0
    sets = []
    for step in range(count):
        t0_ns = -round((count - 1 - step) * interval_s * 1e9)
        ordered = order_images(files if count == 1 else files[step * size : (step + 1) * size], spec.cameras)
        frames = tuple(image_frame(camera, file) for camera, file in zip(spec.cameras, ordered, strict=True))
        sets.append(FrameSet(frames, t0_ns))
    return sets


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
    import numpy as np
    from PIL import Image

    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow raises many kinds for damaged data
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise InputError(f"{file}: not a readable image ({reason})") from error


def standing_start(speed_mps: float, interval_s: float) -> EgoHistory:
    """The ego history of a single frame set: the current speed and no past."""
    return EgoHistory((EgoState(0, 0.0, 0.0, 0.0, speed_mps),), interval_s)


def plan_json(plan: Plan, device: torch.device) -> dict:
    """The plan with the prompt, tokens, times and memory."""
    from fastdrive_node.record import PlanRecord

    record = PlanRecord(plan)
    assert plan.output is not None
    return {
        "kind": record.kind,
        "reason": "",
        **record.line(),
        "warnings": list(plan.warnings),
        **_output_json(plan.output, device),
    }


def refusal_json(error: FastDriveError, device: torch.device) -> dict:
    """The reason of a refusal, and what the model wrote where it ran."""
    output = error.output if isinstance(error, AnswerError) else None
    written = {} if output is None else _output_json(output, device)
    code = error.code or error.stage
    return {"kind": "refused", "reason": str(error), "stage": error.stage, "code": code, "waypoints": None, **written}


def _output_json(output: ModelOutput, device: torch.device) -> dict:
    from fastdrive_node.devices import peak_memory

    return {
        "text": output.text,
        "answer_ids": list(output.answer_ids),
        "answer_forwards": output.forwards,
        "prompt": output.prompt,
        "total_tokens": output.kept.total,
        "kept_tokens": output.kept.kept,
        "stage_ms": {name: round(ms, 3) for name, ms in output.stage_ms.items()},
        "peak_memory_gb": round(peak_memory(device) / 1e9, 3),
    }


def table(plan: Plan) -> str:
    """The plan in lines for people."""
    assert plan.kept is not None
    lines = ["  t [s]   x [m]   y [m]"]
    for index, (x, y) in enumerate(plan.waypoints_m, start=1):
        lines.append(f"{index * plan.dt_s:7.1f} {x:7.2f} {y:7.2f}")
    lines.append(f"{plan.kept.kept} of {plan.kept.total} visual tokens, {plan.stage_ms['total']:.0f} ms")
    return "\n".join(lines)
