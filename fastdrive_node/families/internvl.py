"""InternVL 3 and 3.5 (arXiv 2504.10479), as transformers' ``InternVLForConditionalGeneration``: checkpoints ``-hf``.

An image is one tile of the tower's own size. Pixel shuffle makes one token of 2 x 2 patches.
"""

from __future__ import annotations

from typing import Any

from transformers.models.internvl.configuration_internvl import InternVLConfig
from transformers.models.internvl.modeling_internvl import InternVLForConditionalGeneration

from fastdrive_node.families.common.projector import ProjectorFamily
from fastdrive_node.families.images import IMAGENET
from fastdrive_node.families.vla import Vla

IMAGE_START, IMAGE_END = "<img>", "</img>"


class InternVl(ProjectorFamily):
    """The ``VlaFamily`` of InternVL."""

    model_type = "internvl"
    model_class = InternVLForConditionalGeneration
    config_class = InternVLConfig
    image_token = "<IMG_CONTEXT>"
    towers = ("internvl_vision",)
    normalisation = IMAGENET

    def pixels_per_token(self, config: Any) -> int:
        return round(super().pixels_per_token(config) / config.downsample_ratio)

    def image_text(self, tokens: int) -> str:
        return f"{IMAGE_START}{super().image_text(tokens)}{IMAGE_END}"

    def encoder_constants(self, vla: Vla) -> dict[str, Any]:
        tower = vla.config.vision_config
        shape = {"downsample_ratio": vla.config.downsample_ratio, "norm_type": tower.norm_type}
        return {**super().encoder_constants(vla), **shape}


FAMILY = InternVl()
