"""Qwen3-VL (arXiv 2511.21631), as transformers' ``Qwen3VLForConditionalGeneration``.

It differs from Qwen2.5-VL by patches of 16 px, a tower whose blocks all attend to the whole image, interleaved M-RoPE,
and DeepStack: features of three tower blocks are added to the visual tokens' states behind the first language layers.
They are pruned with the tokens, as ``VisualTokens.layer_features``.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLForConditionalGeneration

from fastdrive_node.errors import ModelError
from fastdrive_node.families.base import PositionInputs
from fastdrive_node.families.common.language import TransformersLanguage, check_text_config
from fastdrive_node.families.common.projector import text_sizes
from fastdrive_node.families.common.pruner_layer import build_pruner_layer
from fastdrive_node.families.common.vision import OneSizeVision
from fastdrive_node.families.config_checks import check_heads
from fastdrive_node.families.images import HALF, Normalisation, read_normalisation
from fastdrive_node.families.qwen2_5_vl import Qwen25Vl
from fastdrive_node.families.qwen2_5_vl.preprocess import patchify
from fastdrive_node.families.tokens import VisualTokens
from fastdrive_node.families.vla import Vla


class Qwen3Vision(OneSizeVision):
    """Images to tokens by transformers' own tower, the images of a set packed into one sequence."""

    def __init__(self, vla: Vla, normalisation: Normalisation):
        super().__init__(vla, vla.model.model.visual, normalisation)
        self.config = vla.config.vision_config

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [C, 3, height, width] at the tower's image size -> patches [C, patches, patch values]."""
        config = self.config
        return patchify(
            super().patches(pixels), config.patch_size, config.spatial_merge_size, config.temporal_patch_size
        )

    def encode(self, inputs: torch.Tensor, attention: bool = False) -> VisualTokens:
        """See ``VisionBackend``; with the features of later layers. Raises ModelError: ``attention`` is asked for."""
        if attention:
            self.encode_with_attention(inputs)
        tokens, features = self._encode(inputs)
        return VisualTokens.from_raster(tokens, self.grid, layer_features=features)

    def encode_patches(self, patches: torch.Tensor) -> torch.Tensor:
        return self._encode(patches)[0]

    def _encode(self, patches: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        merge = self.config.spatial_merge_size
        grids = torch.tensor([[1, merge * self.grid[0], merge * self.grid[1]]] * len(patches), device=patches.device)
        out = self.tower(patches.flatten(0, 1).to(self.dtype), grid_thw=grids, return_dict=True)
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
