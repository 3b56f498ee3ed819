"""``fastdrive replay``: a rosbag2 through the real node."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastdrive_node.cli import write_json
from fastdrive_node.commands.options import add_engine_arguments, add_model_arguments, check_engine_arguments
from fastdrive_node.errors import FastDriveError, InputError, UsageError
from fastdrive_node.pruning.catalog import NAMES
from fastdrive_node.types import CAMERAS

if TYPE_CHECKING:
    from fastdrive_node.replay.bag import Recording
    from fastdrive_node.replay.session import NodeOptions

EXAMPLE = """examples:
  fastdrive replay drive_bag --json summary.json
  fastdrive replay recorded --topics topics.yaml --vla my_vla --drop 0.75 --out pictures --json -

The topic map says which topic carries what; cameras have the names that the VLA directory's vla.json gives them:
  cameras: {CAM_FRONT: /camera/front/image_raw, ...}
  odometry: /odom
  command: /driving_command    (optional)

The node runs in a process and a ROS domain of its own, on this host only. With --node external the bag is played on
its own topics to a node that runs already, remapped to them and with use_sim_time:=true.
"""


@dataclass(frozen=True)
class ReplayOptions:
    """What the command line gives."""

    bag: Path
    topics: Path | None = None
    rate: float = 1.0
    lockstep: bool = False
    loop: int = 1
    vla: Path | None = None
    pruner: Path | None = None
    drop: float | None = None
    backend: str | None = None
    engine: Path | None = None
    language_engine: Path | None = None
    params: Path | None = None
    out: Path | None = None
    json: str | None = None
    node: str = "own"
    node_name: str = "fastdrive"
    fastdds_profile: str | None = None

    def __post_init__(self) -> None:
        if not 0.01 <= self.rate <= 100:
            raise UsageError(f"--rate {self.rate:g}: give a speed of 0.01 to 100 times real time")
        if self.lockstep and self.rate != 1.0:
            raise UsageError(f"--rate {self.rate:g}: --lockstep goes as fast as the plans come; leave one of them out")
        if self.loop < 1:
            raise UsageError(f"--loop {self.loop}: give 1 or more")
        engines = (self.backend, self.engine, self.language_engine)
        of_own_node = (self.vla, self.pruner, self.params, self.drop, *engines)
        if self.node == "external" and any(value is not None for value in of_own_node):
            raise UsageError(
                "--node external: --vla, --pruner, --drop, --backend, --engine, --language-engine and --params are for "
                "a node that replay starts"
            )
        check_engine_arguments(self.backend, self.engine)
        if self.backend not in (None, "torch") and self.engine is None and self.params is None and self.node == "own":
            raise UsageError(
                f"--backend {self.backend}: give the engine file with --engine; make it by fastdrive export build"
            )
        if self.engine is not None and not self.engine.is_file():
            raise InputError(f"{self.engine}: no such engine file; correct --engine")
        if self.language_engine is not None and not self.language_engine.is_file():
            raise InputError(f"{self.language_engine}: no such engine file; correct --language-engine")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Play a rosbag2 with its timing and /clock to the node, in a process of its own, and collect the plans. Prints "
        "a table; every complete frame set of the bag ends as a plan, a refusal with its reason, or superseded by a "
        "newer one."
    )
    parser.epilog = EXAMPLE
    add = parser.add_argument
    add("bag", type=Path, metavar="BAG", help="rosbag2 folder, MCAP or sqlite3")
    add("--topics", type=Path, metavar="MAP.yaml", help="topic map (default: the simulator's topics)")
    add("--rate", type=float, default=1.0, metavar="R", help="times real time (default: 1)")
    add(
        "--lockstep",
        action="store_true",
        help="play the next frame set when the outcome of the last one has arrived: nothing is superseded, and the "
        "plans are the same every time, on any machine (default: real time)",
    )
    add("--loop", type=int, default=1, metavar="N", help="play the bag N times; time jumps back between (default: 1)")
    add_model_arguments(parser)
    add_engine_arguments(parser)
    add("--params", type=Path, metavar="FILE", help="ROS 2 parameter file of the node; the options here win")
    add("--out", type=Path, metavar="DIR", help="write an image of each plan, plans.jsonl and unplanned.jsonl")
    add("--node", choices=("own", "external"), default="own", help="start a node, or use one that runs")
    add("--node-name", default="fastdrive", metavar="NAME", help="of an external node (default: fastdrive)")
    add("--fastdds-profile", metavar="XML", help="Fast DDS profile (default: the shipped one; '' for none)")
    add(
        "--json",
        metavar="F",
        help="write the figures as JSON, '-' for standard output; plans_file is beside it unless --out is given",
    )


def run(args: argparse.Namespace) -> None:
    replay(ReplayOptions(**{name: getattr(args, name) for name in ReplayOptions.__dataclass_fields__}))


def replay(
    options: ReplayOptions, node_command: Sequence[str] | None = None, cameras: Sequence[str] | None = None
) -> dict:
    """Run a replay and write its files. Returns the figures.

    Args:
        node_command: what starts the node; None for the installed one.
        cameras: that the model reads; None to ask the VLA directory or, for an external node, the topic map.

    Raises:
        InputError, ModelError: the bag, topic map, VLA or an option cannot be used; nothing was started.
        FastDriveError: the node ended, or did not become ready.
    """
    recording = open_recording(options, cameras)

    from rich.console import Console

    from fastdrive_node.replay.report import draw_plans, never_ready, print_table, summary, tally, write_lines
    from fastdrive_node.replay.session import play_bag

    rate = None if options.lockstep else options.rate
    played = play_bag(recording, node_options(options, node_command), rate, options.loop)
    result = tally(played.passes)
    plans = [each.record for each in result.plans]
    plans_file = plans_path(options)
    unplanned_file = plans_file.with_name(plans_file.name.replace("plans", "unplanned"))
    write_lines(plans_file, [plan.line() for plan in plans])
    write_lines(unplanned_file, result.unplanned)
    run_values = {"bag": str(options.bag), "rate": rate, "lockstep": options.lockstep, "loops": options.loop}
    figures = summary(result, plans_file, unplanned_file, {**run_values, "node": played.identity})
    if options.out is not None:
        figures["pictures"] = draw_plans(options.out, plans, recording, played.settings)
    print_table(figures, Console(stderr=options.json == "-"))
    write_json(figures, options.json)
    if never_ready(result):  # a replay begins when its node is ready
        raise FastDriveError(
            "no set was planned: the planner was loading all the time; another node of this name may have answered "
            "(`ros2 node list` in the same ROS_DOMAIN_ID)"
        )
    return figures


def open_recording(options: ReplayOptions, cameras: Sequence[str] | None = None) -> Recording:
    """The bag, checked against its topic map before anything starts; ``cameras`` as for ``replay``."""
    from fastdrive_node.replay.bag import Recording
    from fastdrive_node.ros.topics import load_topic_map

    topics = None if options.topics is None else load_topic_map(options.topics)
    if cameras is None and options.node == "external":
        cameras = CAMERAS if topics is None else tuple(topics.cameras)
    return Recording.open(options.bag, topics, cameras or model_cameras(options))


def model_cameras(options: ReplayOptions) -> tuple[str, ...]:
    """The cameras of the VLA directory; a wrong one is found before anything starts."""
    from fastdrive_node.families.spec import load_spec
    from fastdrive_node.files import package_share_file

    folder = options.vla or package_share_file("models/tiny/vla.json").parent
    if options.pruner is not None and not (is_pruner_name(options.pruner) or options.pruner.is_file()):
        raise InputError(f"{options.pruner}: no such pruner file, and no pruner has this name; correct --pruner")
    return load_spec(folder).cameras


def is_pruner_name(pruner: Path) -> bool:
    return str(pruner) in NAMES


def node_options(options: ReplayOptions, command: Sequence[str] | None) -> NodeOptions:
    """Paths are made absolute: the node may run elsewhere."""
    from fastdrive_node.families.spec import TINY
    from fastdrive_node.replay.session import NODE_COMMAND, NodeOptions

    pruner = options.pruner
    if pruner is not None and not is_pruner_name(pruner):
        pruner = pruner.resolve()
    given = {
        "vla": str(options.vla.resolve()) if options.vla else None if _names_vla(options.params) else TINY,
        "pruner": pruner and str(pruner),
        "drop": None if options.drop is None else float(options.drop),
        "vision_backend": options.backend,
        "engine": options.engine and str(options.engine.resolve()),
        "language_engine": options.language_engine and str(options.language_engine.resolve()),
    }
    return NodeOptions(
        external=options.node == "external",
        name=options.node_name,
        parameters={name: value for name, value in given.items() if value is not None},
        parameter_file=options.params,
        fastdds_profile=options.fastdds_profile,
        command=command or NODE_COMMAND,
    )


def _names_vla(params: Path | None) -> bool:
    """Whether a parameter file has the VLA. Raises InputError where it cannot be used."""
    if params is None:
        return False
    from fastdrive_node.ros.parameter_files import check_parameter_file

    return bool(check_parameter_file(params).get("vla"))


def plans_path(options: ReplayOptions) -> Path:
    """In --out, else beside --json, else in a new temporary folder."""
    if options.out is not None:
        return options.out / "plans.jsonl"
    if options.json not in (None, "-"):
        return Path(options.json).with_suffix(".plans.jsonl")
    return Path(tempfile.mkdtemp(prefix="fastdrive_")) / "plans.jsonl"
