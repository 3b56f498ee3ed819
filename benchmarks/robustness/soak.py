"""The node for minutes or hours: memory, file descriptors and threads of its processes, and the latency, over time.

``python -m benchmarks.robustness.soak --minutes 30 --hz 10 --json soak.json --picture soak.png`` replays a bag again
and again to a node with its planner in a process of its own, looks at both in /proc every few seconds, and compares the
last fifth with the fifth after the warm-up. It ends with 1 where memory grew by more than 1 %, descriptors or threads
were not given back, or the p99 of the latency rose by more than half.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fastdrive_node.families.spec import TINY, chosen_vla_dir, load_spec
from fastdrive_node.files import package_share_file, write_atomically
from fastdrive_node.replay.bag import Recording
from fastdrive_node.replay.frame_sets import LoopResult
from fastdrive_node.replay.session import NodeOptions, play_bag

PERIOD_S = 5.0  # between two looks
WARM_UP = 0.2  # fraction of the time that does not count
MAX_GROWTH = 0.01  # of private memory
MAX_P99_RATIO = 1.5


@dataclass(frozen=True)
class Look:
    """One process at one time."""

    at_s: float  # since the start
    process: str  # "node" or "planner"
    pid: int
    private_mb: float  # resident memory of its own, of 10^6 bytes
    shared_mb: float  # resident segments of the middleware and files, which other processes have too
    descriptors: int
    threads: int


@dataclass(frozen=True)
class Judged:
    """A figure after the warm-up and at the end, medians of a fifth of the time each."""

    name: str
    before: float
    after: float
    limit: float
    passed: bool


def children_of(pid: int) -> list[int]:
    """Processes that any thread of a process has started."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in task.read_text().split()]
        except OSError:  # the thread has ended
            continue
    return found


def look(at_s: float, process: str, pid: int) -> Look | None:
    """None where the process has ended."""
    folder = Path(f"/proc/{pid}")
    try:
        rows = (line.split() for line in (folder / "status").read_text().splitlines() if line.startswith("Rss"))
        resident = {row[0]: int(row[1]) * 1024 / 1e6 for row in rows}
        descriptors, threads = len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir()))
    except OSError:
        return None
    if "RssAnon:" not in resident:  # it is ending
        return None
    shared = resident["RssFile:"] + resident["RssShmem:"]
    return Look(round(at_s, 1), process, pid, resident["RssAnon:"], shared, descriptors, threads)


class Watch(threading.Thread):
    """Looks at the node that this process starts, and at the node's planner, until it is stopped."""

    def __init__(self, period_s: float = PERIOD_S):
        super().__init__(daemon=True)
        self.looks: list[Look] = []
        self._period_s = period_s
        self._ended = threading.Event()

    def run(self) -> None:
        began = time.monotonic()
        while not self._ended.wait(self._period_s):
            for node in children_of(os.getpid()):
                named = [("node", node), *(("planner", child) for child in children_of(node))]
                at_s = time.monotonic() - began
                self.looks += [seen for name, pid in named if (seen := look(at_s, name, pid)) is not None]

    def stop(self) -> None:
        self._ended.set()
        self.join()


@contextmanager
def watching(period_s: float) -> Iterator[Watch]:
    watch = Watch(period_s)
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()


def judge(looks: Sequence[Look], passes: Sequence[Sequence[float]]) -> list[Judged]:
    """The node's processes and the latencies (in ms, by pass of the bag) after the warm-up against those at the end.

    Raises:
        ValueError: there are too few looks or passes to compare.
    """
    figures = []
    for process in ("node", "planner"):
        rows = [each for each in looks if each.process == process]
        values = {
            "private_mb": ([each.private_mb for each in rows], MAX_GROWTH),
            "descriptors": ([float(each.descriptors) for each in rows], 0.0),
            "threads": ([float(each.threads) for each in rows], 0.0),
        }
        for name, (series, growth) in values.items():
            before, after = (float(np.median(part)) for part in _ends(series))
            figures.append(Judged(f"{process} {name}", before, after, growth, after <= before * (1 + growth)))
        restarts = float(len({each.pid for each in rows}) - 1)
        figures.append(Judged(f"{process} restarts", 0.0, restarts, 0.0, not restarts))
    early, late = (
        float(np.percentile(np.concatenate(part), 99)) for part in _ends([np.array(each) for each in passes])
    )
    figures.append(Judged("latency p99 ms", early, late, MAX_P99_RATIO - 1, late <= early * MAX_P99_RATIO))
    return figures


def _ends(series: list) -> tuple[list, list]:
    """The fifth after the warm-up, and the last fifth."""
    count = len(series)
    if count < 5:
        raise ValueError(f"{count} values are too few to compare; soak longer")
    size, first = max(1, count // 5), math.ceil(count * WARM_UP)
    return series[first : first + size], series[-size:]


def latencies_ms(played: LoopResult) -> list[float]:
    """Of the plans of one pass, from the oldest image's due time to the record's arrival."""
    return [each.end_to_end_ms for each in played.received if each.record.kind == "plan"]


def soak(
    minutes: float, hz: float, bag: Path, period_s: float, engines: Path | None = None
) -> tuple[list[Look], list[LoopResult]]:
    """Replay the bag so often that it takes ``minutes``, with ``hz`` frame sets a second.

    Args:
        engines: folder of vision.onnx and language.onnx; None for torch.

    Returns:
        What was seen while it played, without the loading of the model, and the passes.
    """
    recording = Recording.open(bag, None, load_spec(chosen_vla_dir(TINY)).cameras)
    duration_s = (recording.bag.end_ns - recording.bag.start_ns) * 1e-9
    times = sorted({message.stamp_ns for message in recording.image_messages()})
    rate = hz / _sets_per_s(times)
    loops = max(1, math.ceil(minutes * 60 * rate / duration_s))
    parameters: dict[str, object] = {"vla": TINY, "planning_deadline_s": 10.0}
    if engines is not None:
        vision, language = (str((engines / f"{part}.onnx").resolve()) for part in ("vision", "language"))
        parameters |= {"vision_backend": "onnxruntime", "engine": vision, "language_engine": language}
    options = NodeOptions(parameters=parameters)
    with watching(period_s) as watch:
        passes = play_bag(recording, options, rate, loops).passes
    loaded_s = max((each.at_s for each in watch.looks), default=0.0) - loops * duration_s / rate
    return [each for each in watch.looks if each.at_s >= loaded_s], passes


def _sets_per_s(times_ns: Sequence[int]) -> float:
    """Of image times, where those of one set are less than 20 ms apart."""
    begins = [
        time for before, time in zip([-(10**18), *times_ns], times_ns, strict=False) if time - before > 20_000_000
    ]
    return (len(begins) - 1) / ((begins[-1] - begins[0]) * 1e-9)


def draw(looks: Sequence[Look], passes: Sequence[Sequence[float]], path: Path) -> None:
    """Memory, descriptors, threads and latency over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    axes = figure.subplots(3, 1)
    for process in ("node", "planner"):
        rows = [each for each in looks if each.process == process]
        minutes = [each.at_s / 60 for each in rows]
        axes[0].plot(minutes, [each.private_mb for each in rows], label=process)
        axes[1].plot(minutes, [each.descriptors for each in rows], label=f"{process}: descriptors")
        axes[1].plot(minutes, [each.threads for each in rows], "--", label=f"{process}: threads")
    axes[0].set(ylabel="private memory [MB]", ylim=(0, None))
    axes[1].set(ylabel="count", xlabel="time [min]", ylim=(0, None))
    numbers = range(1, len(passes) + 1)
    for percent in (50, 99):
        axes[2].plot(
            numbers, [np.percentile(each, percent) if len(each) else np.nan for each in passes], label=f"p{percent}"
        )
    axes[2].set(ylabel="image to plan [ms]", xlabel="pass of the bag", ylim=(0, None))
    for each in axes:
        each.legend()
        each.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Replay for minutes; memory, descriptors, threads and latency")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--hz", type=float, default=10.0, help="frame sets a second (default: %(default)s)")
    parser.add_argument("--bag", type=Path, default=package_share_file("samples/city/metadata.yaml").parent)
    parser.add_argument("--engines", type=Path, help="folder of vision.onnx and language.onnx (default: torch)")
    parser.add_argument("--period", type=float, default=PERIOD_S, help="seconds between two looks")
    parser.add_argument("--json", type=Path, help="write the curve and the figures here")
    parser.add_argument("--picture", type=Path, help="draw the curve here (PNG)")
    options = parser.parse_args(arguments)
    looks, results = soak(options.minutes, options.hz, options.bag, options.period, options.engines)
    passes = [latencies_ms(each) for each in results]
    figures = judge(looks, [each for each in passes if each])
    counts = {
        "passes": len(passes),
        "plans": sum(map(len, passes)),
        "records": sum(len(each.received) for each in results),
    }
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    for each in figures:
        print(f"{each.name}: {each.before:.1f} -> {each.after:.1f}{'' if each.passed else '  TOO MUCH'}")
    if options.json:
        document = {
            "minutes": options.minutes,
            "hz": options.hz,
            **counts,
            "figures": [asdict(each) for each in figures],
            "latency_ms": [
                {"p50": float(np.percentile(each, 50)), "p99": float(np.percentile(each, 99))} if each else None
                for each in passes
            ],
            "looks": [asdict(each) for each in looks],
        }
        with write_atomically(options.json) as partial:
            partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if options.picture:
        draw(looks, passes, options.picture)
    return int(not all(each.passed for each in figures))


if __name__ == "__main__":
    sys.exit(main())
