"""The sets before a sample, for a pruner with a memory: in a vehicle they have run when the sample comes."""

from __future__ import annotations

import torch

from fastdrive_node.families.loading import Vla
from fastdrive_node.pruning.baselines import PruningContext, RefinedPruner
from fastdrive_node.pruning.temporal import Moment, TemporalState
from fastdrive_training.data.features import FeatureStore
from fastdrive_training.data.nuscenes.keyframes import KeyframeDataset

REACH = 5  # sets; with the memory's default of a half, what is older makes up 3 % of a score


class EarlierSets:
    """Moments of keyframes, and what the keyframes before them leave to a pruner.

    Args:
        features: of the same data set.
    """

    def __init__(self, dataset: KeyframeDataset, vla: Vla, features: FeatureStore):
        self._dataset, self._features = dataset, features
        self._cameras, self._grid = tuple(vla.spec.cameras), vla.grid
        self._scenes = dataset.scenes

    def moment(self, index: int) -> Moment:
        """Of a keyframe by its position in the data set."""
        return Moment(self._dataset[index].stamp_ns, self._cameras, (), self._dataset.world_state(index))

    @torch.inference_mode()
    def state(self, pruner: RefinedPruner, index: int) -> TemporalState | None:
        """What the keyframes before this one in its scene leave to it; None for a scene's first."""
        first = index
        while first > max(0, index - REACH) and self._scenes[first - 1] == self._scenes[index]:
            first -= 1
        before = range(first, index)
        contexts = [
            PruningContext(features.tokens, self._grid, moment=self.moment(position))
            for position, features in zip(before, self._features.load(before), strict=True)
        ]
        return pruner.state_after(contexts)
