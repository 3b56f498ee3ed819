"""Run folders as the trainers write them, small and made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml

from fastdrive_node.types import CAMERAS

WARMUP, STEPS, EVERY = 100, 1000, 20
RECIPE = {
    "kind": "recon_pruner",
    "vla": "models/tiny",
    "dataset": "data/sim",
    "out": "runs/made_up",
    "schedule": {"decoder_pretrain_steps": WARMUP, "steps": STEPS},
    "health": {"grace_steps": 100, "patience_steps": 300},
}


def pruner_log(
    fraction: Callable[[float], float] = lambda done: 0.2, stop: int = WARMUP + STEPS, **fixed
) -> list[dict]:
    """Entries up to ``stop``; ``fraction`` gives the tokens above zero by the part of the joint phase that is done.

    ``fixed`` replaces values of the joint phase. Held-out figures come every 500 joint steps.
    """
    entries = []
    for step in range(EVERY - 1, stop, EVERY):
        joint = step + 1 - WARMUP
        entry = {"step": step, "phase": "warmup" if joint <= 0 else "joint", "lr": 1e-3}
        for place, name in enumerate(("total", "fore", "back", "mse_fore", "mse_back")):
            entry[name] = (0.3 + 0.05 * place) * float(np.exp(-3 * step / WARMUP)) + 0.02
        entry |= {"ssim_fore": 0.8, "ssim_back": 0.6}
        if joint > 0:
            health = {
                "positive_share": fraction(joint / STEPS),
                "score_mean": -2.0,
                "score_std": 3.0,
                "gradient": 1e-3,
            }
            entry |= health | {"foreground_share": 0.19} | fixed
        entry["images_per_s"] = 37.5
        if joint > 0 and joint % 500 == 0:
            recall = {"0.75": 0.99, "0.5": 0.97, "0.25": 0.9}
            entry |= {"auroc": 0.97, "average_precision": 0.93, "recall": recall, "keyframes": 100} | fixed
        entries.append(entry)
    return entries


def language_log(steps: int = 1000) -> list[dict]:
    """A log of the VLA's second stage."""
    return [
        {"step": step, "text": 2.0 * float(np.exp(-step / 300)) + 0.1, "waypoints": 1 / step}
        for step in range(50, steps + 1, 50)
    ]


def sample_arrays(cameras=CAMERAS, names=("token-a", "token-b"), size=(28, 56), grid=(2, 4)) -> dict[str, np.ndarray]:
    """The arrays of ``samples.npz``: the left half of every image is foreground, and scored above zero."""
    shape = (len(names), len(cameras), *size)
    images = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    foreground = np.zeros(shape, bool)
    foreground[..., : size[1] // 2] = True
    scores = np.full((*shape[:2], *grid), -2.0, np.float32)
    scores[..., : grid[1] // 2] = 3.0
    return {
        "step": np.array(WARMUP + STEPS - 1),
        "names": np.array(names),
        "cameras": np.array(cameras),
        "images": images,
        "foreground": foreground,
        "fore": images * foreground[..., None],
        "back": np.full_like(images, 90),
        "scores": scores,
    }


def curve() -> dict:
    recall = np.linspace(1, 0, 50)
    return {
        "step": WARMUP + STEPS - 1,
        "auroc": 0.97,
        "average_precision": 0.93,
        "precision": (1 - 0.8 * recall**4).tolist(),
        "recall": recall.tolist(),
        "positives": 190,
        "tokens": 1000,
    }


def write_run(folder: Path, log: list[dict], recipe: dict | None = None, **parts) -> Path:
    """A run's folder with a log and what is given: ``samples`` (arrays), ``curve``, ``figures``."""
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    if recipe is not None:
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    if "samples" in parts:
        np.savez(folder / "samples.npz", **parts["samples"])
    for name in ("curve", "figures"):
        if name in parts:
            (folder / f"{name}.json").write_text(json.dumps(parts[name]))
    return folder


def full_run(folder: Path, **changes) -> Path:
    """A finished, healthy run with every file."""
    log = pruner_log()
    parts = {"recipe": RECIPE, "samples": sample_arrays(), "curve": curve(), "figures": {**log[-1], "collapsed": None}}
    return write_run(folder, log, **{**parts, **changes})
