"""One run of the pruner's ablation: train an arm with a seed, then its figures on held-out data.

``pruner_ablation.py`` starts this file as a process of its own for each run, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.studies.reconstruction_quality import oracle_cells, quality, random_cells
from fastdrive_training.data.adapters import open_source
from fastdrive_training.data.sampling import evenly_spaced
from fastdrive_training.engine.checkpoint import CHECKPOINT, RECIPE_FILE, write_recipe
from fastdrive_training.engine.config import parse_recipe
from fastdrive_training.engine.logging import read_log
from fastdrive_training.pruner.config import KIND, ReconRecipe
from fastdrive_training.pruner.train import ReconRun, prepare
from fastdrive_training.pruner.validate import HeldOut, read_held_out
from fastdrive_training.scoring.score import score_figures, score_tokens

RESULT = "result.json"
MASK_SEED = 0  # of the random masks on the test images


@dataclass(frozen=True)
class AblationJob:
    """One run. ``recipe`` is that of ``fastdrive train``."""

    arm: str
    seed: int
    recipe: dict[str, Any]
    test: str  # dataset of the final figures
    test_split: str
    test_keyframes: int
    pictures: int  # of these keyframes, those whose reconstructions are judged

    @property
    def folder(self) -> Path:
        return Path(self.recipe["out"])

    def result(self) -> dict[str, Any] | None:
        """The result of this very job, where it was done before."""
        try:
            stored = json.loads((self.folder / RESULT).read_text())
        except (FileNotFoundError, ValueError):
            return None
        return stored if stored.get("job") == asdict(self) else None


def run_job(job: AblationJob) -> dict[str, Any]:
    """Train, continuing from a checkpoint of the same recipe, and judge; writes and returns the result."""
    settings = parse_recipe(ReconRecipe, job.recipe)
    run = prepare(settings)
    resume = (job.folder / CHECKPOINT).exists() and _stored_recipe(job.folder) == settings
    write_recipe(job.folder, KIND, settings)
    trained = run.trainer.run(resume)
    memory = _peak_memory_mib(run)
    source = open_source(job.test, job.test_split)
    run.vla.require_one_size("the ablation")
    (test,) = read_held_out(source, run.vla, evenly_spaced(len(source), job.test_keyframes), job.pictures)
    result = {
        "arm": job.arm,
        "seed": job.seed,
        **_test_figures(run, test),
        "collapsed": trained["collapsed"],
        "positive_share_over_time": _positive_fraction(job.folder, settings.schedule.decoder_pretrain_steps),
        "images_per_s": trained["images_per_s"],
        "peak_memory_mib": memory,
        "parameters": {
            "pruner": _count(run.trainer.pruner),
            "decoder": _count(run.trainer.decoder),
        },
        "finished_unix_s": round(time.time()),
        "job": asdict(job),
    }
    (job.folder / RESULT).write_text(json.dumps(result, indent=2) + "\n")
    return result


def _test_figures(run: ReconRun, test: HeldOut) -> dict[str, Any]:
    """Figures of the scores, where there is a pruner, and of the reconstructions with the mask that was trained."""
    trainer, kind = run.trainer, run.settings.mask
    trainer.decoder.eval()
    if kind == "oracle":
        return {"reconstruction": quality(trainer.decoder, test, oracle_cells(test))}
    if kind == "random":
        return {"reconstruction": quality(trainer.decoder, test, random_cells(test, MASK_SEED))}
    scores = score_tokens(trainer.result.eval(), test.tokens, test.grid)
    mask = scores.reshape(test.coverage.shape)[: len(test.images)] > 0
    return {**score_figures(scores, test.coverage), "reconstruction": quality(trainer.decoder, test, mask)}


def _positive_fraction(folder: Path, warmup: int) -> list[list[float]]:
    """[joint step, fraction of tokens with a score above zero] of each logged step: of the training batch, and at the
    evaluations of the held-out keyframes."""
    rows = (row for row in read_log(folder) if "positive_share" in row)
    return [[row["step"] - warmup, round(row["positive_share"], 4)] for row in rows]


def _stored_recipe(folder: Path) -> ReconRecipe | None:
    try:
        return parse_recipe(ReconRecipe, yaml.safe_load((folder / RECIPE_FILE).read_text()))
    except Exception:  # another version's, or broken: then the run starts anew
        return None


def _peak_memory_mib(run: ReconRun) -> float:
    """Of this process so far: what torch allocated on a GPU, else resident memory, mapped token cache included."""
    device = run.processes.device
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


if __name__ == "__main__":
    run_job(AblationJob(**json.loads(sys.argv[1])))
