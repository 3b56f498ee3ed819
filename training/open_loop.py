"""Open-loop planning on a dataset: every pruner and ratio against the recorded future, and a constant-velocity plan.

A refused answer is counted and has no error: the L2 figures are means over the answered samples of their row. What is
refused is what the node refuses, answers out of the grammar and plans that no vehicle drives.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from fastdrive_node.planning.answer import parse_answer
from fastdrive_node.planning.checks import check_plan
from fastdrive_node.planning.decode import decode, generate_batch
from fastdrive_node.planning.language import LanguageModel
from fastdrive_node.planning.prefill import prefill, prune_prompt
from fastdrive_node.planning.prompt import Prompt, build_prompt
from fastdrive_node.planning.vla import Vla
from fastdrive_node.pruning.baselines import PRUNERS, Pruner, make_pruner
from fastdrive_node.pruning.select import keep_count
from fastdrive_node.types import AnswerError, EgoHistory, InputError
from fastdrive_node.vision import TorchVision
from fastdrive_training.ego_track import FUTURE_POINTS, INTERVAL_S
from fastdrive_training.metrics import l2_at_t, l2_avg_to_t, step_errors
from fastdrive_training.nuscenes_data import Keyframe, KeyframeDataset
from fastdrive_training.token_cache import camera_order, encode_keyframes, vla_images

CONSTANT_VELOCITY = "constant-velocity"
TIMED_SAMPLES = 10  # keyframes that the times are the medians of, one at a time as in the vehicle


@dataclass(frozen=True)
class OpenLoopSettings:
    """What to compare."""

    pruners: tuple[str, ...] = PRUNERS
    drops: tuple[float, ...] = (0.25, 0.5, 0.75)
    seeds: int = 1  # of the random pruner
    pruner_file: Path | None = None  # for reconpruner
    shuffled: bool = False  # each sample sees the pictures of a sample of another scene
    limit: int | None = None  # samples, evenly spread over the data set
    batch: int = 16

    def __post_init__(self) -> None:
        unknown = [name for name in self.pruners if name not in PRUNERS]
        if unknown:
            raise InputError(f"--pruners: {unknown[0]!r} is not known; known are {', '.join(PRUNERS)}")
        outside = [drop for drop in self.drops if not 0 <= drop < 1]
        if outside:
            raise InputError(f"--drop: {outside[0]} is not in [0, 1)")
        for name in ("seeds", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name}: must be at least 1")
        if self.limit is not None and self.limit < 1:
            raise InputError("--limit: must be at least 1")


@dataclass
class _Row:
    """One line of the table while it is filled."""

    pruner: Pruner
    drop: float
    seed: int
    keep: int
    errors: list[np.ndarray] = field(default_factory=list)  # of the answered samples, [points] each
    refused: int = 0
    times: dict[str, list[float]] = field(default_factory=dict)

    def figures(self, samples: int) -> dict:
        medians = {name: float(np.median(values)) for name, values in self.times.items()}
        return {
            "pruner": self.pruner.name,
            "drop": self.drop,
            "seed": self.seed,
            "samples": samples,
            "refused": self.refused,
            **_l2(self.errors),
            "tokens": self.keep,
            **medians,
        }


def _l2(errors: list[np.ndarray]) -> dict:
    if not errors:
        empty = {"1s": None, "2s": None, "3s": None, "avg": None}
        return {"l2_avg_to_t": empty, "l2_at_t": dict(empty)}
    stacked = np.stack(errors)
    return {"l2_avg_to_t": l2_avg_to_t(stacked, INTERVAL_S), "l2_at_t": l2_at_t(stacked, INTERVAL_S)}


def evaluate(dataset: KeyframeDataset, vla: Vla, settings: OpenLoopSettings, progress: bool = True) -> dict:
    """Run every row over the samples that have a full future.

    Returns ``rows`` as in the command's JSON, ``samples`` and ``without_future`` (skipped), ``images``.

    Raises:
        InputError: no sample has a future, the answer's points are not six at 0.5 s, or shuffling within one scene.
        ModelError: a pruner that cannot serve the VLA.
    """
    _check_answer_form(vla)
    rows = _rows(vla, settings)
    samples, without_future = _samples(dataset, settings.limit)
    pictures = other_scenes(dataset, samples) if settings.shuffled else samples
    run = _Run(dataset, vla, rows)
    still = []
    for start in tqdm(range(0, len(samples), settings.batch), desc="evaluating", unit="batch", disable=not progress):
        span = slice(start, start + settings.batch)
        keyframes = [dataset[index] for index in samples[span]]
        run.batch(keyframes, [dataset[index] for index in pictures[span]], timed=start == 0)
        still += [step_errors(constant_velocity(keyframe.history), keyframe.future_m) for keyframe in keyframes]
    baseline = {
        "pruner": CONSTANT_VELOCITY,
        "drop": 0.0,
        "seed": 0,
        "samples": len(samples),
        "refused": 0,
        **_l2(still),
    }
    return {
        "rows": [*(row.figures(len(samples)) for row in rows), baseline],
        "samples": len(samples),
        "without_future": without_future,
        "images": "shuffled" if settings.shuffled else "own",
    }


def constant_velocity(history: EgoHistory, points: int = FUTURE_POINTS, dt_s: float = INTERVAL_S) -> np.ndarray:
    """Straight ahead at the current speed, float64 [points, 2] in the ego frame: the velocity of a car is along x."""
    ahead = history.now.speed_mps * dt_s * np.arange(1, points + 1)
    return np.stack([ahead, np.zeros(points)], axis=1)


def other_scenes(dataset: KeyframeDataset, samples: Sequence[int], seed: int = 0) -> list[int]:
    """For each sample one of another scene, by chance from the seed. Raises InputError: there is only one scene."""
    scenes = np.array(dataset.scenes)[list(samples)]
    if len(set(scenes)) < 2:
        raise InputError(f"{dataset.root}: --images shuffled needs samples of two scenes; choose a larger split")
    generator = np.random.default_rng(seed)
    return [int(generator.choice(np.asarray(samples)[scenes != scene])) for scene in scenes]


def _check_answer_form(vla: Vla) -> None:
    answer = vla.spec.answer
    if answer.points != FUTURE_POINTS or abs(answer.interval_s - INTERVAL_S) > 1e-6:
        raise InputError(
            f"{vla.path / 'vla.json'}: answer: {answer.points} points every {answer.interval_s} s; open-loop "
            f"evaluation compares {FUTURE_POINTS} points every {INTERVAL_S} s"
        )


def _rows(vla: Vla, settings: OpenLoopSettings) -> list[_Row]:
    rows = []
    for name in settings.pruners:
        if name == "none":
            rows.append(_Row(make_pruner("none"), 0.0, 0, vla.tokens))
            continue
        for drop in settings.drops:
            for seed in range(settings.seeds if name == "random" else 1):
                pruner = make_pruner(name, vla, settings.pruner_file, seed)
                rows.append(_Row(pruner, drop, seed, keep_count(vla.tokens, drop)))
    return rows


def _samples(dataset: KeyframeDataset, limit: int | None) -> tuple[list[int], int]:
    """Positions of the keyframes with a full future (``limit`` of them, evenly spread), and how many have none."""
    known = [index for index, keyframe in enumerate(dataset) if keyframe.future_m is not None]
    if not known:
        raise InputError(f"{dataset.root}: none of the {len(dataset)} keyframes has a future of 3 s; use longer scenes")
    count = min(limit or len(known), len(known))
    return [known[place * len(known) // count] for place in range(count)], len(dataset) - len(known)


class _Run:
    """Encodes each batch once and answers it for every row."""

    def __init__(self, dataset: KeyframeDataset, vla: Vla, rows: list[_Row]):
        self._vla, self._rows = vla, rows
        self._cameras = camera_order(vla)
        self._vision = TorchVision(vla.model.model.visual, vla.spec.image_size, len(vla.spec.cameras))
        self._language = LanguageModel(vla)

    def batch(self, keyframes: list[Keyframe], pictures: list[Keyframe], timed: bool) -> None:
        """Answer the samples ``keyframes`` with the images of ``pictures``; ``timed`` measures some of them too."""
        tokens = encode_keyframes(self._vision, [vla_images(picture, self._cameras) for picture in pictures])
        prompts = [build_prompt(self._vla, keyframe.history, keyframe.command) for keyframe in keyframes]
        for row in self._rows:
            kept = list(self._select(row, tokens))
            answers = generate_batch(self._language, self._vla, list(tokens), kept, prompts)
            for keyframe, answer in zip(keyframes, answers, strict=True):
                self._judge(row, keyframe, answer.text)
            if timed:
                for index in range(min(TIMED_SAMPLES, len(keyframes))):
                    self._time(row, tokens[index], kept[index], prompts[index])

    @torch.inference_mode()
    def _select(self, row: _Row, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
        for visual in tokens:
            scores = row.pruner.score(visual, self._vla.grid)
            yield row.pruner.select(visual, scores, row.keep)

    def _judge(self, row: _Row, keyframe: Keyframe, text: str) -> None:
        answer = self._vla.spec.answer
        try:
            waypoints = parse_answer(text, answer)
            check_plan(waypoints, answer.interval_s, keyframe.history.now.speed_mps)
        except AnswerError:
            row.refused += 1
            return
        row.errors.append(step_errors(waypoints, keyframe.future_m))

    @torch.inference_mode()
    def _time(self, row: _Row, tokens: torch.Tensor, kept: torch.Tensor, prompt: Prompt) -> None:
        """One sample by itself. ``pruner_ms`` is scores and selection; a random choice draws from no row's own seed."""
        pruner = make_pruner("random") if row.pruner.name == "random" else row.pruner
        if row.pruner.name != "none":
            with _clock(row, "pruner_ms", self._vla.device):
                pruner.select(tokens, pruner.score(tokens, self._vla.grid), row.keep)
        pruned = [prune_prompt(prompt, kept)]
        seen = [tokens.flatten(0, 1)[kept.to(tokens.device)]]
        with _clock(row, "prefill_ms", self._vla.device):
            logits, cache = prefill(self._language, pruned, seen, self._vla.spec.answer.max_new_tokens)
        with _clock(row, "decode_ms_per_token", self._vla.device) as clock:
            clock.units = len(decode(self._language, self._vla, pruned, logits, cache)[0].ids)


class _clock:
    """Appends the wall time of its block over ``units`` to a row's times; waits for the GPU where there is one."""

    def __init__(self, row: _Row, name: str, device: torch.device):
        self._row, self._name, self._device, self.units = row, name, device, 1

    def __enter__(self) -> _clock:
        self._wait()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._wait()
        elapsed_ms = (time.perf_counter() - self._start) * 1e3
        self._row.times.setdefault(self._name, []).append(elapsed_ms / self.units)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
