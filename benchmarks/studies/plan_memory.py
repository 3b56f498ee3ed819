"""Memory and time of ``objective: plan`` by size, on paper, counted without allocating anything.

    python -m benchmarks.studies.plan_memory --json benchmarks/results/plan_memory.json

A step of the training's own code runs on torch's meta device. Counted: parameters; the most bytes that autograd keeps
at one time, once with the attention matrices, which fused kernels do not keep, and once without; FLOPs. Assumed, and
printed: the VLA in bfloat16; weights, gradients and AdamW moments of the pruner in float32; the FLOP/s of a GPU.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.perf.random_models import SIZES as MODEL_SIZES
from benchmarks.perf.random_models import TEXT_BEFORE, TEXT_BEHIND, ModelSize, build_model
from benchmarks.studies.pruner_memory import CELL_PX, FAMILY, GIB, GPUS
from benchmarks.studies.summary import summarize, to_text
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_training.distil.plan import plan_divergence
from fastdrive_training.distil.sensitivity import TeacherPrompt, answer_logits
from fastdrive_training.distil.trainer import Asked

_SEVEN_B = {
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
SIZES = {
    "toy": MODEL_SIZES["tiny"],
    "3B": MODEL_SIZES["3b"],
    "7B": replace(
        MODEL_SIZES["3b"],
        text={**MODEL_SIZES["3b"].text, **_SEVEN_B},
        vision={**MODEL_SIZES["3b"].vision, "out_hidden_size": _SEVEN_B["hidden_size"]},
    ),
}
OWN_HEAD = ("7B",)  # the matrix in front of the answer is not that of the embeddings
KEYFRAMES, STEPS = 3000, 3000  # of the recipes
META = torch.device("meta")


@dataclass
class Kept:
    """Bytes that autograd keeps: now, and the most at one time."""

    now: int = 0
    most: int = 0

    def add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


class KeptTensors:
    """Hooks for ``saved_tensors_hooks`` that count what is kept at one time, each storage once.

    Args:
        weights: tensors that are there anyway.
        length: of the prompt; tensors of its square for each head are attention matrices.
    """

    def __init__(self, weights: Any, length: int):
        self.all, self.fused = Kept(), Kept()
        self._weights = {tensor.untyped_storage()._cdata for tensor in weights}
        self._length = length
        self._holders: dict[int, int] = {}

    def pack(self, tensor: torch.Tensor) -> Any:
        place = tensor.untyped_storage()._cdata
        return tensor if place in self._weights else _Holder(self, tensor, place)

    def unpack(self, kept: Any) -> torch.Tensor:
        return kept.tensor if isinstance(kept, _Holder) else kept

    def change(self, tensor: torch.Tensor, place: int, holders: int) -> None:
        """One holder more, or less, of a storage."""
        before = self._holders.get(place, 0)
        self._holders[place] = before + holders
        if (before > 0) == (before + holders > 0):
            return
        size = holders * tensor.untyped_storage().nbytes()
        self.all.add(size)
        if tensor.shape[-2:] != (self._length, self._length) or tensor.shape[-3] == 1:
            self.fused.add(size)


class _Holder:
    """A tensor that autograd keeps as long as this lives."""

    def __init__(self, owner: KeptTensors, tensor: torch.Tensor, place: int):
        self.owner, self.tensor, self.place = owner, tensor, place
        owner.change(tensor, place, 1)

    def __del__(self) -> None:
        self.owner.change(self.tensor, self.place, -1)


def question(size: ModelSize, device: torch.device) -> TeacherPrompt:
    """A prompt of the six cameras' tokens with text around them and an answer behind."""
    scene = size.scenes[1]
    each = (scene.height // CELL_PX) * (scene.width // CELL_PX) + 2  # with the marks of an image
    length = TEXT_BEFORE + scene.images * each + TEXT_BEHIND + size.answer_tokens - 1
    visual = torch.cat([TEXT_BEFORE + each * image + 1 + torch.arange(each - 2) for image in range(scene.images)])
    ids = torch.zeros(length, dtype=torch.int64)
    positions = torch.arange(length).expand(3, -1)
    return TeacherPrompt(ids.to(device), positions.to(device), visual.to(device), size.answer_tokens)


@dataclass(frozen=True)
class CountedStep:
    """A VLA and a pruner with random weights, and keyframes; on ``meta`` nothing is computed."""

    vla: Any
    pruner: ReconPruner
    grid: tuple[int, int]
    asked: Asked
    tokens: torch.Tensor  # [B, C, n, D]

    @classmethod
    def of(cls, size: ModelSize, batch: int, device: torch.device = META) -> CountedStep:
        model = build_model(size, device, torch.bfloat16, 0)
        vla = SimpleNamespace(model=model, device=device, dtype=torch.bfloat16)
        scene, width, prompt = size.scenes[1], size.text["hidden_size"], question(size, device)
        grid = (scene.height // CELL_PX, scene.width // CELL_PX)
        with device:
            pruner = ReconPruner(FAMILY, model.config.text_config)
            tokens = torch.zeros(batch, scene.images, grid[0] * grid[1], width)
            asked = Asked(prompt, torch.zeros(prompt.answer, width))
        return cls(vla, pruner, grid, asked, tokens)

    def scores(self) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.pruner(self.tokens.flatten(0, 1), self.grid).float().view(len(self.tokens), -1)

    def loss(self, scores: torch.Tensor, at_once: int) -> torch.Tensor:
        """Of the first keyframes, as many as there are scores."""
        tokens, count = self.tokens.flatten(1, 2)[: len(scores)], len(scores)
        noise = torch.zeros_like(scores)
        return plan_divergence(self.vla, tokens, [self.asked] * count, scores, [0.5], noise, at_once).mean()

    def kept(self) -> KeptTensors:
        weights = [*self.vla.model.parameters(), *self.pruner.parameters()]
        return KeptTensors(weights, len(self.asked.prompt.ids))


def count_step(size: ModelSize, batch: int, at_once: int) -> dict[str, Any]:
    """What a step on ``batch`` keyframes keeps and computes: the pruner, and its passes, of which one is counted."""
    step = CountedStep.of(size, batch)
    kept = step.kept()
    with FlopCounterMode(display=False) as whole, torch.no_grad():
        answer_logits(step.vla, step.tokens.flatten(1, 2)[:1], [step.asked.prompt])
    hooks = torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack)
    with FlopCounterMode(display=False) as pruner, hooks:
        scores = step.scores()
        with FlopCounterMode(display=False) as one:
            step.loss(scores[:at_once].detach().requires_grad_(), at_once)
        scores.sum().backward()
    flops = pruner.get_total_flops() + (batch / at_once - 1) * one.get_total_flops()
    return {
        "batch": batch,
        "teacher_batch": at_once,
        "prompt_tokens": len(step.asked.prompt.ids),
        "vla_parameters": sum(parameter.numel() for parameter in step.vla.model.parameters()),
        "pruner_parameters": sum(parameter.numel() for parameter in step.pruner.parameters()),
        "kept_gib": kept.fused.most / GIB,
        "kept_with_matrices_gib": kept.all.most / GIB,
        "step_tflop": flops / 1e12,
        "whole_tflop": whole.get_total_flops() / 1e12,  # of a keyframe, once
    }


def estimate(name: str, counted: dict[str, Any], efficiency: float) -> dict[str, Any]:
    """Memory of a step, and GPU hours of a recipe."""
    text = SIZES[name].text
    head = text["hidden_size"] * text["vocab_size"] if name in OWN_HEAD else 0
    vla = 2 * (counted["vla_parameters"] + head) / GIB
    pruner = (16 + 2) * counted["pruner_parameters"] / GIB  # weights, gradients, two moments; autocast's copy
    total = STEPS * counted["step_tflop"] + KEYFRAMES * counted["whole_tflop"]
    return {
        "vla_gib": vla,
        "pruner_gib": pruner,
        "memory_gib": vla + pruner + counted["kept_gib"],
        "memory_with_matrices_gib": vla + pruner + counted["kept_with_matrices_gib"],
        "gpu_hours": {gpu: total / (peak * efficiency) / 3600 for gpu, peak in GPUS.items()},
    }


def table(report: dict[str, Any]) -> str:
    """In Markdown."""
    head = ["size", "tokens of a prompt", "batch / teacher_batch", "VLA + pruner (GiB)", "kept by autograd (GiB)"]
    head += ["sum (GiB)", "sum with attention matrices (GiB)", "TFLOP a step", f"{STEPS} steps (GPU h)"]
    lines = [head, ["---"] * len(head)]
    for row in report["rows"]:
        hours = ", ".join(f"{gpu} {value:.1f}" for gpu, value in row["gpu_hours"].items())
        lines.append(
            [
                row["size"],
                str(row["prompt_tokens"]),
                f"{row['batch']} / {row['teacher_batch']}",
                f"{row['vla_gib']:.1f} + {row['pruner_gib']:.1f}",
                f"{row['kept_gib']:.1f}",
                f"{row['memory_gib']:.0f}",
                f"{row['memory_with_matrices_gib']:.0f}",
                f"{row['step_tflop']:.0f}",
                hours,
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["3B", "7B"], help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="keyframes of a step (%(default)s)")
    parser.add_argument("--teacher-batch", type=int, nargs="+", default=[1, 16], help="of a pass (%(default)s)")
    parser.add_argument("--efficiency", type=float, default=0.4, help="fraction of a GPU's peak FLOP/s (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="figures; the table goes beside them as .md")
    args = parser.parse_args(argv)
    rows = []
    for name in args.sizes:
        for at_once in args.teacher_batch:
            counted = count_step(SIZES[name], args.batch, at_once)
            rows.append({"size": name, **counted, **estimate(name, counted, args.efficiency)})
    report = {
        "assumptions": {
            "peak_tflops": GPUS,
            "efficiency": args.efficiency,
            "keyframes": KEYFRAMES,
            "steps": STEPS,
            "state": "VLA in bfloat16 with its tower; pruner: float32 weights, gradients, AdamW moments, bfloat16 copy",
            "left_out": "what a kernel needs while it runs, the allocator's gaps, evaluation, reading from disk",
        },
        "rows": rows,
    }
    if args.json:
        args.json.write_text(to_text(summarize(report)) + "\n")
        args.json.with_suffix(".md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main()
