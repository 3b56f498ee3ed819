"""What the temporal terms of the scores do: newly visible pedestrians kept, and how much the choice flickers.

The keyframes of each scene go through the same code as in the vehicle, one after the other, with the temporal terms and
without; the state between them is reset by the same rules.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from fastdrive_node.errors import InputError
from fastdrive_node.families import Vla
from fastdrive_node.pruning.calibration import Calibration
from fastdrive_node.pruning.catalog import ScoreOptions
from fastdrive_node.pruning.pruner import PruningContext
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.pruning.score_pruner import refine
from fastdrive_node.pruning.select import keep_count, select_top
from fastdrive_node.pruning.temporal import FrameContext
from fastdrive_training.data.adapters.base import ImageSource
from fastdrive_training.data.nuscenes.step_outs import Sighting, sightings
from fastdrive_training.data.token_cache import encode_items, require_cameras
from fastdrive_training.scoring.token_metrics import POSITIVE_COVERAGE

KEEP_RATIOS = (0.75, 0.5, 0.375, 0.25, 0.1875, 0.125)
FIRST_S = 1.0  # after a pedestrian came into sight
TOKEN_FRACTION = 0.25  # of its visible pixels: a token of as many shows it


@dataclass(frozen=True)
class Stream:
    """The keyframes of a dataset in order, scored with the temporal terms and without."""

    scenes: list[str]
    stamps_ns: list[int]
    plain: np.ndarray  # float32 [keyframes, cameras * N]
    temporal: np.ndarray  # the same shape
    notes: Counter[str]  # what became of the state, counted
    foreground: np.ndarray | None  # bool, the same shape
    seen: dict[int, list[Sighting]]  # by keyframe


def temporal_figures(
    source: ImageSource, vla: Vla, pruner: ReconPruner, options: ScoreOptions, calibration: Calibration | None = None
) -> dict:
    """The figures of ``fastdrive score --temporal``.

    Args:
        options: with temporal settings.
        calibration: for ``options.calibrated``.

    Returns:
        ``settings``; ``interval_s``, the median between keyframes; ``state``, how often it was used or why not;
        ``pedestrians`` that stepped out and ``sightings``, the keyframes that show one within ``first_s`` of that.
        ``keep``: by keep ratio ``better`` and ``worse``, pedestrians of whom the temporal terms keep more or fewer
        pixels; for ``plain`` and ``temporal`` each ``pedestrian_tokens`` and ``pedestrian_pixels``, the kept fractions
        of the tokens that show such a pedestrian and of its pixels; ``by_keyframe``, the latter by keyframes since it
        came into sight; ``foreground_recall``; and ``flicker``, the fraction of the kept tokens that the keyframe
        before had not kept. None: no data.

    Raises:
        InputError: an image, mask or entry of the dataset cannot be used.
        ModelError: the options need a calibration that is not there.
    """
    settings = options.temporal
    assert settings is not None
    stream = _stream(source, vla, pruner, options, calibration)
    gaps = [gap * 1e-9 for gap, _ in _pairs(stream)]
    early = _early(stream)
    return {
        "settings": asdict(settings) | {"calibrated": options.calibrated},
        "interval_s": float(np.median(gaps)) if gaps else None,
        "state": dict(sorted(stream.notes.items())),
        "pedestrians": len({(each.scene, each.number) for _, each in early}),
        "first_s": FIRST_S,
        "sightings": len(early),
        "keep": {f"{ratio:g}": _keep_figures(stream, early, ratio) for ratio in KEEP_RATIOS},
    }


def _stream(
    source: ImageSource, vla: Vla, pruner: ReconPruner, options: ScoreOptions, calibration: Calibration | None
) -> Stream:
    plain_options, state, notes = replace(options, temporal=None), None, Counter()
    keyframes, plain, temporal, foreground, seen = [], [], [], [], {}
    require_cameras(source, vla)
    for index, (keyframe, tokens) in enumerate(encode_items(source, vla, "temporal")):
        world = keyframe.find_world_state()
        if keyframe.stamp_ns is None or world is None:
            raise InputError(f"{source.root}: {keyframe.name} has no stamp or ego pose; temporal terms need both")
        frame = FrameContext(keyframe.stamp_ns, tuple(vla.spec.cameras), (), world)
        with torch.inference_mode():
            scores = pruner(tokens, vla.grid)
        if keyframes and keyframes[-1].scene != keyframe.scene:
            state = None
        context = PruningContext.of(tokens, vla.grid, frame=frame, state=state)
        without = refine(scores, context, 1, plain_options, calibration)
        refined = refine(scores, context, 1, options, calibration)
        state = refined.state
        notes[_kind(refined.temporal)] += 1
        plain.append(without.scores.float().cpu().numpy().ravel())
        temporal.append(refined.scores.numpy().ravel())
        if source.has_masks:
            foreground.append(keyframe.coverage(vla.spec.cameras, vla.grid).ravel() >= POSITIVE_COVERAGE)
        if found := sightings(source.root, keyframe, vla.spec.cameras, vla.grid):
            seen[index] = found
        keyframes.append(keyframe)
    scenes, stamps_ns = [each.scene for each in keyframes], [each.stamp_ns for each in keyframes]
    truth = np.stack(foreground) if foreground else None
    return Stream(scenes, stamps_ns, np.stack(plain), np.stack(temporal), notes, truth, seen)


def _kind(note: str) -> str:
    """A note without its figures: "dropped: gap of 0.50 s" is "dropped: gap"."""
    return note.split(" of ")[0].split(" by ")[0]


def _pairs(stream: Stream) -> list[tuple[int, int]]:
    """(nanoseconds since the keyframe before, position) of the keyframes that have one in their scene."""
    return [
        (stream.stamps_ns[index] - stream.stamps_ns[index - 1], index)
        for index in range(1, len(stream.scenes))
        if stream.scenes[index] == stream.scenes[index - 1]
    ]


def _early(stream: Stream) -> list[tuple[int, Sighting]]:
    """(position, sighting) within ``FIRST_S`` of when the pedestrian came into sight."""
    came_ns: dict[tuple[str, int], int] = {}
    early = []
    for index, found in stream.seen.items():
        for each in found:
            key = (each.scene, each.number)
            if each.keyframes_since == 0:
                came_ns[key] = stream.stamps_ns[index]
            if key in came_ns and stream.stamps_ns[index] - came_ns[key] <= FIRST_S * 1e9:
                early.append((index, each))
    return early


def _keep_figures(stream: Stream, early: list[tuple[int, Sighting]], ratio: float) -> dict:
    keep = keep_count(stream.plain.shape[1], 1 - ratio)
    kept = {name: _kept(getattr(stream, name), keep) for name in ("plain", "temporal")}
    pixels = {name: [_pixel_fraction(mask, *each) for each in early] for name, mask in kept.items()}
    people = [(each.scene, each.number) for _, each in early]
    gain = defaultdict(float)
    for person, before, after in zip(people, pixels["plain"], pixels["temporal"], strict=True):
        gain[person] += after - before
    figures: dict = {}
    for name, mask in kept.items():
        figures[name] = {
            "pedestrian_tokens": _mean([_token_fraction(mask, *each) for each in early]),
            "pedestrian_pixels": _mean(pixels[name]),
            "by_keyframe": _by_keyframe(early, pixels[name]),
            "foreground_recall": None if stream.foreground is None else _mean(mask[stream.foreground]),
            "flicker": _mean([1 - (mask[index] & mask[index - 1]).sum() / keep for _, index in _pairs(stream)]),
        }
    figures["better"] = sum(value > 1e-6 for value in gain.values())
    figures["worse"] = sum(value < -1e-6 for value in gain.values())
    return figures


def _kept(scores: np.ndarray, keep: int) -> np.ndarray:
    """bool [keyframes, cameras * N]."""
    mask = np.zeros(scores.shape, bool)
    for row, each in zip(mask, scores, strict=True):
        row[select_top(torch.from_numpy(each)[None], keep).numpy()] = True
    return mask


def _pixel_fraction(kept: np.ndarray, index: int, sighting: Sighting) -> float:
    pixels = sighting.pixels.ravel()
    return float(pixels[kept[index]].sum() / pixels.sum())


def _token_fraction(kept: np.ndarray, index: int, sighting: Sighting) -> float:
    pixels = sighting.pixels.ravel()
    shows = pixels >= min(TOKEN_FRACTION * pixels.sum(), pixels.max())
    return float(kept[index][shows].mean())


def _by_keyframe(early: list[tuple[int, Sighting]], fractions: list[float]) -> list[float | None]:
    last = max((each.keyframes_since for _, each in early), default=-1)
    by_age: list[list[float]] = [[] for _ in range(last + 1)]
    for (_, each), fraction in zip(early, fractions, strict=True):
        by_age[each.keyframes_since].append(fraction)
    return [_mean(values) for values in by_age]


def _mean(values) -> float | None:
    return float(np.mean(values)) if len(values) else None
