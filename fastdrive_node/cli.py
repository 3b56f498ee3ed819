"""``fastdrive``: one console script. Every package declares its commands; a command is imported when it is chosen.

A package declares a table ``COMMANDS`` in its module ``commands``: the name of a command -> (summary, module), or
(summary, table) for a command with subcommands. The module has ``add_arguments(parser)`` and ``run(args)``. A package
of another distribution is found by its entry point in the group ``fastdrive.commands``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import traceback
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from fastdrive_node import __version__
from fastdrive_node.errors import FastDriveError, InputError, UsageError

GROUP = "fastdrive.commands"
# Of this repository: they are found in a checkout too, where nothing is installed.
PACKAGES = ("fastdrive_node", "fastdrive_training", "fastdrive_export", "fastdrive_sim")
INSTALL_HINTS = {  # by the package that is missing
    "fastdrive_sim": "make install-test, or pip install -c constraints.txt -e '.[sim]' -e ros2_ws/src/fastdrive_sim",
    "fastdrive_training": "pip install -c constraints.txt -e '.[train]'",
    "onnx": "pip install -c constraints.txt -e '.[export]'",
    "onnxruntime": "pip install -c constraints.txt -e '.[export]'",
    "ray": "pip install -c constraints.txt -e '.[cluster]'",
    "rclpy": "pip install -c constraints.txt -e '.[ros]', or source a ROS 2 installation",
}
COMMAND_HINTS = {  # else by the command's module, the first that it starts with
    "fastdrive_node.commands.replay": INSTALL_HINTS["rclpy"],
    "fastdrive_node.": "pip install -c constraints.txt -e .",
    "fastdrive_training.": INSTALL_HINTS["fastdrive_training"],
    "fastdrive_export.": INSTALL_HINTS["onnx"],
    "fastdrive_sim.": INSTALL_HINTS["fastdrive_sim"],
}
EVERYTHING = "make install-test, or pip install -c constraints.txt -e '.[ros,train,export,sim]'"
ELSEWHERE = {"sim": "fastdrive_sim"}  # commands of distributions that may be absent


@cache  # the metadata of every installed distribution is read
def find_commands() -> dict[str, tuple[str, str | dict]]:
    """The commands of all packages that are there: name -> (summary, module or table of subcommands)."""
    modules = [f"{package}.commands" for package in PACKAGES]
    modules += [entry.value for entry in entry_points(group=GROUP)]
    commands: dict[str, tuple[str, str | dict]] = {}
    for module in dict.fromkeys(modules):
        try:
            commands.update(importlib.import_module(module).COMMANDS)
        except ModuleNotFoundError as error:
            if not module.startswith(error.name or " "):  # the package is there, what it imports is not
                raise
    return commands


class CommandParser(argparse.ArgumentParser):
    """A parser that imports its command when it parses: ``fastdrive --help`` imports none of them."""

    module: str | None = None  # with add_arguments and run

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        if self.module is not None:
            command = importlib.import_module(self.module)
            command.add_arguments(self)
            self.set_defaults(_run=command.run)  # no argument has this name
            self.module = None
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:  # said with the usage of the command, not of ``fastdrive``
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown


def build_parser(only: str | None = None) -> CommandParser:
    """The parser of ``fastdrive`` with all its commands, or with one of them."""
    parser = CommandParser(
        prog="fastdrive",
        description="Camera images to a trajectory, on the visual tokens that matter for driving.",
        epilog="`fastdrive COMMAND --help` shows an example of each.",
    )
    parser.add_argument("--version", action="version", version=f"fastdrive {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error; of every command")
    commands = find_commands()
    _add_commands(parser, commands if only is None else {only: commands[only]})
    return parser


def _add_commands(parser: CommandParser, commands: dict[str, tuple[str, str | dict]]) -> None:
    children = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (summary, target) in commands.items():
        child = children.add_parser(name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        if isinstance(target, str):
            child.module = target
        else:
            child.description = f"{summary[0].upper()}{summary[1:]}."
            child.epilog = f"example: {child.prog} {next(iter(target))} --help"
            _add_commands(child, target)


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns 0 (done), 1 (failed) or 2 (wrong usage; argparse exits with 2 by itself)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [argument for argument in argv if argument != "--debug"]
    name = f"fastdrive {argv[0]}" if argv else "fastdrive"
    module = ""  # of the command
    try:
        if not argv:
            build_parser().print_help(sys.stderr)
            return 2
        commands = find_commands()
        module = _module_of(argv, commands)
        if argv[0] in ELSEWHERE.keys() - commands.keys():
            raise ModuleNotFoundError(name=ELSEWHERE[argv[0]])
        args = build_parser(argv[0] if argv[0] in commands else None).parse_args(argv)
        args._run(args)
        return 0
    except KeyboardInterrupt as stop:  # its text, where a command gave one, says what is kept
        print(": ".join([f"{name}: interrupted", *map(str, stop.args)]), file=sys.stderr)
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            print(f"{name}: {one_line(error, module)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def _module_of(argv: list[str], commands: dict[str, tuple[str, str | dict]]) -> str:
    """The module of the command that a command line names; empty where there is none."""
    target: str | dict = commands
    for word in argv:
        if isinstance(target, dict) and word in target:
            target = target[word][1]
    return target if isinstance(target, str) else ""


def one_line(error: Exception, module: str = "") -> str:
    """The error in one line; for a missing package, how to install it for the command in ``module``."""
    if isinstance(error, ModuleNotFoundError):
        hint = INSTALL_HINTS.get((error.name or "").split(".")[0])
        if hint is None:
            hint = next((text for start, text in COMMAND_HINTS.items() if module.startswith(start)), EVERYTHING)
        return f"the Python package {error.name!r} is missing; install it with: {hint}"
    text = " ".join(str(error).split())
    if isinstance(error, FastDriveError):
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


def write_json(figures: dict, target: str | None) -> None:
    """Write a command's figures to a file, or to standard output for ``-``. ``None`` writes nothing."""
    if target is None:
        return
    text = json.dumps(figures, indent=2)
    if target == "-":
        print(text)
    else:
        path = Path(target)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        except OSError as error:
            raise InputError(f"--json {target}: cannot be written ({error.strerror}); give another file") from error


if __name__ == "__main__":
    raise SystemExit(main())
