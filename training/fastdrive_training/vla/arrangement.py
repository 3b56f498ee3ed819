"""Sets of images in other forms than the VLA's own: smaller token grids, absent cameras, another order of the cameras.

A VLA that has read images of many sizes keeps its plan on fewer tokens without having met a pruner. Nothing is dropped
here: a smaller grid averages neighbouring tokens, and the prompt has the ids and positions of a VLA with such images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from fastdrive_node.errors import ModelError
from fastdrive_node.families import Vla, build_prompt
from fastdrive_node.types import EgoHistory, EgoState
from fastdrive_training.engine.config import Count, Fraction, recipe_class


@dataclass(frozen=True)
class Arrangement:
    """The images of one batch."""

    cameras: tuple[int, ...]  # places in the VLA's cameras, in the order of the prompt
    pooled: tuple[tuple[int, int], ...]  # of each: token rows and columns of which the mean is one token


@recipe_class
class SetForms:
    """Keys of a recipe's ``sets``: the forms of the sets in which batches come. Without ``sizes`` all are whole."""

    sizes: tuple[tuple[Count, Count], ...] = ()  # token rows and columns that are averaged; [1, 1] is the full grid
    whole: Fraction = 0.35  # of the batches show every camera at full size, in the VLA's order
    alike: Fraction = 0.25  # of the others have one size for all cameras
    absent: Fraction = 0.2  # of the cameras in the others are not there; the first camera always is
    shuffled: Fraction = 0.0  # of the others have the cameras in any order

    @property
    def active(self) -> bool:
        return bool(self.sizes)

    def check(self, vla: Vla) -> None:
        """Raises ModelError where a size does not divide the VLA's token grid, or the prompt names single images."""
        if not self.active:
            return
        vla.require_one_size("sets")
        vla.require_one_frame("sets")
        rows, columns = vla.grid
        for size in self.sizes:
            if rows % size[0] or columns % size[1]:
                raise ModelError(f"sets.sizes: {list(size)} does not divide the token grid of {rows} x {columns}")
        if "{images}" not in vla.template:
            raise ModelError(f"{vla.path / vla.spec.prompt}: sets: needs a prompt with all images at {{images}}")

    def draw(self, cameras: int, rng: np.random.Generator) -> Arrangement | None:
        """The form of one batch; None is the VLA's own."""
        if not self.active or rng.random() < self.whole:
            return None
        there = [camera for camera in range(cameras) if camera == 0 or rng.random() >= self.absent]
        drawn = rng.integers(len(self.sizes), size=len(there))
        if rng.random() < self.alike:
            drawn[:] = drawn[0]
        if rng.random() < self.shuffled:
            there = [there[place] for place in rng.permutation(len(there))]
        return Arrangement(tuple(there), tuple(self.sizes[index] for index in drawn))


@dataclass(frozen=True)
class PromptForm:
    """A prompt without its text: the tokens up to the last image, and where visual tokens and positions are."""

    head: Tensor  # int64 [H], the tokens up to the last visual one; no history is in it
    visual: Tensor  # int64 [N], the places of the visual tokens
    positions: Tensor  # int64 [axes, L] of the whole prompt
    next_position: int  # of the answer's first token

    @staticmethod
    def of(vla: Vla) -> PromptForm:
        """The form of a VLA's prompts, on its device."""
        prompt = build_prompt(vla, EgoHistory((EgoState(0, 0.0, 0.0, 0.0, 0.0),), vla.spec.history.interval_s))
        head = prompt.input_ids[: int(prompt.visual[-1]) + 1]
        head, visual, positions = (each.to(vla.device) for each in (head, prompt.visual, prompt.position_ids))
        return PromptForm(head, visual, positions, prompt.next_position)

    def __len__(self) -> int:
        """L, the prompt's length."""
        return self.positions.shape[1]

    def text(self, whole: Tensor, form: PromptForm) -> Tensor:
        """The text int64 [B, L' + A] in this form of ``whole`` [B, L + A], which has another ``form``."""
        return torch.cat([self.head.expand(len(whole), -1), whole[:, len(form.head) :]], 1)


def arranged(vla: Vla, arrangement: Arrangement) -> Vla:
    """The VLA, its weights shared, with the cameras of an arrangement and images of the sizes of its token grids."""
    spec, side, (rows, columns) = vla.spec, vla.pixels_per_token, vla.grid
    names = tuple(spec.cameras[camera] for camera in arrangement.cameras)
    sizes = [(rows // down * side, columns // across * side) for down, across in arrangement.pooled]
    several = dict(zip(names, sizes, strict=True)) if len(set(sizes)) > 1 else {}
    return replace(vla, spec=replace(spec, cameras=names, image_size=sizes[0], image_sizes=several))


def arrange_tokens(tokens: Tensor, grid: tuple[int, int], arrangement: Arrangement) -> Tensor:
    """Tokens [B, N', D] of an arrangement, of those of all cameras at full size [B, C * rows * columns, D]."""
    images = tokens.unflatten(1, (-1, *grid)).movedim(-1, 2)  # [B, C, D, rows, columns]
    pairs = zip(arrangement.cameras, arrangement.pooled, strict=True)
    return torch.cat([avg_pool2d(images[:, camera], size).flatten(2) for camera, size in pairs], 2).transpose(1, 2)
