"""Batches that show a fraction of keyframes whose plan is not constant velocity.

In most keyframes of a drive the vehicle goes on as it is. A planner that has learned from them alone is right nearly
always by keeping its speed, and the few keyframes in which the images tell something else weigh little.
"""

from __future__ import annotations

import numpy as np

from fastdrive_node.errors import InputError

CHANGE_M = 4.0  # from where constant velocity would lead at the plan's end; 0.9 m/s2 of braking in 3 s


def changes(futures: np.ndarray, speeds: np.ndarray, interval_s: float) -> np.ndarray:
    """Whether a plan's end is CHANGE_M or more from that of straight on at the present speed, bool [K].

    Args:
        futures: float [K, points, 2] m, x forward; ``interval_s`` between them.
        speeds: float [K] m/s.
    """
    straight_m = speeds * interval_s * futures.shape[1]
    return np.hypot(futures[:, -1, 0] - straight_m, futures[:, -1, 1]) >= CHANGE_M


class SharedBatches:
    """Places of samples by step: a fixed fraction of each batch from those that change, each part shuffled on its own.

    Args:
        changing: bool [K].
        fraction: 0 to 1, of the ``batch`` samples of a step.
        source: name of the dataset, for messages.

    Raises:
        InputError: a part that is asked for has no sample.
    """

    def __init__(self, changing: np.ndarray, fraction: float, batch: int, seed: int, source: str):
        many = round(fraction * batch)
        self._parts = [(np.flatnonzero(changing), many), (np.flatnonzero(~changing), batch - many)]
        self._seed = seed
        for (members, count), which in zip(self._parts, ("changes speed or direction", "keeps its speed"), strict=True):
            if count and not len(members):
                raise InputError(
                    f"{source}: changing: {fraction:g}, but no plan of the dataset {which}; leave the key out"
                )

    def indices(self, step: int) -> np.ndarray:
        """int64 [batch]; follows from seed and step."""
        drawn = []
        for number, (members, count) in enumerate(self._parts):
            places = np.arange(step * count, (step + 1) * count)
            epochs = {epoch: self._order(number, epoch, len(members)) for epoch in set(places // max(len(members), 1))}
            drawn += [members[epochs[place // len(members)][place % len(members)]] for place in places]
        return np.array(drawn)

    def _order(self, number: int, epoch: int, count: int) -> np.ndarray:
        return np.random.default_rng((self._seed, 2 + number, epoch)).permutation(count)
