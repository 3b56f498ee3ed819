"""``fastdrive``: one console script; each command lives in the room that does its work and is imported when called."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import traceback
from pathlib import Path

from fastdrive_node.errors import FastDriveError, UsageError

COMMANDS = {
    "replay": ("fastdrive_node.commands.replay", "a rosbag2 through the real node"),
    "plan": ("fastdrive_node.commands.plan", "one set of images to one plan"),
    "sim": ("fastdrive_sim.commands", "datasets and bags from the simulator"),
    "annotate": ("fastdrive_training.commands.annotate", "foreground masks by Grounding DINO and SAM"),
    "train": ("fastdrive_training.commands.train", "VLA or pruner training from a recipe"),
    "train-report": ("fastdrive_training.commands.train_report", "one HTML page of a training run"),
    "calibrate": ("fastdrive_training.commands.calibrate", "turn a pruner's scores into chances, camera by camera"),
    "score": ("fastdrive_training.commands.score", "token scores against mask coverage"),
    "evaluate": ("fastdrive_training.commands.evaluate", "open-loop planning"),
    "evaluate-report": ("fastdrive_training.commands.evaluate_report", "one page of a finished open-loop evaluation"),
    "view-weights": ("fastdrive_training.commands.view_weights", "how Prune2Drive shares tokens out over the cameras"),
    "metrics": (
        "fastdrive_training.commands.planning_metrics",
        "the figures of every planning convention for plans in a file",
    ),
    "export": ("fastdrive_export.commands.export", "engines: images to scored tokens, and the language model"),
    "bench": ("fastdrive_node.commands.bench", "every stage against plain transformers"),
}

INSTALL_HINTS = {
    "fastdrive_sim": "pip install -e ros2_ws/src/fastdrive_sim",
    "fastdrive_training": "pip install -e .[train]",
    "onnx": "pip install -e .[export]",
    "onnxruntime": "pip install -e .[export]",
    "rclpy": "pip install -e .[ros], or source a ROS 2 installation",
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastdrive",
        description="Six cameras to a trajectory, on the visual tokens a driver would look at.",
        epilog="`fastdrive COMMAND --help` shows an example of each.",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns 0 (done), 1 (failed) or 2 (wrong usage; argparse exits with it itself)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    name = build_parser().parse_known_args(argv)[0].command
    rest = argv[argv.index(name) + 1 :]
    try:
        module = importlib.import_module(COMMANDS[name][0])
        parser = argparse.ArgumentParser(prog=f"fastdrive {name}", formatter_class=argparse.RawDescriptionHelpFormatter)
        module.add_arguments(parser)
        module.run(parser.parse_args(rest))
        return 0
    except KeyboardInterrupt:
        print(f"fastdrive {name}: interrupted", file=sys.stderr)
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            print(f"fastdrive {name}: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def one_line(error: Exception) -> str:
    """The error in one line; for a missing package, how to install it."""
    if isinstance(error, ModuleNotFoundError):
        hint = INSTALL_HINTS.get((error.name or "").split(".")[0], "pip install -e .[ros,train,export,sim]")
        return f"the Python package {error.name!r} is missing; install it with: {hint}"
    text = " ".join(str(error).split())
    if isinstance(error, FastDriveError):
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


def pruning_ratio(text: str) -> float:
    """A pruning ratio p in [0, 1); an argparse type."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number; give a pruning ratio such as 0.5") from None
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def write_json(figures: dict, target: str | None) -> None:
    """Write a command's figures to a file, or to standard output for ``-``. ``None`` writes nothing."""
    if target is None:
        return
    text = json.dumps(figures, indent=2)
    if target == "-":
        print(text)
    else:
        path = Path(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
