"""``fastdrive train-report``: one HTML page of a training run."""

from __future__ import annotations

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write one self-contained HTML page of a training run: loss curves, reconstructions, score maps over the\n"
        "cameras, precision and recall, the fraction of tokens above zero, and whether the run collapsed. The run may\n"
        "still be going; what it has not written yet, the page says."
    )
    parser.epilog = (
        "examples:\n  fastdrive train-report runs/recon_tiny\n  fastdrive train-report runs/seed1 --out seed1.html"
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder, the key `out` of its recipe")
    parser.add_argument("--out", metavar="FILE", help="the page to write (report.html in the run's folder)")


def run(args: argparse.Namespace) -> None:
    """Raises ReportError, which names the file that is missing or damaged."""
    from fastdrive_training.reports.pruner_run.page import write_report  # drawing libraries, not needed for --help

    print(f"wrote {write_report(args.run, args.out)}", file=sys.stderr)
