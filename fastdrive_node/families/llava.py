"""LLaVA 1.5 (arXiv 2310.03744), as transformers' ``LlavaForConditionalGeneration``: a CLIP tower and an MLP projector.

A token is a patch of the tower; the class token is left out. A template starts with the tokenizer's own start token
(``<s>``) where the model was trained with it: nothing is added to it.
"""

from __future__ import annotations

from transformers.models.llava.configuration_llava import LlavaConfig
from transformers.models.llava.modeling_llava import LlavaForConditionalGeneration

from fastdrive_node.families.common.projector import ProjectorFamily
from fastdrive_node.families.images import CLIP


class Llava(ProjectorFamily):
    """The ``VlaFamily`` of LLaVA."""

    model_type = "llava"
    image_token = "<image>"
    towers = ("clip_vision_model", "siglip_vision_model")
    normalisation = CLIP
    model_class = LlavaForConditionalGeneration
    config_class = LlavaConfig


FAMILY = Llava()
