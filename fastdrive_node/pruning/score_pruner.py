"""ReconPruner as a pruner: the highest scores over all cameras, and what may be done with the scores before.

Calibrated scores, a threshold in place of a fixed K, temporal terms, even spacing and pooled cells are not of
FastDriveVLA. They are off by default; node and evaluation run the same code for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.families.tokens import VisualTokens
from fastdrive_node.pruning.baselines.coverage import evenly_spaced
from fastdrive_node.pruning.baselines.merging import choose_cells, with_pooled_cells
from fastdrive_node.pruning.calibration import Calibration
from fastdrive_node.pruning.catalog import ScoreOptions
from fastdrive_node.pruning.pruner import ContextField, Pruner, PruningContext, Selection, Timer, no_timer
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.pruning.select import keep_above, select_top
from fastdrive_node.pruning.temporal import TemporalState, temporal_scores, why_stale


def check_options(options: ScoreOptions, calibration: Calibration | None, cameras: Sequence[str]) -> None:
    """Raises ModelError where an option needs a calibration that is not there, or not for one of the cameras."""
    if not options.needs_calibration:
        return
    if calibration is None:
        raise ModelError(
            "calibrated_scores, keep_threshold: the pruner has no calibration; fit one with `fastdrive calibrate`"
        )
    calibration.require(cameras)


@dataclass
class ScorePruner(Pruner):
    """Keeps the highest scores of a ReconPruner over all cameras (FastDriveVLA, arXiv 2507.23318).

    Args:
        module: scores the tokens; None where an engine gives the scores with the tokens.
    """

    module: ReconPruner | None
    name: str = "reconpruner"
    keeps_floors = True

    @property
    def ranks_by_engine(self) -> bool:
        return self.module is None

    def score(self, context: PruningContext) -> torch.Tensor:
        if self.module is not None:
            return self._score(self.module, context)
        if context.visual.scores is None:
            raise ModelError("pruner reconpruner: neither a pruner file nor an engine scores the tokens")
        return context.visual.scores

    def _score(self, module: ReconPruner, context: PruningContext) -> torch.Tensor:
        if module.camera_bias is None or context.visual.grids is None:
            return context.by_image(module)
        counts = torch.tensor([span.stop - span.start for span in context.visual.spans])
        bias = module.camera_bias.float().repeat_interleave(counts.to(module.camera_bias.device))
        return context.by_image(module.image_scores) + bias

    def select(self, context: PruningContext, scores: torch.Tensor, keep: int) -> torch.Tensor:
        if context.visual.complete:
            return select_top(scores, keep, context.floors)
        if keep > len(context.visual.rows):
            raise ValueError(f"keep: {keep} is not in 1..{len(context.visual.rows)}, which is what the engine gives")
        given = torch.zeros(scores.numel(), dtype=torch.bool)
        given[context.visual.indices] = True
        scores = scores.float().cpu()
        if not bool(torch.isfinite(scores).all()):
            raise ValueError("scores: not finite")
        lowest = torch.finfo(torch.float32).min  # not infinite, which would be refused as a fault
        return select_top(scores.masked_fill(~given.view(scores.shape), lowest), keep, context.floors)


@dataclass
class RefinedPruner(Pruner):
    """A ``ScorePruner`` whose scores pass through options before the best are taken.

    Only ``keep_threshold`` may keep fewer tokens than asked for, and pooled cells up to two fewer.

    Raises:
        ModelError: an option needs a calibration that is not there, or not for one of ``cameras``.
    """

    base: ScorePruner
    options: ScoreOptions
    calibration: Calibration | None
    cameras: tuple[str, ...]  # of the VLA
    name: str = "reconpruner"
    needs: frozenset[ContextField] = frozenset()

    def __post_init__(self) -> None:
        if self.options.changes_scores:
            self.needs = frozenset({ContextField.FRAME})
        check_options(self.options, self.calibration, self.cameras)

    @property
    def ranks_by_engine(self) -> bool:
        return self.base.ranks_by_engine and self.options.reads_all is None

    @property
    def keeps_floors(self) -> bool:
        return not self.options.pooled  # cells are chosen, not tokens

    @property
    def remembers(self) -> bool:
        return self.options.temporal is not None

    def score(self, context: PruningContext) -> torch.Tensor:
        return self.base.score(context)

    def select(self, context: PruningContext, scores: torch.Tensor, keep: int) -> torch.Tensor:
        return self._select(context, scores, keep).indices

    def choose(self, context: PruningContext, keep: int, timer: Timer = no_timer) -> Selection:
        with timer("score"):
            scores = self.score(context)
        with timer("select"):
            return self._select(context, scores, keep)

    def tokens(self, visual: VisualTokens, chosen: torch.Tensor) -> VisualTokens:
        return with_pooled_cells(visual, chosen) if self.options.pooled else super().tokens(visual, chosen)

    def state_after(self, contexts: Sequence[PruningContext]) -> TemporalState | None:
        """What consecutive sets, the oldest first and without a state of their own, leave to the next one."""
        state = None
        for context in contexts:
            context = replace(context, state=state)
            state = refine(self.score(context), context, 1, self.options, self.calibration).state
        return state

    def _select(self, context: PruningContext, scores: torch.Tensor, keep: int) -> Selection:
        visual, by_all = context.visual, self.options.reads_all
        if by_all and not visual.complete:
            raise ModelError(f"{by_all}: reads all visual tokens, the engine gives fewer; build it without --max-keep")
        refined = refine(scores, context, keep, self.options, self.calibration)
        if self.options.pooled:
            indices = choose_cells(refined.scores, visual.image_grids, refined.keep)
        else:
            chosen_by = with_floor(refined.scores, visual, int(self.options.even_spacing * refined.keep))
            indices = self.base.select(context, chosen_by, refined.keep)
        return Selection(indices, refined.scores, refined.temporal, refined.state)


def with_floor(scores: torch.Tensor, visual: VisualTokens, count: int) -> torch.Tensor:
    """Scores [C, N] by which ``count`` tokens, evenly spaced in each image, come first, and the others as they are."""
    if not count:
        return scores
    floor = evenly_spaced(visual, count)
    raised = scores.detach().float().cpu().clone()
    raised.view(-1)[floor] = torch.finfo(torch.float32).max  # not infinite, which would be refused as a fault
    return raised


@dataclass(frozen=True)
class Refined:
    """Scores to choose by, and how many tokens to keep."""

    scores: torch.Tensor  # [C, N]; float32 on the CPU where an option changed them
    keep: int
    temporal: str = "off"  # as in ``Selection``
    state: TemporalState | None = None  # for the next set


def refine(
    scores: torch.Tensor,
    context: PruningContext,
    keep: int,
    options: ScoreOptions,
    calibration: Calibration | None = None,
) -> Refined:
    """Apply the options to the scores of one set. The same arguments give the same result.

    Args:
        scores: [C, N], of a pruner.
        context: with its frame, and the state that the set before left.
        keep: K that the pruning ratio leaves; the most that are kept.

    Raises:
        ModelError: an option needs a calibration that is not there.
        ValueError: a score is not finite.
    """
    if not options.changes_scores:
        return Refined(scores, keep)
    frame, state = context.require(ContextField.FRAME), context.state
    check_options(options, calibration, frame.cameras)
    if options.needs_calibration:
        assert calibration is not None  # by check_options
        scores = calibration.logits(scores, frame.cameras)
    note, left = "off", None
    if options.temporal is not None:
        reason = None if state is None else why_stale(state, frame, context.grid, options.temporal)
        note = f"dropped: {reason}" if reason else "new" if state is None else "used"
        fresh = state if note == "used" else None
        scores, left = temporal_scores(scores, context.visual, frame, options.temporal, fresh)
    if options.keep_threshold:
        keep = keep_above(scores, options.keep_threshold, options.k_min, keep)
    return Refined(scores, keep, note, left)
