"""Which tokens the plans of a run kept: a line of the run's file that scores and hash leave out.

The line holds ``cameras``, rows and columns of each one's tokens, and ``plans``, for each plan of the run the base64 of
its bits (camera after camera, raster order, 1 for kept, the first token in the highest bit), or null where that is
not known.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastdrive_node.errors import InputError
from fastdrive_node.record import MAX_TOKENS
from fastdrive_node.types import KeptTokens
from fastdrive_sim.drive.types import KeptMasks, PlanStep, RunRecord

KEPT = "kept"  # type of the line
KEPT_START = f'{{"type":"{KEPT}"'
Grids = dict[str, tuple[int, int]]  # rows and columns by camera


def masks_by_camera(kept: KeptTokens | None, cameras: Sequence[str]) -> KeptMasks:
    """What the node's plan record says of these cameras' images at t0; empty where it does not."""
    masks = [] if kept is None else kept.masks()
    return dict(zip(cameras, masks, strict=True)) if len(masks) == len(cameras) else {}


def grids_of(run: RunRecord) -> Grids:
    """Of the first plan whose kept tokens are known; empty where there is none."""
    return _grids(next((plan.kept for plan in run.plans if plan.kept), {}))


def packed(kept: KeptMasks, grids: Grids) -> str | None:
    """The bits as base64; None where they are not known or have other grids."""
    if not kept or _grids(kept) != grids:
        return None
    bits = np.concatenate([mask.ravel() for mask in kept.values()])
    return b64encode(np.packbits(bits).tobytes()).decode()


def kept_values(run: RunRecord) -> dict[str, Any] | None:
    """The line's values; None where nothing is known, as in rows that drive without the node."""
    grids = grids_of(run)
    return {"cameras": grids, "plans": [packed(plan.kept, grids) for plan in run.plans]} if grids else None


def with_kept(run: RunRecord, path: Path) -> RunRecord:
    """The run with what its file says of its kept tokens: nothing, where an earlier version wrote it.

    Raises:
        InputError: the line is damaged, or of another run.
    """
    try:
        with path.open(encoding="utf-8") as file:
            line = next((line for line in file if line.startswith(KEPT_START)), None)
        if line is None:
            return run
        values = json.loads(line)
        grids, texts = _read_grids(values["cameras"]), values["plans"]
        if len(texts) != len(run.plans):
            raise ValueError(f"plans: {len(texts)}, the run has {len(run.plans)}")
        plans = [replace(plan, kept=_read(text, grids, plan)) for plan, text in zip(run.plans, texts, strict=True)]
        return replace(run, plans=tuple(plans))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a file of runs/ of a drive") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        detail = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise InputError(f"{path}: its kept tokens are damaged ({detail}); drive the run again to see them") from error


def _grids(kept: KeptMasks) -> Grids:
    return {name: (mask.shape[0], mask.shape[1]) for name, mask in kept.items()}


def _read_grids(values: Mapping) -> Grids:
    grids = {str(name): (rows, columns) for name, (rows, columns) in values.items()}
    if not grids or any(not isinstance(n, int) or n < 1 for grid in grids.values() for n in grid):
        raise ValueError("cameras: expected rows and columns of each, as integers from 1 on")
    total = sum(rows * columns for rows, columns in grids.values())
    if total > MAX_TOKENS:
        raise ValueError(f"cameras: {total} tokens, more than {MAX_TOKENS}")
    return grids


def _read(text: str | None, grids: Grids, plan: PlanStep) -> KeptMasks:
    if text is None:
        return {}
    sizes = [rows * columns for rows, columns in grids.values()]
    total = sum(sizes)
    data = np.frombuffer(b64decode(text, validate=True), np.uint8)
    if len(data) != -(-total // 8):
        raise ValueError(f"plans: {len(data)} bytes for {total} tokens")
    bits = np.unpackbits(data)[:total].astype(bool)
    # Of a VLA that reads earlier images too the line has the tokens of t0, the plan counts all.
    if total > plan.total_tokens or bits.sum() > plan.kept_tokens or _counts_differ(bits, plan):
        raise ValueError(f"plans: {bits.sum()} of {total} kept, the plan has {plan.kept_tokens} of {plan.total_tokens}")
    parts = np.split(bits, np.cumsum(sizes)[:-1])
    return {name: part.reshape(grid) for (name, grid), part in zip(grids.items(), parts, strict=True)}


def _counts_differ(bits: np.ndarray, plan: PlanStep) -> bool:
    return len(bits) == plan.total_tokens and bits.sum() != plan.kept_tokens
