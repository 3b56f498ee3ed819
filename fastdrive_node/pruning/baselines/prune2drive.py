"""Prune2Drive: diverse tokens of each view, with a budget for each view (Xiong et al., CVPR 2026, arXiv 2508.13305)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from fastdrive_node.errors import ModelError
from fastdrive_node.families import Vla
from fastdrive_node.pruning.baselines.diversity import directions, farthest_points
from fastdrive_node.pruning.pruner import Pruner, PruningContext
from fastdrive_node.validation import parse_json, read_bytes

WEIGHTS_FILE = "prune2drive.json"  # in the VLA directory


class ViewWeights(BaseModel):
    """Content of ``WEIGHTS_FILE``; what else is in it says how the weights were found."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    cameras: dict[str, Annotated[float, Field(ge=0, le=1e6)]]


@dataclass
class Prune2Drive(Pruner):
    """Farthest-point sampling by cosine distance inside of each view; K is divided over the views by their weights.

    The original finds a keep ratio for each view offline. Here the views have weights that are scaled to K, so that one
    file serves every pruning ratio; without a file they are equal. Where the sampling starts is not stated in the rule:
    it is the token least similar to the mean of its view.
    """

    weights: tuple[float, ...] | None = None  # of the images in the prompt's order; None for their numbers of tokens
    name: str = "prune2drive"

    def select(self, context: PruningContext, scores: None, keep: int) -> torch.Tensor:
        tokens, spans = context.tokens.flatten(0, 1), context.visual.spans
        cameras = len(spans)
        if self.weights is not None and len(self.weights) != cameras:
            raise ValueError(f"weights of {len(self.weights)} images, but {cameras} are there; past images are missing")
        counts = [span.stop - span.start for span in spans]
        budgets = split_budget(keep, self.weights or tuple(map(float, counts)), counts)
        chosen = []
        for span, budget in zip(spans, budgets, strict=True):
            vectors = directions(tokens[span])
            first = int((vectors @ vectors.mean(dim=0)).argmin())
            chosen.append(span.start + farthest_points(vectors, budget, first))
        return torch.cat(chosen)


def split_budget(keep: int, weights: Sequence[float], capacity: int | Sequence[int]) -> list[int]:
    """Whole numbers in proportion to weights, none above its ``capacity``, that add up to ``keep``.

    What a full view cannot take goes to the others in proportion; what rounding leaves goes to the largest fractions.

    Raises:
        ValueError: no weight is above zero, or ``keep`` passes what the views can hold.
    """
    most = [capacity] * len(weights) if isinstance(capacity, int) else capacity
    if keep > sum(most) or max(weights) <= 0:
        raise ValueError(f"keep: {keep} tokens cannot be divided over {len(weights)} views by their weights")
    parts = [0.0] * len(weights)
    open_views = list(range(len(weights)))
    while (left := keep - sum(parts)) > 1e-9:
        wanting = [view for view in open_views if weights[view] > 0] or open_views
        total = sum(weights[view] for view in wanting) or len(wanting)
        for view in wanting:
            parts[view] += left * ((weights[view] or 1.0) / total)
        parts = [min(part, float(limit)) for part, limit in zip(parts, most, strict=True)]
        open_views = [view for view in open_views if parts[view] < most[view] - 1e-9]
    counts = [int(part + 1e-9) for part in parts]
    fractions = sorted(range(len(parts)), key=lambda view: (counts[view] - parts[view], view))
    for view in fractions[: keep - sum(counts)]:
        counts[view] += 1
    return counts


def load_weights(vla: Vla) -> tuple[float, ...] | None:
    """The views' weights beside a VLA, in its camera order; None where it has no file of them.

    Raises:
        ModelError: the file is no JSON, lacks a camera or has no weight above zero.
    """
    path = vla.path / WEIGHTS_FILE
    try:
        text = read_bytes(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable ({error}); write it again or remove it") from error
    weights = parse_json(TypeAdapter(ViewWeights), text, path, "correct this field").cameras
    missing = [camera for camera in vla.spec.cameras if camera not in weights]
    if missing:
        raise ModelError(f"{path}: cameras: {missing[0]} is missing; give each camera of the VLA a weight")
    chosen = tuple(float(weights[vla.spec.cameras[camera]]) for camera, _ in vla.images)
    if max(chosen) <= 0:
        raise ModelError(f"{path}: cameras: no weight is above zero")
    return chosen


def save_weights(path: Path, cameras: Mapping[str, float], **details: object) -> None:
    """Write a weights file, with ``details`` about how they were found beside them."""
    path.write_text(json.dumps({"cameras": dict(cameras), **details}, indent=2) + "\n", encoding="utf-8")
