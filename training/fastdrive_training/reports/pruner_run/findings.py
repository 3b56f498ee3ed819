"""Health checks of a training run by its log, as sentences; a collapse must be obvious."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np

from fastdrive_training.pruner.collapse import HealthLimits
from fastdrive_training.reports.pruner_run.run_folder import FIGURES, RunFolder, number

RUNAWAY_SCORE = 1e4  # scores beyond it no longer move with their gradient
GOOD_AUROC = 0.9
COLLAPSED = "Collapsed"
TAIL = 0.1  # fraction of the logged steps that "the end" means
_STRICTER = {
    **dict.fromkeys(("min_positive_share", "min_gradient", "min_auroc"), max),
    **dict.fromkeys(("max_positive_share", "grace_steps", "patience_steps"), min),
}
SWING = 0.8  # of the positive fraction, between two logged steps after the grace


class Level(str, Enum):
    """Severity of a finding."""

    GOOD = "good"
    WATCH = "watch"
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    level: Level
    text: str


@dataclass(frozen=True)
class Verdict:
    """The judgement of a run, and its findings."""

    level: Level
    text: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Column:
    """A key of the log where it is a finite number."""

    steps: np.ndarray  # int64 [n]
    values: np.ndarray  # float64 [n]

    @property
    def end(self) -> float:
        """Median of the last tenth."""
        return float(np.median(self.values[-max(1, round(TAIL * len(self.values))) :]))

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, chosen: slice | np.ndarray) -> Column:
        return Column(self.steps[chosen], self.values[chosen])


def column(log: tuple[dict[str, Any], ...], key: str, phase: str | None = None) -> Column:
    """``key`` over the steps of the log, or of one phase of it."""
    pairs = [
        (entry["step"], value)
        for entry in log
        if (phase is None or entry.get("phase") == phase) and (value := number(entry.get(key))) is not None
    ]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return Column(np.array(steps, np.int64), np.array(values, np.float64))


def judge(run: RunFolder) -> Verdict:
    """The verdict on a run; a pruner's by its health figures, any other by its losses alone."""
    progress = _progress(run)
    if not run.trains_pruner:
        return Verdict(progress.level, "Losses only", (progress, *_losses_fall(run)))
    if run.masks != "pruner":
        text = f"No pruner is trained: the masks are {run.masks}, to compare reconstructions with."
        findings = (progress, Finding(Level.GOOD, text), *_warmup(run))
        return Verdict(_worst(findings), "A comparison, without a pruner", findings)
    limits, fraction = strict_limits(run), column(run.log, "positive_share", "joint")
    judged = fraction[fraction.steps >= first_joint_step(run) + limits.grace_steps]
    findings = [progress, *_ablation(run), *_warmup(run)]
    if not len(judged):
        text = f"No step past the first {limits.grace_steps:,} of the joint phase is logged: too early to judge scores."
        findings += [Finding(Level.WATCH, text), *_recorded(run)]
        return Verdict(_worst(findings), "Not judged", tuple(findings))
    collapse = _collapse(judged, limits)
    findings += [collapse, *_recorded(run), *_fractions(run, judged), *_scale(run), *_gradient(run, limits)]
    findings += _ranking(run, limits)
    return _verdict(findings)


def _verdict(findings: list[Finding]) -> Verdict:
    worst = _worst(findings)
    titles = {
        Level.GOOD: "Healthy",
        Level.WATCH: "Not collapsed; see the findings",
        Level.BAD: "No result: see the findings",
    }
    collapsed = any(finding.level is Level.BAD and finding.text.startswith(COLLAPSED) for finding in findings)
    return Verdict(worst, "Collapsed: no result" if collapsed else titles[worst], tuple(findings))


def strict_limits(run: RunFolder) -> HealthLimits:
    """The recipe's limits where they are stricter than the defaults: a run may switch its own check off, not ours."""
    own, limits = run.group("health"), HealthLimits()
    for key, stricter in _STRICTER.items():
        default, value = getattr(limits, key), number(own.get(key))
        if value is not None:
            limits = replace(limits, **{key: type(default)(stricter(value, default))})
    return limits


def first_joint_step(run: RunFolder) -> int:
    """The step at which the joint phase began: the recipe's, else the first that is logged."""
    warmup = number(run.group("schedule").get("decoder_pretrain_steps"))
    logged = min((entry["step"] for entry in run.log if entry.get("phase") == "joint"), default=0)
    return logged if warmup is None else min(max(int(warmup), 0), logged)


def planned_steps(run: RunFolder) -> int | None:
    """The steps of the whole run by its recipe; None where it does not say."""
    source = run.group("schedule") if run.trains_pruner else run.recipe
    steps, warmup = number(source.get("steps")), number(source.get("decoder_pretrain_steps", 0))
    if steps is None or warmup is None or not 0 < steps + warmup < 1e12:
        return None
    return int(steps + warmup)


def _progress(run: RunFolder) -> Finding:
    done, planned = run.log[-1]["step"] + 1, planned_steps(run)  # steps count from 0
    if planned is not None and done < planned:
        return Finding(Level.WATCH, f"The run is not finished: {done:,} of {planned:,} steps are logged.")
    if planned is None and run.figures is None:
        text = f"{done:,} steps are logged; without recipe and {FIGURES} it is not known if that is all."
        return Finding(Level.WATCH if run.trains_pruner else Level.GOOD, text)
    return Finding(Level.GOOD, f"The run is finished: {done:,} steps are logged.")


def _ablation(run: RunFolder) -> list[Finding]:
    if run.group("loss").get("adversary") is not False:
        return []
    text = "There is no adversary: the foreground branch alone is trained, for which scoring every token high is best."
    return [Finding(Level.WATCH, text)]


def _recorded(run: RunFolder) -> list[Finding]:
    """What the run's own check has written into the figures."""
    collapsed = (run.figures or {}).get("collapsed")
    if not isinstance(collapsed, dict):
        return []
    step, reason = collapsed.get("step"), " ".join(str(collapsed.get("reason")).split())[:300]
    return [Finding(Level.BAD, f"{COLLAPSED} by the run's own check at joint step {step}: {reason}.")]


def _warmup(run: RunFolder) -> list[Finding]:
    total = column(run.log, "total", "warmup")
    if len(total) < 3:
        return []
    start, end = float(total.values[0]), total.end
    text = f"In the warm-up the decoder's loss went from {start:.3g} to {end:.3g}"
    if end < 0.8 * start:
        return [Finding(Level.GOOD, f"{text}.")]
    return [Finding(Level.WATCH, f"{text}: a decoder that is not ready gives the scores a wrong gradient.")]


def _collapse(fraction: Column, limits: HealthLimits) -> Finding:
    """Whether all scores have one sign, for the patience or for the last quarter of the joint phase."""
    outside = (fraction.values < limits.min_positive_share) | (fraction.values > limits.max_positive_share)
    last = float(fraction.values[-1])
    if not outside[-1]:
        bounds = f"{limits.min_positive_share:.1%} and {limits.max_positive_share:.1%}"
        return Finding(
            Level.GOOD, f"Not collapsed: {last:.1%} of the tokens are above zero at the end, between {bounds}."
        )
    inside_at = np.flatnonzero(~outside)
    first = int(inside_at[-1]) + 1 if len(inside_at) else 0
    lasted = int(fraction.steps[-1] - fraction.steps[first])
    interval = int(np.diff(fraction.steps).max(initial=1))  # the log does not see the steps between
    enough = min(limits.patience_steps, (fraction.steps[-1] - fraction.steps[0]) // 4) - 2 * interval
    side = "background" if last < 0.5 else "foreground"
    seen = f"{last:.2%} of the tokens are above zero: all is {side}, since step {fraction.steps[first]:,}"
    if lasted >= enough:
        return Finding(Level.BAD, f"{COLLAPSED}: {seen}. Its scores and its decoder are no result.")
    return Finding(Level.WATCH, f"On the edge of a collapse: {seen}.")


def _fractions(run: RunFolder, fraction: Column) -> list[Finding]:
    findings = []
    truth = column(run.log, "foreground_share", "joint")
    if len(truth):
        ratio = fraction.end / max(truth.end, 1e-9)
        level = Level.GOOD if 1 / 3 <= ratio <= 3 else Level.WATCH
        text = f"{fraction.end:.1%} of the tokens are above zero where {truth.end:.1%} of the pixels are foreground."
        findings.append(Finding(level, text))
    jump = float(np.abs(np.diff(fraction.values)).max(initial=0))
    if jump > SWING:
        text = f"The fraction above zero swung by {jump:.0%} between two logged steps: foreground and background swap."
        findings.append(Finding(Level.WATCH, text))
    return findings


def _scale(run: RunFolder) -> list[Finding]:
    mean, std = column(run.log, "score_mean", "joint"), column(run.log, "score_std", "joint")
    if not len(mean) or not len(std):
        return []
    text = f"The scores are {mean.end:.3g} ± {std.end:.3g} at the end"
    if max(abs(mean.end), std.end) > RUNAWAY_SCORE:
        return [Finding(Level.BAD, f"{text}: they ran away, which the binary mask does not show.")]
    if std.end < 1e-3:
        return [Finding(Level.WATCH, f"{text}: they hardly differ between tokens.")]
    return [Finding(Level.GOOD, f"{text}.")]


def _gradient(run: RunFolder, limits: HealthLimits) -> list[Finding]:
    gradient = column(run.log, "gradient", "joint")
    if not len(gradient):
        return []
    text = f"The norm of the pruner's gradient is {gradient.end:.2g} at the end"
    if gradient.end > limits.min_gradient:
        return [Finding(Level.GOOD, f"{text}.")]
    return [Finding(Level.BAD, f"{text}: the scores do not learn any more.")]


def _ranking(run: RunFolder, limits: HealthLimits) -> list[Finding]:
    auroc = column(run.log, "auroc")
    if not len(auroc):
        return [Finding(Level.WATCH, "No held-out figures are logged yet.")]
    last, best = float(auroc.values[-1]), int(auroc.values.argmax())
    text = f"Held-out AUROC of the scores against mask coverage: {last:.3f}"
    if last < limits.min_auroc:
        return [Finding(Level.BAD, f"{text}, near random (0.5).")]
    findings = [Finding(Level.GOOD if last >= GOOD_AUROC else Level.WATCH, f"{text}.")]
    if auroc.values[best] - last > 0.02:
        text = f"The best AUROC, {auroc.values[best]:.3f}, was at step {auroc.steps[best]:,}; it fell since."
        findings.append(Finding(Level.WATCH, text))
    return findings


def _losses_fall(run: RunFolder) -> list[Finding]:
    findings = []
    for key in loss_keys(run):
        loss = column(run.log, key)
        if len(loss) >= 10:
            start, end = float(np.median(loss.values[: max(1, len(loss) // 20)])), loss.end
            level = Level.GOOD if end < start else Level.WATCH
            findings.append(Finding(level, f"{key[:60]} went from {start:.3g} to {end:.3g}."))
    return findings


def loss_keys(run: RunFolder) -> list[str]:
    """Keys of the log that are numbers, in the order in which they come up; at most 24."""
    keys = {key: None for entry in run.log for key, value in entry.items() if number(value) is not None}
    return [key for key in keys if key != "step"][:24]


def _worst(findings: Sequence[Finding]) -> Level:
    order = list(Level)
    return max((finding.level for finding in findings), key=order.index)
