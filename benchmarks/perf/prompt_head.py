"""Prefill of prompts that begin with constant text: its keys and values kept, or run anew for each plan, in turns.

    fastdrive export build --part language --operators standard --out standard
    python -m benchmarks.perf.prompt_head --engines .venv/engines standard --json benchmarks/results/prompt_head.json

The VLA's own prompt, with a text of so many tokens before its first image. The weights were not trained for it: only
the times count, and that both ways give the same logits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastdrive_node.benchmark.timing import Case, measure, ratio
from fastdrive_node.benchmark.workload import Workload, noise_sample, workload
from fastdrive_node.cli import write_json
from fastdrive_node.devices import describe
from fastdrive_node.engines.language_engine import LanguageChoice, open_language_engine
from fastdrive_node.errors import FastDriveError
from fastdrive_node.families import VisualTokens, Vla, constant_head, load_vla
from fastdrive_node.families.spec import default_vla_dir
from fastdrive_node.planning.generator import Generator
from fastdrive_node.pruning.baselines.simple import NoPruner
from fastdrive_node.pruning.select import keep_count

CPU = torch.device("cpu")
TEXT = "Past: [+01.0, -02.0], [+03.0, -04.0]. Speed: +05.0, acceleration: +00.6. Command: left. "  # of models/tiny
WARM_UP = 5


def text_first(vla: Vla, text: str, tokens: int) -> Vla:
    """The VLA with a prompt that has at least ``tokens`` constant tokens, of ``text``, before its first image."""
    place = vla.template.index("{image")
    for times in range(tokens + 1):
        changed = replace(vla, template=f"{vla.template[:place]}{text * times}{vla.template[place:]}")
        if len(constant_head(changed)) >= tokens:
            return changed
    raise SystemExit("--text: the constant head of the prompt does not grow with it; give another text")


@torch.inference_mode()
def compare(work: Workload, language: Any, drop: float, runs: int, threads: int) -> dict:
    """Medians of both ways with one language model, and by how much their logits differ."""
    vla = work.vla
    visual = work.encode(work.patches)
    keep = keep_count(visual.total, drop)
    kept = torch.linspace(0, visual.total - 1, keep).long()
    generators = {name: Generator(vla, language, keep_head=name == "kept") for name in ("kept", "anew")}

    def run(generator: Generator, tokens: VisualTokens) -> torch.Tensor:
        return generator.prefill(NoPruner(), [work.prompt], [tokens], [kept], keep, work.numbers).logits

    logits = [run(each, visual).clone() for each in generators.values()]
    cases = {
        name: Case(lambda tokens, each=each: run(each, tokens), lambda: visual, threads)
        for name, each in generators.items()
    }
    times = measure(cases, runs, CPU, WARM_UP)
    head = generators["kept"].head
    return {
        "head_tokens": 0 if head is None else len(head.prompt),
        "prompt_tokens": len(work.prompt) - visual.total + keep,
        **{name: timing.figures() for name, timing in times.items()},
        "anew_over_kept": ratio(times["anew"], times["kept"]),
        "largest_difference_of_logits": float((logits[0] - logits[1]).abs().max()),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vla", type=Path, help="VLA directory (default: the shipped one)")
    parser.add_argument("--text", default=TEXT, help="constant text, which the tokenizer can write; it is repeated")
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 40, 120, 400], help="lengths of the head")
    parser.add_argument("--engines", type=Path, nargs="*", default=[], help="folders with a language.onnx of the VLA")
    parser.add_argument("--drop", type=float, default=0.75)
    parser.add_argument("--runs", type=int, default=100, help="timed runs of each way (default: 100)")
    parser.add_argument("--json", metavar="F", default="-")
    args = parser.parse_args(arguments)
    if args.runs < 1:
        parser.error(f"--runs: {args.runs}; give 1 or more")
    vla, cores = load_vla(args.vla or default_vla_dir()), torch.get_num_threads()
    languages: dict[str, tuple[Any, int]] = {"torch": (vla.torch_language(), cores)}
    for folder in args.engines:
        engine = open_language_engine(LanguageChoice(folder / "language.onnx", "cpu"), vla)
        languages[f"engine, {engine.info.operators} operators"] = engine, 1  # torch's threads, as beside engines
    rows: dict[str, dict] = {name: {} for name in languages}
    for tokens in args.tokens:
        longer = text_first(vla, args.text, tokens)
        work = workload(longer, vla.torch_vision(), noise_sample(longer))
        for name, (language, threads) in languages.items():
            torch.set_num_threads(cores)
            rows[name][str(tokens)] = compare(work, language, args.drop, args.runs, threads)
    torch.set_num_threads(cores)
    write_json({**describe(CPU), "vla": vla.path.name, "drop": args.drop, "rows": rows}, args.json)


if __name__ == "__main__":
    try:
        main()
    except FastDriveError as error:
        sys.exit(f"prompt_head: {error}")
