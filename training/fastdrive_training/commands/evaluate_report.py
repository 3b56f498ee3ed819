"""``fastdrive evaluate-report``: one HTML page and one Markdown file of a finished open-loop evaluation."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fastdrive_node.cli import write_json
from fastdrive_node.commands.options import pruning_ratio


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write one self-contained HTML page and one Markdown file of a finished evaluation: the paper's tables for\n"
        "this data, who is first and by how much, figures against kept tokens, the worst samples with their images,\n"
        "and where pruners disagree. Without the dataset there are no images; the page says so. Shards of one\n"
        "evaluation are merged first, into RUN or the folder that they are all in (--merged)."
    )
    parser.epilog = (
        "examples:\n  fastdrive evaluate data/sim_test --split test --out runs/open_loop\n"
        "  fastdrive evaluate-report runs/open_loop\n"
        "  fastdrive evaluate-report runs/open_loop --drop 0.5 --worst 20 --out half.html\n"
        "  fastdrive evaluate-report machine_a/val machine_b/val --merged runs/val"
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="the folder that `fastdrive evaluate --out` named, or shards"
    )
    parser.add_argument("--merged", type=Path, metavar="DIR", help="folder of the run that shards are merged into")
    parser.add_argument("--dataset", type=Path, metavar="DIR", help="where the dataset is now (as the run names it)")
    parser.add_argument("--split", metavar="S", help="of a dataset that holds several; any that has the samples")
    parser.add_argument("--vla", type=Path, metavar="DIR", help="the run's VLA directory (the shipped tiny one)")
    parser.add_argument(
        "--drop", type=pruning_ratio, metavar="P", help="ratio of the samples shown (0.75, or the run's largest)"
    )
    parser.add_argument("--worst", type=int, default=10, metavar="N", help="samples with images (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (report.html in the run's folder)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the Markdown file (as the page, with .md)")
    parser.add_argument("--json", metavar="FILE", help="write the figures here; - is standard output")


def run(args: argparse.Namespace) -> None:
    """Raises ReportError, InputError or ModelError, which name the file or argument."""
    from fastdrive_training.evaluation.shards import merged_run
    from fastdrive_training.reports.open_loop.page import write_report
    from fastdrive_training.reports.open_loop.report import (
        ReportSettings,
        as_json,  # drawing libraries, not needed for --help
        build_report,
    )

    settings = ReportSettings(args.dataset, args.vla, args.split, args.drop, args.worst)
    report = build_report(merged_run(args.runs, args.merged), settings)
    html, markdown = write_report(report, args.out, args.markdown)
    print(f"wrote {html} and {markdown}", file=sys.stderr)
    if report.no_images:
        print(f"without images: {report.no_images}", file=sys.stderr)
    write_json({"page": str(html), "markdown": str(markdown), **as_json(report)}, args.json)
