"""``camera_floor``: so many tokens of each camera are kept, however few the pruning ratio or a deadline leaves."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastdrive_node.errors import InputError, ModelError
from fastdrive_node.families import VisualTokens, Vla
from fastdrive_node.pruning.pruner import Pruner
from fastdrive_node.pruning.score_pruner import RefinedPruner
from fastdrive_node.pruning.select import CameraFloors
from fastdrive_node.pruning.temporal import FrameContext


@dataclass(frozen=True)
class CameraFloor:
    """The floors of one VLA. Of a VLA that reads several frames a camera's tokens are those of all its images.

    Args:
        least: tokens of each camera; 0: none, any camera may lose all of its tokens.
    """

    vla: Vla
    least: int = 0

    @property
    def keep(self) -> int:
        """Tokens of all cameras together."""
        return self.least * len(self.vla.spec.cameras)

    def check(self, pruner: Pruner, max_keep: int) -> None:
        """See that a pruner and what encodes the images can keep the floors.

        Args:
            max_keep: tokens that the vision backend gives, the best of all cameras.

        Raises:
            ModelError: the pruner or the engine cannot.
            InputError: a camera has fewer tokens, or the pruner's ``k_min`` is less than all floors together.
        """
        if not self.least:
            return
        if not pruner.keeps_floors:
            pooled = isinstance(pruner, RefinedPruner)
            name = f"{pruner.name} with pooled_cells" if pooled else pruner.name
            raise ModelError(
                f"camera_floor: {self.least}, but pruner {name} does not take the best tokens by score; use "
                "reconpruner, or camera_floor 0"
            )
        sizes = [rows * columns for rows, columns in self.vla.grids]
        fewest = min(sizes)
        if self.least > fewest:
            camera = self.vla.spec.cameras[sizes.index(fewest)]
            raise InputError(f"camera_floor: {self.least}, but {camera} has {fewest} tokens; give a smaller one")
        # The tokens that an engine leaves out may all be of one camera.
        needed = sum(sizes) - fewest + self.least
        if max_keep < needed:
            raise ModelError(
                f"camera_floor: {self.least} of each camera needs an engine that gives {needed} of the {sum(sizes)} "
                f"tokens, this one gives {max_keep}; build it without --max-keep or with {needed}, or use "
                "camera_floor 0"
            )
        if isinstance(pruner, RefinedPruner) and pruner.options.keep_threshold:
            self.check_least(pruner.options.k_min, "keep_threshold")

    def check_least(self, k_min: int, parameter: str) -> None:
        """Raises InputError where ``k_min``, the fewest tokens by another parameter, is less than all floors."""
        if k_min < self.keep:
            raise InputError(
                f"k_min: {k_min} with {parameter}, but camera_floor {self.least} keeps {self.keep} tokens of "
                f"{len(self.vla.spec.cameras)} cameras; give a k_min of {self.keep} or more, or a smaller camera_floor"
            )

    def floors(self, visual: VisualTokens, frame: FrameContext) -> CameraFloors | None:
        """Those of a frame set; a missing camera has none."""
        if not self.least:
            return None
        numbers = [-1 if name in frame.missing else frame.cameras.index(name) for name in frame.cameras]
        sizes = torch.tensor([span.stop - span.start for span in visual.spans])
        return CameraFloors(self.least, torch.tensor(numbers).repeat_interleave(sizes))
