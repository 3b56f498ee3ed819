"""Runs the faults of ``catalog.py`` and writes the page: ``python -m tests.faults.matrix --out docs/faults.md``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.faults.catalog import FAULTS
from tests.faults.harness import PARAMETERS, PERIOD_S, SCENES, Measured, Scenes

HEAD = """# Fault matrix

Written by `python -m tests.faults.matrix --out docs/faults.md`, from {count} faults that were injected into a live node
with a stand-in planner, in the scenes `model` and `strict` with the shipped model ({seconds:.0f} s in all, on a machine
that did other work too). A third of them runs in the test suite. Sets come every {period_ms:.0f} ms.

Parameters other than the defaults:

{parameters}

Mode and code are those of `~/output/status` ([node.md](node.md#operating-mode)). Time to detect is from the injection
to the status that has them; recovery is from the end of the fault to `nominal`, which needs `recover_plans` plans in a
row. `nominal` means that the fault is handled and plans go on. In every scene and at every time it is also checked that
no published path is stale or has a number that is not finite, that the planner's diagnostics are not OK in any other
mode, that plans come in the modes that say so, and that the node's executor runs.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="page to write; without it the table goes to standard output")
    parser.add_argument("--only", default="", help="run the faults whose group or name contains this text")
    options = parser.parse_args(arguments)
    chosen = [fault for fault in FAULTS if options.only in f"{fault.group}: {fault.name}"]
    start_s = time.monotonic()
    results = run(sorted(chosen, key=lambda fault: list(SCENES).index(fault.scene)))
    results.sort(key=lambda each: FAULTS.index(each.fault))
    text = page(results, time.monotonic() - start_s)
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text, encoding="utf-8")
    failed = [each for each in results if each.problems]
    print(f"{len(results)} faults, {len(failed)} not as expected", file=sys.stderr)
    return 1 if failed else 0


def run(faults: Sequence) -> list[Measured]:
    """Measure faults, with a ROS context of its own."""
    import rclpy

    from fastdrive_node.ros.domain import own_domain

    logging.getLogger("fastdrive_node").setLevel(logging.CRITICAL)
    with own_domain() as domain:
        os.environ |= {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_DOMAIN_ID": str(domain)}
        rclpy.init(args=[], domain_id=domain)
        scenes = Scenes(rclpy)
        try:
            results = []
            for fault in faults:
                results.append(scenes.measure(fault))
                print(line(results[-1]), file=sys.stderr, flush=True)
            return results
        finally:
            scenes.close()
            rclpy.try_shutdown()


def line(result: Measured) -> str:
    fault = result.fault
    figures = f"{_seconds(result.detect_s)}, {_seconds(result.recover_s)}"
    problems = f"  !! {'; '.join(result.problems)}" if result.problems else ""
    return f"{fault.group}: {fault.name}: {result.mode} {result.code} ({figures}){problems}"


def page(results: Sequence[Measured], seconds: float) -> str:
    """The content of docs/faults.md."""
    given = {"every scene": PARAMETERS, **SCENES}
    parameters = "\n".join(
        f"- {name}: {', '.join(f'`{key}: {value}`' for key, value in values.items()) or 'no others'}"
        for name, values in given.items()
    )
    lines = [HEAD.format(count=len(results), seconds=seconds, period_ms=PERIOD_S * 1e3, parameters=parameters)]
    for group in dict.fromkeys(each.fault.group for each in results):
        lines += [f"## {group.capitalize()}\n", "| fault | scene | mode | code | time to detect | recovers in |"]
        lines.append("|---|---|---|---|---|---|")
        for each in results:
            if each.fault.group == group:
                cells = [each.fault.name, each.fault.scene, each.mode, each.code or "-"]
                cells += [_seconds(each.detect_s), _seconds(each.recover_s)]
                cells[2] += "".join(f"; **{problem}**" for problem in each.problems)
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


if __name__ == "__main__":
    sys.exit(main())
