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
from fastdrive_node.files import VIEW_WEIGHTS_FILE
from fastdrive_node.pruning.baselines.diversity import directions, farthest_points, most_isolated
from fastdrive_node.pruning.layer_pruning import LayerChoice, LayerPruner, LayerStep, Reached
from fastdrive_node.pruning.pruner import Pruner, PruningContext
from fastdrive_node.validation import parse_json, read_bytes


class ViewWeights(BaseModel):
    """Content of ``VIEW_WEIGHTS_FILE``; what else is in it says how the weights were found."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    cameras: dict[str, Annotated[float, Field(ge=0, le=1e6)]]


@dataclass
class Prune2Drive(LayerPruner):
    """Farthest-point sampling by cosine distance inside of each view, from the state of each token before layer 1.

    It starts with the token whose nearest neighbour in its view is farthest. The original finds a keep ratio for each
    view offline. Here the views have weights that are scaled to K, so that one file serves every pruning ratio; without
    a file they are equal.
    """

    weights: tuple[float, ...] | None = None  # of the images in the prompt's order; None for their numbers of tokens
    name: str = "prune2drive"

    def steps(self, layers: int, total: int, keep: int) -> tuple[LayerStep, ...]:
        if layers < 2:
            raise ModelError(f"{self.name}: prunes before layer 1, but the model has {layers} layers")
        return (LayerStep(1, keep),)

    def choose_in_layer(self, reached: Reached, keep: int) -> LayerChoice:
        counts = torch.bincount(reached.images).tolist()
        return LayerChoice(sample_views(reached.hidden, counts, self.weights, keep).to(reached.hidden.device))


@dataclass
class Prune2DriveInput(Pruner):
    """Prune2Drive on the tower's tokens, before layer 0: for engines, and families that torch runs as a whole."""

    weights: tuple[float, ...] | None = None
    name: str = "prune2drive-input"

    def select(self, context: PruningContext, scores: None, keep: int) -> torch.Tensor:
        counts = [span.stop - span.start for span in context.visual.spans]
        return sample_views(context.tokens.flatten(0, 1), counts, self.weights, keep)


def sample_views(
    tokens: torch.Tensor, counts: Sequence[int], weights: tuple[float, ...] | None, keep: int
) -> torch.Tensor:
    """Farthest points of each view.

    Args:
        tokens: [N, D], view after view.
        counts: tokens of each view.
        weights: of each view; None for ``counts``.

    Returns:
        int64 [keep] on the CPU, ascending.

    Raises:
        ValueError: another number of weights, or they do not divide ``keep``.
    """
    if weights is not None and len(weights) != len(counts):
        raise ValueError(f"weights of {len(weights)} images, but {len(counts)} are there; past images are missing")
    budgets = split_budget(keep, weights or tuple(map(float, counts)), counts)
    chosen, start = [], 0
    for count, budget in zip(counts, budgets, strict=True):
        vectors = directions(tokens[start : start + count])
        chosen.append(start + farthest_points(vectors, budget, most_isolated(vectors)))
        start += count
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
    path = vla.path / VIEW_WEIGHTS_FILE
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
