"""LLaVA-OneVision (arXiv 2408.03326), as transformers' ``LlavaOnevisionForConditionalGeneration``: a SigLIP tower.

Of several images transformers reads each as a whole, without tiles, and puts the learned vector ``image_newline``
behind each one's tokens; so it is done here. A newline belongs to no image cell: it has an image placeholder in the
prompt, but is no visual token, and no pruner removes it. A single image would be cut into tiles, which is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.llava_onevision.configuration_llava_onevision import LlavaOnevisionConfig
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionForConditionalGeneration

from fastdrive_node.families.common.language import TransformersLanguage
from fastdrive_node.families.common.projector import ProjectorFamily
from fastdrive_node.families.images import CLIP
from fastdrive_node.families.vla import Vla


class OneVisionLanguage(TransformersLanguage):
    """The text model; a placeholder in a prompt that no visual token replaces is the newline of an image."""

    def __init__(self, vla: Vla):
        super().__init__(vla)
        self._placeholder = vla.image_token_id
        self._newline = vla.model.model.image_newline

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        embeddings = super().embed(ids).clone()
        embeddings[ids == self._placeholder] = self._newline
        return embeddings


class LlavaOnevision(ProjectorFamily):
    """The ``VlaFamily`` of LLaVA-OneVision."""

    model_type = "llava_onevision"
    model_class = LlavaOnevisionForConditionalGeneration
    config_class = LlavaOnevisionConfig
    image_token = "<image>"
    towers = ("siglip_vision_model", "clip_vision_model")
    normalisation = CLIP

    def check_images(self, config: Any, images: int, size: tuple[int, int]) -> None:
        super().check_images(config, images, size)
        if images < 2:
            raise ValueError("cameras: this model cuts a single image into tiles, which is not supported; use two")

    def image_text(self, tokens: int) -> str:
        return super().image_text(tokens + 1)

    def visual_positions(self, vla: Vla, input_ids: torch.Tensor) -> torch.Tensor:
        """Every placeholder but the last of each image, which is its newline."""
        each = vla.grid[0] * vla.grid[1] + 1
        placeholders = super().visual_positions(vla, input_ids)
        return placeholders[torch.arange(len(placeholders)) % each != each - 1]

    def encode(self, vla: Vla, pixels: torch.Tensor) -> torch.Tensor:
        count = len(pixels)
        out = vla.model.model.get_image_features(
            pixel_values=pixels,
            image_sizes=torch.tensor([pixels.shape[-2:]] * count),
            batch_num_images=torch.tensor([count + 1]),  # of a set of several images, however many these are
            return_dict=True,
        )
        return torch.stack(list(out.pooler_output))[:, :-1]

    def language(self, vla: Vla) -> OneVisionLanguage:
        return OneVisionLanguage(vla)


FAMILY = LlavaOnevision()
