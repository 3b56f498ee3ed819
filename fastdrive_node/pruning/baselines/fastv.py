"""FastV: visual tokens that the last token attends to in an early layer (Chen et al., ECCV 2024, arXiv 2403.06764)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.pruning.layer_pruning import LayerChoice, LayerPruner, LayerStep, Reached
from fastdrive_node.pruning.select import select_top


@dataclass
class FastV(LayerPruner):
    """Keeps the K visual tokens with the most attention of the prompt's last token (section 4.1: criterion and K, R).

    Layers 0 to k - 1 see every token; the attention is that of layer k - 1, mean over its heads.
    """

    layer: int = 2  # k
    name: str = "fastv"

    def steps(self, layers: int, total: int, keep: int) -> tuple[LayerStep, ...]:
        if not 0 < self.layer < layers:
            raise ModelError(f"fastv: prunes before layer {self.layer}, but the model has {layers} layers")
        return (LayerStep(self.layer, keep),)

    def raters(self, visual: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return torch.tensor([len(text) - 1], device=text.device)

    def choose_in_layer(self, reached: Reached, keep: int) -> LayerChoice:
        return LayerChoice(select_top(reached.attention[None], keep).to(reached.hidden.device))
