"""Qwen3-VL (arXiv 2511.21631), as transformers' ``Qwen3VLForConditionalGeneration``.

It differs from Qwen2.5-VL by patches of 16 px, a tower whose blocks all attend to the whole image, interleaved M-RoPE,
and DeepStack: features of three tower blocks are added to the visual tokens' states behind the first language layers.
They are pruned with the tokens, as ``VisualTokens.layer_features``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from fastdrive_node.errors import ModelError
from fastdrive_node.families.base import PositionInputs
from fastdrive_node.families.common.language import TransformersLanguage, check_text_config
from fastdrive_node.families.common.projector import text_sizes
from fastdrive_node.families.common.pruner_layer import build_pruner_layer
from fastdrive_node.families.config_checks import check_heads
from fastdrive_node.families.images import HALF, Normalisation, read_normalisation, resize
from fastdrive_node.families.qwen2_5_vl import Qwen25Vl
from fastdrive_node.families.qwen2_5_vl.preprocess import patchify
from fastdrive_node.families.tokens import VisualTokens
from fastdrive_node.families.vla import Vla


class Qwen3Vision(nn.Module):
    """Images to tokens by transformers' own tower (no copy), the images of a set packed into one sequence."""

    def __init__(self, vla: Vla, normalisation: Normalisation):
        super().__init__()
        self.visual = vla.model.model.visual
        self.config = self.visual.config
        self.image_size, self.cameras, self.grid = vla.spec.image_size, len(vla.spec.cameras), vla.grid
        self._model_type, self._normalisation = vla.family.model_type, normalisation

    @property
    def max_keep(self) -> int:
        """All tokens of all cameras."""
        return self.cameras * self.grid[0] * self.grid[1]

    @property
    def dtype(self) -> torch.dtype:
        return next(self.visual.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.visual.parameters()).device

    def preprocess(self, images: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
        """uint8 RGB images [H, W, 3] of any size -> patches [C, patches, patch values] on the tower's device."""
        return self.patches(resize(images, self.image_size).to(self.device))

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [C, 3, height, width] at the tower's image size -> patches [C, patches, patch values]."""
        config = self.config
        values = self._normalisation.apply(pixels, self.dtype)
        return patchify(values, config.patch_size, config.spatial_merge_size, config.temporal_patch_size)

    def encode(self, inputs: torch.Tensor, attention: bool = False) -> VisualTokens:
        """See ``VisionBackend``; with the features of later layers. Raises ModelError: ``attention`` is asked for."""
        if attention:
            raise ModelError(
                f"vision encoder of {self._model_type}: gives no attention of its tower, which the pruner reads; "
                "use another pruner"
            )
        tokens, features = self._encode(inputs)
        return VisualTokens.from_raster(tokens, self.grid, layer_features=features)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.encode_patches(patches)

    def encode_patches(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches [C, patches, patch values] -> tokens [C, rows * columns, D], raster order."""
        return self._encode(patches)[0]

    def _encode(self, patches: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        merge = self.config.spatial_merge_size
        grids = torch.tensor([[1, merge * self.grid[0], merge * self.grid[1]]] * len(patches), device=patches.device)
        out = self.visual(patches.flatten(0, 1).to(self.dtype), grid_thw=grids, return_dict=True)
        return out.pooler_output.unflatten(0, (len(patches), -1)), tuple(out.deepstack_features)


class Qwen3Vl(Qwen25Vl):
    """The ``VlaFamily`` of Qwen3-VL: tokens, prompt and positions as Qwen2.5-VL's."""

    model_type = "qwen3_vl"
    model_class = Qwen3VLForConditionalGeneration
    has_engines = False

    def read_config(self, content: dict) -> Any:
        config = Qwen3VLConfig.from_dict(content)
        check_text_config(config.text_config, ("qwen3_vl_text",))
        check_heads(config, mrope=True)
        return config

    def preprocessor_problems(self, config: Any, stored: dict, size: tuple[int, int]) -> list[str]:
        used = ("image_mean", "image_std")  # read from this file
        return super().preprocessor_problems(config, {key: stored[key] for key in stored if key not in used}, size)

    def vision(self, vla: Vla) -> Any:
        return Qwen3Vision(vla, read_normalisation(vla.path, HALF))

    def encoder_constants(self, vla: Vla) -> dict[str, Any]:
        tower, normalisation = vla.config.vision_config, read_normalisation(vla.path, HALF)
        return {
            "num_heads": tower.num_heads,
            "hidden_act": tower.hidden_act,
            "deepstack_visual_indexes": list(tower.deepstack_visual_indexes),
            "mean": normalisation.mean,
            "std": normalisation.std,
        }

    def language(self, vla: Vla) -> Any:
        return TransformersLanguage(vla, len(vla.config.vision_config.deepstack_visual_indexes))

    def language_position_inputs(self, vla: Vla, position_ids: torch.Tensor) -> PositionInputs:
        raise ModelError(f"{self.model_type}: has no engines, so no position inputs of one")

    def language_sizes(self, config: Any) -> dict[str, int]:
        return text_sizes(config.text_config)

    def language_constants(self, config: Any) -> dict[str, Any]:
        return {}  # no engines are built

    def pruner_layer(self, sizes: Any) -> Any:
        return build_pruner_layer(sizes)


FAMILY = Qwen3Vl()
