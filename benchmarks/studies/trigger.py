r"""Can it be told before the prefill that pruning will change the plan? Signals, and what a trigger by them would save.

A trigger keeps all tokens for the samples whose signal is largest. Each signal is known when the tokens are scored.

    fastdrive evaluate data/sim_val --split val --pruners none,reconpruner --no-timing --out runs/tiny
    python -m benchmarks.studies.trigger runs/tiny --dataset data/sim_val --split val --json trigger.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdrive_node.families import load_vla
from fastdrive_node.families.spec import default_vla_dir
from fastdrive_node.files import SHIPPED_PRUNER
from fastdrive_node.pruning.checkpoint import load_pruner
from fastdrive_node.pruning.pruner import PruningContext
from fastdrive_node.pruning.score_pruner import ScorePruner
from fastdrive_node.types import Command, EgoHistory
from fastdrive_training.data.adapters import open_source
from fastdrive_training.data.token_cache import FeatureStore
from fastdrive_training.evaluation.intervals import paired_difference, sample_figures
from fastdrive_training.evaluation.seen_images import SeenStore
from fastdrive_training.reports.open_loop.run_folder import SUBJECT, read_run

RATES = (0.1, 0.2, 0.3)  # of the samples that keep all tokens
AHEAD_S = 3.0
RIDGE = 10.0  # of standardized signals
PREDICTED, CHANGE = "all signals together", "change itself"


@dataclass(frozen=True)
class TriggerFigures:
    """A trigger by one signal at one rate. L2 in m; of the loss, what is more than a random trigger saves counts."""

    signal: str
    drop: float
    rate: float
    correlation: float  # Spearman's, of the signal and the change of the plan
    l2: float  # with the trigger
    l2_random: float  # with a random one of the same rate
    gain: float  # of the two, and its 95 % interval
    interval_95: tuple[float, float]
    l2_same_tokens: float | None  # without one, at the ratio that keeps as many tokens on average; None outside


def score_signals(scores: np.ndarray, kept: np.ndarray) -> dict[str, float]:
    """What the scores say of the tokens that go.

    Args:
        scores: float [N].
        kept: int [K].
    """
    weights = np.exp(scores - scores.max())
    gone = np.ones(len(scores), bool)
    gone[kept] = False
    if not gone.any():
        gone[np.argmin(scores)] = True
    limit = scores[~gone].min()
    parts = weights / weights.sum()
    return {
        "dropped part of exp(score)": float(parts[gone].sum()),
        "dropped log sum of exp(score)": float(np.log(weights[gone].sum()) + scores.max()),
        "entropy of the scores": float(-(parts * np.log(parts + 1e-12)).sum()),
        "tokens near the limit": float((np.abs(scores - limit) < 0.25 * (scores.std() + 1e-9)).mean()),
        "best dropped score": float(scores[gone].max()),
    }


def motion_signals(history: EgoHistory, command: Command) -> dict[str, float]:
    """What the vehicle's motion says of how much the plan has to decide."""
    now, before = history.now, history.states[-1]
    return {
        "command not straight": float(command not in (Command.STRAIGHT, Command.NONE)),
        "speed": now.speed_mps,
        "change of speed": abs(now.speed_mps - before.speed_mps),
        "acceleration": abs(now.accel_mps2),
        "yaw rate": abs(now.yaw_rate_radps),
        "distance of two drafts": _drafts_apart(now.speed_mps, now.accel_mps2, now.yaw_rate_radps),
    }


def _drafts_apart(speed: float, accel: float, yaw_rate: float) -> float:
    """Mean distance in m of constant velocity and constant acceleration and turn, up to 3 s."""
    times = np.linspace(0.5, AHEAD_S, 6)
    ways = np.maximum.accumulate(np.maximum(speed * times + 0.5 * accel * times**2, 0))  # braking ends at 0
    angles = 0.5 * yaw_rate * times  # of the chord
    path = np.stack([ways * np.cos(angles), ways * np.sin(angles)], axis=1)
    return float(np.linalg.norm(path - np.stack([speed * times, 0 * times], axis=1), axis=1).mean())


def predicted(signals: np.ndarray, change: np.ndarray, scenes: Sequence[str]) -> np.ndarray:
    """The change of each sample's plan, by ridge regression on the signals of the other scenes.

    Args:
        signals: float64 [samples, signals].
        change: float64 [samples]; NaN where it is not known.
    """
    names, found = np.asarray(scenes), np.zeros(len(change))
    for scene in sorted(set(scenes)):
        own = names == scene
        known = ~own & ~np.isnan(change)
        mean, deviation = signals[known].mean(axis=0), signals[known].std(axis=0) + 1e-9
        fit, unseen = (signals[known] - mean) / deviation, (signals[own] - mean) / deviation
        target = np.log1p(change[known])
        weights = np.linalg.solve(fit.T @ fit + RIDGE * np.eye(fit.shape[1]), fit.T @ (target - target.mean()))
        found[own] = unseen @ weights
    return found


def triggered(signal: np.ndarray, rate: float) -> np.ndarray:
    """Which samples keep all tokens, float64 [samples]: those with the largest signal; equal ones have a part each."""
    count = rate * len(signal)
    limit = np.sort(signal)[::-1][min(len(signal) - 1, max(0, int(np.ceil(count)) - 1))]
    above, at = signal > limit, signal == limit
    return above + at * (count - above.sum()) / at.sum()


def judge(
    signal: np.ndarray, change: np.ndarray, l2: Mapping[str, np.ndarray], scenes: Sequence[str], rate: float
) -> dict[str, Any]:
    """The figures of a trigger, over the samples that all tokens and the kept ones both answered.

    Args:
        l2: of ``whole`` and ``pruned``, float64 [samples]; NaN where refused.
    """
    known = ~np.isnan(change)
    loss = (l2["pruned"] - l2["whole"])[known]
    chosen = triggered(signal[known], rate)
    saved = paired_difference(chosen * loss, rate * loss, np.asarray(scenes)[known].tolist())
    assert saved is not None
    pruned = float(l2["pruned"][known].mean())
    return {
        "correlation": _spearman(signal[known], change[known]),
        "l2": pruned - float((chosen * loss).mean()),
        "l2_random": pruned - rate * float(loss.mean()),
        "gain": saved.difference,
        "interval_95": saved.interval,
    }


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    first, second = _ranks(one), _ranks(other)
    return float(np.corrcoef(first, second)[0, 1]) if first.std() > 0 and second.std() > 0 else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks; equal values have their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def l2_at(kept: float, means: Mapping[float, float]) -> float | None:
    """L2 without a trigger where a fraction of the tokens is kept, between ratios that were run; None outside.

    ``means`` is the L2 by the kept fraction.
    """
    fractions = sorted(means)
    if not fractions[0] <= kept <= fractions[-1]:
        return None
    return float(np.interp(kept, fractions, [means[fraction] for fraction in fractions]))


@torch.inference_mode()
def signals_of(
    run: Path, dataset: str, split: str | None, vla_dir: Path, file: Path, cache: Path | None
) -> dict[float, list[dict[str, float]]]:
    """The signals of each sample of a run, by ratio."""
    found = read_run(run)
    vla = load_vla(vla_dir)
    source = open_source(dataset, split, cameras=tuple(vla.spec.cameras), all_splits=True)
    seen = SeenStore(source, vla, FeatureStore(source, vla, cache or run / "features", False))
    pruner = ScorePruner(load_pruner(file, vla))
    kept = {drop: next(of for key, of in found.kept(drop).items() if key.pruner == SUBJECT) for drop in found.drops}
    places = {name: place for place, name in enumerate(source.names)}
    signals: dict[float, list[dict[str, float]]] = {drop: [] for drop in found.drops}
    for sample, name in enumerate(found.samples):
        shown = seen.load([places[name]])[0]
        assert not isinstance(shown, str)
        scores = pruner.score(PruningContext(shown.visual)).float().flatten().numpy()
        item = source[places[name]]
        motion = motion_signals(item.known_history, item.command)
        for drop, of in kept.items():
            chosen = of[sample]
            assert chosen is not None
            signals[drop].append({**score_signals(scores, chosen), **motion})
    return signals


def study(run: Path, signals: Mapping[float, list[dict[str, float]]]) -> list[TriggerFigures]:
    """Every signal at every ratio and rate; ``change itself`` is what a perfect prediction would do."""
    found = read_run(run)
    rows = {key.drop: key for key in found.tables if key.pruner == SUBJECT}
    none = next(key for key in found.tables if key.pruner == "none")
    whole, figures = sample_figures(found.tables[none], "l2_avg_to_t"), []
    pruned = {drop: sample_figures(found.tables[key], "l2_avg_to_t") for drop, key in rows.items()}
    both = ~np.isnan(np.stack([whole, *pruned.values()])).any(axis=0)  # all ratios on the same samples
    means = {1.0: float(whole[both].mean())} | {1 - drop: float(of[both].mean()) for drop, of in pruned.items()}
    for drop, key in rows.items():
        change = np.linalg.norm(found.plans(key) - found.plans(none), axis=-1).mean(axis=1)
        change[~both] = np.nan
        names = list(signals[drop][0])
        values = np.array([[one[name] for name in names] for one in signals[drop]])
        columns = dict(zip(names, values.T, strict=True))
        columns[PREDICTED] = predicted(values, change, found.scenes)
        columns[CHANGE] = np.nan_to_num(change)
        for name, signal in columns.items():
            for rate in RATES:
                judged = judge(signal, change, {"whole": whole, "pruned": pruned[drop]}, found.scenes, rate)
                same = l2_at(rate + (1 - rate) * (1 - drop), means)
                figures.append(TriggerFigures(name, drop, rate, **judged, l2_same_tokens=same))
    return figures


def table_of(figures: Sequence[TriggerFigures], rate: float) -> str:
    """Markdown: of each signal and ratio the correlation, and what the trigger gains over a random one."""
    drops = sorted({one.drop for one in figures})
    lines = ["| signal | " + " | ".join(f"{100 * drop:g} %" for drop in drops) + " |", "|---" * (1 + len(drops)) + "|"]
    for name in dict.fromkeys(one.signal for one in figures):
        cells = []
        for one in sorted((one for one in figures if (one.signal, one.rate) == (name, rate)), key=lambda one: one.drop):
            low, high = one.interval_95
            star = "*" if low > 0 or high < 0 else ""
            cells.append(f"{one.correlation:+.2f}; {1000 * one.gain:+.1f}{star}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of `fastdrive evaluate --out` with none and reconpruner")
    parser.add_argument("--dataset", required=True, help="of the run")
    parser.add_argument("--split", help="of the dataset")
    parser.add_argument("--vla", type=Path, help="of the run (the shipped one)")
    parser.add_argument("--pruner", type=Path, help="file of the run (that of the VLA directory)")
    parser.add_argument("--cache", type=Path, help="of the run, where it had one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    args = parser.parse_args(arguments)
    vla = args.vla or default_vla_dir()
    signals = signals_of(args.run, args.dataset, args.split, vla, args.pruner or vla / SHIPPED_PRUNER, args.cache)
    figures = study(args.run, signals)
    for rate in RATES:
        print(f"\nrate {100 * rate:g} %: correlation with the change of the plan; gain over a random trigger in mm\n")
        print(table_of(figures, rate))
    if args.json:
        args.json.write_text(json.dumps({"rows": [asdict(one) for one in figures]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
