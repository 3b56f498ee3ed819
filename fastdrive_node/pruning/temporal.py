"""Scores with a memory: a token that has just changed counts more, and the choice flickers less.

Not of FastDriveVLA, whose pruner sees one frame set. With s the pruner's scores and s' those of the set before::

    s' = (1 - memory) s + memory s'_before + change std(s) sigmoid(s) z

``z`` says how new a token is (``token_change``), ``sigmoid(s)`` keeps novelties of the background down, for everything
moves in the images of a vehicle that drives.

The state is an object that the caller passes along; the pruner itself knows nothing of time. A state serves only the
next set of the same cameras, soon after it and where the vehicle's speed says that it must be by then; else
``why_stale`` gives the reason and the caller drops it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from fastdrive_node.families.tokens import VisualTokens
from fastdrive_node.pruning.catalog import TemporalSettings
from fastdrive_node.types import EgoState

_LARGEST_CHANGE = 1.0  # in deviations: beyond, it says more of the vehicle's speed than of what is new
_STILL = 0.01  # least deviation: of images of a static scene, what is left is noise


@dataclass(frozen=True)
class FrameContext:
    """When, where and with which cameras a set was taken."""

    t0_ns: int
    cameras: tuple[str, ...]  # in the order of the tokens
    missing: tuple[str, ...]  # of them, those replaced by black
    ego: EgoState  # at t0, in a frame that stays


@dataclass(frozen=True)
class TemporalState:
    """What one set leaves to the next."""

    frame: FrameContext
    grid: tuple[int, int]
    tokens: torch.Tensor  # float32 [C, N, D], of unit length; 0 where they are not known
    scores: torch.Tensor  # float32 [C, N] on the CPU, with the temporal terms


def why_stale(
    state: TemporalState, frame: FrameContext, grid: tuple[int, int], settings: TemporalSettings
) -> str | None:
    """Why a state must not serve the set of ``frame``, in a few words; None where it may."""
    before = state.frame
    gap_s = (frame.t0_ns - before.t0_ns) * 1e-9
    if gap_s <= 0:
        return f"time went back by {-gap_s:.2f} s"
    if gap_s > settings.max_gap_s:
        return f"gap of {gap_s:.2f} s"
    if (frame.cameras, frame.missing, grid) != (before.cameras, before.missing, state.grid):
        return "another set of cameras"
    slip_m, slip_rad = _slip(before.ego, frame.ego, gap_s)
    if not slip_m <= settings.max_slip_m:  # written so that a pose of NaN is a jump
        return f"pose jumped by {slip_m:.1f} m"
    if not slip_rad <= settings.max_slip_rad:
        return f"heading jumped by {math.degrees(slip_rad):.0f} deg"
    return None


def _slip(before: EgoState, now: EgoState, gap_s: float) -> tuple[float, float]:
    """How far position [m] and heading [rad] are from where speed and yaw rate say that they must be."""
    values = (now.x_m, now.y_m, now.yaw_rad, now.speed_mps, now.yaw_rate_radps)
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    turned = (before.yaw_rate_radps + now.yaw_rate_radps) / 2 * gap_s
    travelled = (before.speed_mps + now.speed_mps) / 2 * gap_s
    course = before.yaw_rad + turned / 2
    x, y = before.x_m + travelled * math.cos(course), before.y_m + travelled * math.sin(course)
    slip_rad = math.remainder(now.yaw_rad - before.yaw_rad - turned, math.tau)
    return math.hypot(now.x_m - x, now.y_m - y), abs(slip_rad)


def temporal_scores(
    scores: torch.Tensor,
    visual: VisualTokens,
    frame: FrameContext,
    settings: TemporalSettings,
    state: TemporalState | None = None,
) -> tuple[torch.Tensor, TemporalState]:
    """The scores of a set with the temporal terms, and the state for the next one.

    Args:
        scores: [C, N], finite; above zero means foreground.
        visual: what an engine does not give, or is not finite, is not known.
        state: of the set before, not stale; None: the scores stay as they are.

    Returns:
        float32 [C, N] on the CPU.

    Raises:
        ValueError: a score is not finite.
    """
    scores = scores.detach().float().cpu()
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("scores: not finite")
    grid, units = visual.grid[1:], _unit_length(visual)
    if state is not None:
        boost = settings.change * scores.std() * torch.sigmoid(scores)
        if settings.change:
            boost = boost * token_change(units, state.tokens, grid, settings.reach).cpu()
        scores = (1 - settings.memory) * scores + settings.memory * state.scores + boost
    return scores, TemporalState(frame, grid, units, scores)


def token_change(now: torch.Tensor, before: torch.Tensor, grid: tuple[int, int], reach: int) -> torch.Tensor:
    """How new each token is, float32 [C, N]: from 0, for what changed no more than most, to 1.

    A token's change is one less its largest cosine with the tokens within ``reach`` rows and columns of its place in
    ``before``. The median over the whole set, which is what the vehicle's motion changes, is taken off, and the rest
    divided by the median deviation (times 1.4826, a robust standard deviation).

    Args:
        now, before: [C, N, D], of unit length; 0 where a token is not known. What cannot be compared is not new.
    """
    near = _neighbours(grid, reach, now.device)
    change = torch.full(now.shape[:2], torch.nan, device=now.device)
    for camera, (new, old) in enumerate(zip(now, before.to(now.device), strict=True)):  # one at a time: N x N numbers
        known = near & old.any(dim=-1)
        likest = (new @ old.T).masked_fill(~known, -1).amax(dim=-1)
        valid = new.any(dim=-1) & known.any(dim=-1)
        change[camera, valid] = 1 - likest[valid]
    above = change - change.nanmedian()
    deviation = 1.4826 * above.abs().nanmedian()
    return torch.nan_to_num((above / deviation.clamp(min=_STILL)).clamp(0, _LARGEST_CHANGE), nan=0.0)


def _neighbours(grid: tuple[int, int], reach: int, device: torch.device) -> torch.Tensor:
    """bool [N, N]: which places of the grid are within ``reach`` rows and columns of each other."""
    rows, columns = torch.meshgrid(*(torch.arange(side, device=device) for side in grid), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    return (places[:, None] - places[None]).abs().amax(dim=-1) <= reach


def _unit_length(visual: VisualTokens) -> torch.Tensor:
    """Unit vectors float32 [C, N, D], 0 where a token is not known."""
    rows = torch.nan_to_num(visual.rows.detach().float(), nan=0.0, posinf=0.0, neginf=0.0)
    units = torch.zeros(visual.total, rows.shape[-1], device=rows.device)
    units[visual.indices.to(rows.device)] = normalize(rows, dim=-1)
    return units.view(visual.grid[0], -1, rows.shape[-1])
