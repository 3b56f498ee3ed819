r"""A VLA to check the open-loop table with: the tower of another one, under an untrained language model.

models/tiny saw in its training pruned prompts whose tokens were chosen by foreground, which could favour the pruners
that choose likewise. A language model that is trained from scratch, with tokens dropped at random, favours none:

    python -m benchmarks.studies.fair_vla --out runs/fair_tower
    fastdrive train tiny_language --set tower_run=runs/fair_tower --set out=runs/fair_language --set pruned_by=random
    cp models/tiny/prune2drive.json runs/fair_language/vla    # else Prune2Drive gives all cameras equal budgets
    fastdrive evaluate data/sim_test --split test --vla runs/fair_language/vla \
        --pruner models/tiny/reconpruner.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from fastdrive_node.families import load_vla
from fastdrive_node.planning.loading import default_vla_dir
from fastdrive_training.vla.planner import TrainablePlanner
from fastdrive_training.vla.tiny_model import build_tiny_vla


def build(source: Path, out: Path, seed: int) -> Path:
    """Write ``out`` as a run of stage 1 would be: ``vla/`` and the heads, all but the tower untrained. Returns it."""
    torch.manual_seed(seed)
    vla = load_vla(build_tiny_vla(out / "vla", seed))
    vla.model.model.visual.load_state_dict(load_vla(source).model.model.visual.state_dict())
    vla.model.save_pretrained(out / "vla")
    TrainablePlanner(vla).save_heads(out)
    return out


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vla", type=Path, help="whose tower (the shipped tiny one)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--seed", type=int, default=1, help="of the untrained weights (%(default)s)")
    args = parser.parse_args(arguments)
    print(build(args.vla or default_vla_dir(), args.out, args.seed))


if __name__ == "__main__":
    main()
