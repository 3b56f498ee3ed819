"""The paper's ablation of ReconPruner's training in miniature: arms x seeds, resumable, with a table.

    python -m benchmarks.studies.pruner_ablation --json runs/pruner_ablation.json

Arms: the foreground branch alone (no adversary), the adversary with pixels (the method), with masks in place of pixels,
with both. Beside them decoders that are trained as long on the true and on random masks, to compare reconstructions
with. Each run is a folder below --out; what is done there is not done again, and what was cut off goes on. With the
defaults 14 runs take about 45 minutes on two CPU cores. Final figures are of --test, which no run and no choice saw.

The foreground branch alone is trained as in the paper: no warm-up on random masks and no rehearsal, for both are
reconstructions of what the mask leaves out; its steps are as many. --arms names further arms that tell the two apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import ROOT
from benchmarks.studies.ablation_runs import AblationJob
from fastdrive_node.cli import write_json
from fastdrive_node.devices import choose_device, describe
from fastdrive_node.families import load_vla
from fastdrive_training.data.adapters import open_source
from fastdrive_training.data.token_cache import build_token_cache

UNAIDED = {"rehearsal": 0.0, "decoder_pretrain_steps": 0}  # and the warm-up's steps are added to the others
# arm -> (what it is, its keys)
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "foreground_only": ("foreground branch alone", {"loss": {"adversary": False}, "schedule": UNAIDED}),
    "adversary_pixels": ("adversary, pixels (the method)", {}),
    "adversary_mask": ("adversary, masks in place of pixels", {"loss": {"targets": "mask"}}),
    "adversary_both": ("adversary, pixels and masks", {"loss": {"targets": "both"}}),
    "foreground_only_aided": ("foreground branch alone, with warm-up and rehearsal", {"loss": {"adversary": False}}),
    "adversary_unaided": ("adversary, pixels, no warm-up or rehearsal", {"schedule": UNAIDED}),
}
DEFAULT_ARMS = "foreground_only,adversary_pixels,adversary_mask,adversary_both"
REFERENCES = {"oracle_mask": "decoder with the true mask", "random_mask": "decoder with random masks"}
RECONSTRUCTION = ("psnr_fore", "psnr_back", "ssim_fore", "ssim_back", "psnr_fore_region", "psnr_back_region")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vla", default="models/tiny", help="VLA directory (%(default)s)")
    for name, root in (("train", "data/sim_prune"), ("val", "data/sim_val"), ("test", "data/sim_test")):
        parser.add_argument(f"--{name}", default=root, metavar="DIR", help=f"dataset with a split {name} (%(default)s)")
    parser.add_argument("--out", default="runs/pruner_ablation", help="folder of the runs (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="figures; a table goes beside them as .md (OUT/ablation.json)")
    parser.add_argument("--arms", default=DEFAULT_ARMS, help=f"of {', '.join(ARMS)} (the first four)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each arm, from 0 on (%(default)s)")
    parser.add_argument("--reference-seeds", type=int, default=1, help="of the decoders to compare with (%(default)s)")
    parser.add_argument("--steps", type=int, default=900, help="joint steps of a run (%(default)s)")
    parser.add_argument("--warmup", type=int, default=300, help="steps of the decoder alone before them (%(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="camera images a step (%(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="of the decoder (%(default)s)")
    parser.add_argument("--decoder-layers", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--test-keyframes", type=int, default=200, help="evenly spread (%(default)s)")
    parser.add_argument("--pictures", type=int, default=50, help="of them, for reconstructions (%(default)s)")
    parser.add_argument("--cache", default="runs/token_cache", help="folder of token caches (%(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto (%(default)s)")
    parser.add_argument("--jobs", type=int, help="runs at a time (one a CPU core, one on a GPU)")
    args = parser.parse_args(argv)
    args.arms = args.arms.split(",")
    unknown = sorted(set(args.arms) - set(ARMS))
    if unknown:
        parser.error(f"--arms: {unknown[0]!r} is none of {', '.join(ARMS)}")
    for name in ("seeds", "steps", "batch", "test_keyframes", "pictures"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: must be at least 1")
    args.device = str(choose_device(args.device, "--device"))
    args.jobs = args.jobs or (1 if args.device != "cpu" else os.cpu_count() or 1)
    return args


def plan(args: argparse.Namespace) -> list[AblationJob]:
    """All runs, seed after seed, so that an early stop leaves whole comparisons."""
    jobs = []
    for seed in range(max(args.seeds, args.reference_seeds)):
        if seed < args.seeds:
            jobs += [_job(args, arm, seed, ARMS[arm][1]) for arm in args.arms]
        if seed < args.reference_seeds:
            jobs += [_job(args, name, seed, {"mask": name.removesuffix("_mask")}) for name in REFERENCES]
    return jobs


def _job(args: argparse.Namespace, arm: str, seed: int, keys: dict[str, Any]) -> AblationJob:
    unaided = keys.get("schedule") is UNAIDED
    schedule = {
        "decoder_pretrain_steps": args.warmup,
        "steps": args.steps + (args.warmup if unaided else 0),
        "batch": args.batch,
        "lr": args.lr,
        "log_every": max(args.steps // 40, 1),
        "evaluate_every": max(args.steps // 4, 1),
        "checkpoint_every": 100,
    }
    recipe = {
        "vla": args.vla,
        "dataset": args.train,
        "val_dataset": args.val,
        "val_keyframes": 50,
        "out": str(Path(args.out) / f"{arm}_seed{seed}"),
        "cache": args.cache,
        "seed": seed,
        "device": args.device,
        "decoder_layers": args.decoder_layers,
        "tensorboard": False,
        "mask": keys.get("mask", "pruner"),
        "loss": {"ssim_stride": 4, **keys.get("loss", {})},
        "schedule": {**schedule, **keys.get("schedule", {})},
        # a tenth of the run may look collapsed, at its start or in a row; then it is recorded, and the run goes on
        "health": {
            "grace_steps": args.steps // 10,
            "patience_steps": max(args.steps // 10, 1),
            "on_collapse": "record",
        },
    }
    return AblationJob(arm, seed, recipe, args.test, "test", args.test_keyframes, args.pictures)


def run_all(args: argparse.Namespace, jobs: list[AblationJob]) -> dict[str, str]:
    """Run what is not done yet, ``args.jobs`` at a time. Returns the last line of what failed, by run."""
    waiting = [job for job in jobs if job.result() is None]
    if waiting:  # once, for runs that start together would build it together
        build_token_cache(open_source(args.train, "train"), load_vla(args.vla), args.cache)
    threads = max((os.cpu_count() or 1) // args.jobs, 1)
    failed = {}
    with ThreadPoolExecutor(args.jobs) as pool:
        started = {pool.submit(_start, job, threads): job for job in waiting}
        bar = tqdm(as_completed(started), total=len(jobs), initial=len(jobs) - len(waiting), desc="runs", unit="run")
        for future in bar:
            job, problem = started[future], future.result()
            bar.set_postfix_str(job.folder.name)
            if problem:
                failed[job.folder.name] = problem
    return failed


def _start(job: AblationJob, threads: int) -> str | None:
    """One run in a process of its own; its output goes to run.log. Returns the last line where it failed."""
    job.folder.mkdir(parents=True, exist_ok=True)
    log = job.folder / "run.log"
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with open(log, "w") as output:
        code = subprocess.run(
            [sys.executable, "-m", "benchmarks.studies.ablation_runs", json.dumps(asdict(job))],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)},
        ).returncode
    lines = log.read_text().strip().splitlines()
    return f"{lines[-1] if lines else f'exit {code}'} ({log})" if code else None


def summarise(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation over the seeds, by arm."""
    summary: dict[str, dict[str, Any]] = {}
    for arm in dict.fromkeys(result["arm"] for result in results):
        rows = [result for result in results if result["arm"] == arm]
        flat = [_flat(row) for row in rows]
        summary[arm] = {
            "seeds": len(rows),
            "collapsed": sum(row["collapsed"] is not None for row in rows),
            **{key: _spread([row[key] for row in flat]) for key in flat[0] if all(key in row for row in flat)},
        }
    return summary


def _flat(result: dict[str, Any]) -> dict[str, float]:
    """The numbers that are compared."""
    names = ("auroc", "average_precision", "positive_share", "foreground_share", "images_per_s", "peak_memory_mib")
    numbers = {name: result[name] for name in names if result.get(name) is not None}
    numbers |= {f"recall_{ratio}": value for ratio, value in result.get("recall", {}).items()}
    return numbers | (result["reconstruction"] or {})


def _spread(values: list[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0}


def table(summary: dict[str, dict[str, Any]]) -> str:
    """Two tables in Markdown: the scores, and the reconstructions."""
    scored = [arm for arm in summary if arm in ARMS]
    keys = ("auroc", "average_precision", "recall_0.75", "recall_0.5", "recall_0.25", "positive_share")
    head = ("arm", "AUROC", "AP", "recall at keep 0.75", "0.5", "0.25", "tokens above zero", "collapsed")
    rows = [(ARMS[arm][0], *(_cell(summary[arm], key, 3) for key in keys), f"{_of(summary[arm])}") for arm in scored]
    painted = [arm for arm in summary if "psnr_fore" in summary[arm]]
    names = {**{arm: text for arm, (text, _) in ARMS.items()}, **REFERENCES}
    second = ("mask by", "PSNR fore (dB)", "back", "SSIM fore", "back", "PSNR inside fore (dB)", "inside back")
    places = (1, 1, 3, 3, 1, 1)
    reconstructions = [
        (names[arm], *(_cell(summary[arm], key, digits) for key, digits in zip(RECONSTRUCTION, places, strict=True)))
        for arm in painted
    ]
    return f"{_markdown(head, rows)}\n\n{_markdown(second, reconstructions)}\n"


def _of(row: dict[str, Any]) -> str:
    return f"{row['collapsed']} of {row['seeds']}"


def _cell(row: dict[str, Any], key: str, digits: int) -> str:
    if key not in row:
        return "-"
    spread = f" ± {row[key]['std']:.{digits}f}" if row["seeds"] > 1 else ""
    return f"{row[key]['mean']:.{digits}f}{spread}"


def _markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    jobs = plan(args)
    failed = run_all(args, jobs)
    results = [result for job in jobs if (result := job.result()) is not None]
    if results:
        summary = summarise(results)
        target = Path(args.json or Path(args.out) / "ablation.json")
        threads = max((os.cpu_count() or 1) // args.jobs, 1)
        report = {
            "machine": describe(torch.device(args.device)),
            "runs_at_a_time": args.jobs,
            "threads_a_run": threads,
            "arguments": {key: value for key, value in vars(args).items() if key != "json"},
            "summary": summary,
            "runs": [{key: value for key, value in result.items() if key != "job"} for result in results],
            "failed": failed,
        }
        write_json(report, str(target))
        target.with_suffix(".md").write_text(table(summary))
        print(table(summary))
    for name, problem in failed.items():
        print(f"failed: {name}: {problem}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
