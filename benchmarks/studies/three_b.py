"""What a 3B with random weights takes on a CPU: ``vla init``, ``vla check`` and ``plan`` on a checkpoint as on the Hub.

    python -m benchmarks.studies.three_b --tokenizer tokenizer.json --json benchmarks/results/three_b_cpu.json
    python -m benchmarks.studies.three_b --page      # writes the figures into docs/vla_directory.md

Each command is a process of its own, whose time and peak of resident memory are taken. A model with random weights
writes no plan: its answer is refused as any other that does not match, with times and tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import RESULTS, ROOT
from benchmarks.perf.random_models import SIZES, write_checkpoint
from benchmarks.studies.summary import summarize, to_text
from benchmarks.studies.tiny_card import filled
from fastdrive_node.families import load_vla
from fastdrive_node.files import SHIPPED_PRUNER
from fastdrive_node.pruning.checkpoint import save_pruner
from fastdrive_node.pruning.recon_pruner import ReconPruner

FILE, PAGE, PART = "three_b_cpu.json", ROOT / "docs" / "vla_directory.md", "three_b"
WRITER = "benchmarks/studies/three_b.py"
STAGES = ("preprocess", "encode", "prompt", "score", "select", "prefill", "decode")


def run_command(arguments: list[str], folder: Path, *figures: Path) -> dict[str, float]:
    """Run ``fastdrive`` with the arguments; returns ``s`` and ``peak_memory_gb`` of its process.

    Raises RuntimeError where it fails: with ``figures``, which a refusal (exit 1) has too, where they are not written.
    """
    paths = [str(ROOT), str(ROOT / "training"), str(ROOT / "export"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    began = time.monotonic()
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "fastdrive_node.cli", *arguments], stdout=log, stderr=log, env=environment
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in ((0, 1) if figures else (0,)) or not all(file.exists() for file in figures):
        output = (folder / "log.txt").read_text()
        raise RuntimeError(f"fastdrive {arguments[0]} ended with {process.returncode}: {output}")
    return {"s": time.monotonic() - began, "peak_memory_gb": usage.ru_maxrss * 1024 / 1e9}


def write_inputs(folder: Path) -> tuple[Path, Path]:
    """A front image of 1600x900 px and three seconds of motion at 4 m/s."""
    image, states = folder / "front.png", folder / "states.json"
    pixels = np.random.default_rng(0).integers(0, 256, (9, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((1600, 900)).save(image)
    known = {"y": 0.0, "yaw": 0.0, "speed": 4.0, "ax": 0.0, "ay": 0.0, "vy": 0.0, "yaw_rate": 0.0, "steer": 0.0}
    states.write_text(json.dumps([{"t_s": -0.5 * step, "x": -2.0 * step, **known} for step in range(6, -1, -1)]))
    return image, states


def write_pruner(vla_dir: Path) -> None:
    """An untrained ReconPruner for the VLA, in bfloat16."""
    vla = load_vla(vla_dir, parts=frozenset(), dtype=torch.bfloat16)
    torch.manual_seed(0)
    pruner = ReconPruner(vla.family, vla.config.text_config).to(torch.bfloat16)
    save_pruner(vla_dir / SHIPPED_PRUNER, pruner, vla.encoder_fingerprint)


def measure(checkpoint: Path, drop: float = 0.75, dtype: str = "bfloat16") -> dict[str, Any]:
    """The three commands on a checkpoint; it is not changed. Raises RuntimeError where one fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vla, files = folder / "vla", {key: folder / f"{key}.json" for key in ("check", "plan")}
        image, states = write_inputs(folder)
        commands = {
            "vla init": run_command(["vla", "init", str(checkpoint), str(vla), "--template", "impromptu-1v"], folder)
        }
        write_pruner(vla)
        device = ["--device", "cpu"]
        commands["vla check"] = run_command(
            ["vla", "check", str(vla), str(image), *device, "--json", str(files["check"])], folder, files["check"]
        )
        inputs = [str(image), "--vla", str(vla), "--history", str(states)]
        options = ["--drop", str(drop), "--dtype", dtype, *device, "--json", str(files["plan"])]
        commands["plan"] = run_command(["plan", *inputs, *options], folder, files["plan"])
        check, plan = (json.loads(file.read_text()) for file in files.values())
    if "stage_ms" not in plan:
        raise RuntimeError(f"fastdrive plan: refused before the model ran: {plan['reason']}")
    kept = ("kind", "code", "total_tokens", "kept_tokens", "answer_forwards")
    return {
        "machine": machine(),
        "dtype": dtype,
        "drop": drop,
        "parameters": check["parameters"],
        "commands": commands,
        "check": {
            **{key: check[key] for key in ("visual_tokens", "text_tokens", "answer_tokens", "memory_gb")},
            "problems": len(check["problems"]),
        },
        "plan": {
            **{key: plan[key] for key in kept if key in plan},
            "answer_tokens": len(plan["answer_ids"]),
            "stage_ms": plan["stage_ms"],
        },
    }


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory and torch's version."""
    information = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in information if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    cores = len(os.sched_getaffinity(0))
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": cores,
        "memory_gb": memory,
        "torch": torch.__version__,
    }


def part(results: Path = RESULTS) -> str:
    """The page's part, in Markdown."""
    if not (results / FILE).exists():
        return "Not measured yet: `python -m benchmarks.studies.three_b --help`."
    figures = json.loads((results / FILE).read_text())
    host, plan, check = figures["machine"], figures["plan"], figures["check"]
    rows = [
        f"| `{name}` | {cost['s']:.1f} | {cost['peak_memory_gb']:.2f} |" for name, cost in figures["commands"].items()
    ]
    times = {name: ms for name, ms in plan["stage_ms"].items() if name in STAGES or name == "total"}
    stages = ", ".join(f"{name} {ms / 1000:.2f} s" for name, ms in times.items())
    return "\n".join(
        [
            f"{sum(figures['parameters'].values()) / 1e9:.2f} B parameters with random weights in {figures['dtype']}, "
            f"{host['processor']}, {host['cores']} cores, torch {host['torch']}:",
            "",
            "| command | s, with loading | peak memory, GB |",
            "|---|---|---|",
            *rows,
            "",
            f"`plan --drop {figures['drop']:g}` keeps {plan['kept_tokens']} of {plan['total_tokens']} visual tokens "
            f"beside {check['text_tokens']} of text, and writes {plan['answer_tokens']} tokens in "
            f"{plan['answer_forwards']} forward passes: {stages}. The answer is {plan['kind']}"
            + (f" ({plan['code']})" if plan.get("code") else "")
            + ", as random weights write no plan.",
        ]
    )


def complete(page: str) -> str:
    """The page with its part written anew."""
    return filled(page, PART, part(), WRITER)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", type=Path, default=Path("runs/three_b"), help="its folder; made where absent (%(default)s)")
    add("--tokenizer", type=Path, metavar="FILE", help="the released tokenizer.json, where the checkpoint is made")
    add("--size", choices=tuple(SIZES), default="3b", help="of a checkpoint that is made (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the figures here")
    add("--page", action="store_true", help=f"write the committed figures into {PAGE.relative_to(ROOT)}, and stop")
    args = parser.parse_args(arguments)
    if args.page:
        PAGE.write_text(complete(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    if not args.checkpoint.exists():
        if args.tokenizer is None:
            parser.error(f"{args.checkpoint}: is not there, and no --tokenizer is given to make it with")
        write_checkpoint(args.checkpoint, SIZES[args.size], args.tokenizer, seed=0)
    text = to_text(summarize(measure(args.checkpoint))) + "\n"
    print(text, end="")
    if args.json is not None:
        args.json.write_text(text)


if __name__ == "__main__":
    main()
