"""Which pruning ratios a loaded model takes. No torch: the node checks a parameter without asking the planner."""

from __future__ import annotations

from dataclasses import dataclass

from fastdrive_node.errors import InputError
from fastdrive_node.types import PruningRatio


@dataclass(frozen=True)
class DropLimits:
    """What bounds the number of kept tokens K."""

    tokens: int  # visual tokens of all images
    max_keep: int  # of them, the most that the vision backend gives
    engine_keep: int  # as ``max_keep``, of what the engine encodes at once
    has_pruner: bool
    min_keep: int = 1  # the fewest that the pruner can keep
    set_tokens: int = 0  # visual tokens of one image of each camera
    floor_keep: int = 0  # what camera_floor keeps of all cameras together

    def keep(self, drop: float) -> int:
        """The number of tokens that a pruning ratio keeps.

        Raises:
            InputError: it is out of range, or it keeps more tokens than the engine gives or fewer than the pruner or
                ``camera_floor`` can, or it needs a pruner.
        """
        try:
            keep = PruningRatio(drop).keep_count(self.tokens)
            least = PruningRatio(drop).keep_count(self.set_tokens) if self.floor_keep else keep
        except ValueError as error:
            raise InputError(str(error)) from error
        if keep > self.max_keep:
            raise InputError(
                f"drop: {drop:g} keeps {keep} of {self.tokens} tokens, the engine gives {self.engine_keep}; "
                "give a larger drop, or build the engine with a larger --max-keep"
            )
        if drop > 0 and not self.has_pruner:
            raise InputError(f"drop: {drop:g}, but the model runs without a pruner; give 0")
        if keep < self.min_keep:
            raise InputError(
                f"drop: {drop:g} keeps {keep} of {self.tokens} tokens, the pruner keeps at least {self.min_keep}; give "
                "a smaller drop, or another pruner"
            )
        if least < self.floor_keep:
            raise InputError(
                f"drop: {drop:g} keeps {least} of the {self.set_tokens} tokens of a frame set, camera_floor keeps "
                f"{self.floor_keep}; give a smaller drop, or a smaller camera_floor"
            )
        return keep
