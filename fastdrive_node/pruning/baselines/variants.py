"""ReconPruner with the options that the node has beyond the paper, as pruners to compare: see ``refine``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from fastdrive_node.pruning.baselines.scores import ScorePruner
from fastdrive_node.pruning.calibration import Calibration
from fastdrive_node.pruning.pruner import Need, PruningContext
from fastdrive_node.pruning.score_options import Refined, ScoreOptions, refine
from fastdrive_node.pruning.temporal import TemporalSettings, TemporalState

ADAPTIVE_THRESHOLD = 0.05  # a token with a chance of one in twenty to be foreground is kept
VARIANTS = {
    "reconpruner-calibrated": ScoreOptions(calibrated=True),
    "reconpruner-adaptive": ScoreOptions(keep_threshold=ADAPTIVE_THRESHOLD),
    "reconpruner-temporal": ScoreOptions(temporal=TemporalSettings()),
}


@dataclass
class RefinedPruner:
    """A ReconPruner whose scores pass through the node's options before the best are taken.

    Of the three only ``reconpruner-adaptive`` may keep fewer tokens than it is asked to.
    """

    base: ScorePruner
    options: ScoreOptions
    calibration: Calibration | None
    name: str
    needs: frozenset[Need] = frozenset({Need.MOMENT})

    @property
    def remembers(self) -> bool:
        """Whether ``PruningContext.state`` matters."""
        return self.options.temporal is not None

    def score(self, context: PruningContext) -> Tensor:
        return self.base.score(context)

    def select(self, context: PruningContext, scores: Tensor, keep: int) -> Tensor:
        """As ``Pruner.select``. Raises ModelError: no calibration for a camera. ValueError: a score is not finite."""
        refined = self._refine(context, scores, keep)
        return self.base.select(context, refined.scores, refined.keep)

    def state_after(self, contexts: Sequence[PruningContext]) -> TemporalState | None:
        """What consecutive sets, the oldest first and without a state of their own, leave to the next one."""
        state = None
        for context in contexts:
            state = self._refine(replace(context, state=state), self.score(context), 1).state
        return state

    def _refine(self, context: PruningContext, scores: Tensor, keep: int) -> Refined:
        moment = context.require(Need.MOMENT)
        return refine(scores, context, moment, keep, self.options, self.calibration, context.state)
