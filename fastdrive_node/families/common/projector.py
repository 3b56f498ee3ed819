"""Families of a vision transformer, a projector and a plain language model: 1-D positions, one image size.

LLaVA, LLaVA-OneVision and InternVL differ in their towers, in the text of an image, and in how patches become tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.families.base import PositionInputs
from fastdrive_node.families.common.language import TransformersLanguage, check_text_config
from fastdrive_node.families.common.loading import load_parts
from fastdrive_node.families.common.pruner_layer import TEXT_MODELS, build_pruner_layer
from fastdrive_node.families.common.vision import OneSizeVision
from fastdrive_node.families.config_checks import ConfigFault, check_heads
from fastdrive_node.families.images import Normalisation, read_normalisation
from fastdrive_node.families.vla import Vla

CLASS_TOKEN = {"clip_vision_model": True, "internvl_vision": True, "siglip_vision_model": False}
_OTHER_SIZES = ("do_center_crop", "do_pad", "crop_to_patches")  # what image processors do to an image's shape
_ENCODER = {
    "vision_tower": (
        "model.vision_tower.vision_model.",  # the most specific first: they are cut off in a fingerprint
        "model.vision_tower.",
        "vision_tower.vision_model.",
        "vision_tower.",
    ),
    "multi_modal_projector": ("model.multi_modal_projector.", "multi_modal_projector."),
}


class ProjectedVision(OneSizeVision):
    """Images to tokens: transformers' own tower and projector.

    Args:
        features: normalised pixels [C, 3, height, width] -> tokens [C, rows * columns, D], by the tower and projector.
    """

    def __init__(self, vla: Vla, features: Callable[[torch.Tensor], torch.Tensor], normalisation: Normalisation):
        super().__init__(vla, vla.model.model.vision_tower, normalisation)
        self.projector, self._features = vla.model.model.multi_modal_projector, features

    def encode_patches(self, patches: torch.Tensor) -> torch.Tensor:
        return self._features(patches)


class ProjectorFamily:
    """The members of ``VlaFamily`` that such families share; a subclass gives the attributes."""

    model_type: str
    image_token: str  # of which an image has one for each visual token
    towers: tuple[str, ...]  # vision_config.model_type
    normalisation: Normalisation  # where the directory states none
    model_class: Any  # transformers' class of the whole model
    config_class: Any  # and of its configuration
    has_engines = False
    encoder_prefixes: tuple[str, ...] = tuple(prefix for prefixes in _ENCODER.values() for prefix in prefixes)
    language_prefixes: tuple[str, ...] = ("model.language_model.", "language_model.model.", "language_model.")

    def encode(self, vla: Vla, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised pixels [C, 3, height, width] -> tokens [C, rows * columns, D]."""
        return torch.stack(
            list(vla.model.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output)
        )

    def read_config(self, content: dict) -> Any:
        config: Any = self.config_class.from_dict(content)
        tower = config.vision_config.model_type
        if tower not in self.towers:
            raise ConfigFault(f"vision_config.model_type: {tower!r} is not supported; use {', '.join(self.towers)}")
        check_text_config(config.text_config, TEXT_MODELS)
        check_heads(config, mrope=False)
        wanted = "default" if CLASS_TOKEN[tower] else "full"
        if config.vision_feature_select_strategy != wanted:
            raise ConfigFault(f"vision_feature_select_strategy: tokens of {tower} are a grid with {wanted!r} only")
        return config

    def load(self, path: Path, config: Any, device: torch.device, dtype: Any, parts: frozenset[str]) -> Any:
        return load_parts(self.model_class, path, config, device, dtype, parts, _ENCODER)

    def pixels_per_token(self, config: Any) -> int:
        return _side(config.vision_config.patch_size)

    def check_images(self, config: Any, images: int, size: tuple[int, int]) -> None:
        side = _side(config.vision_config.image_size)
        if tuple(size) != (side, side):
            raise ValueError(f"image_size: {size[1]} x {size[0]}, but the vision tower reads {side} x {side} px only")

    def preprocessor_problems(self, config: Any, stored: dict, size: tuple[int, int]) -> list[str]:
        """Mean and deviation are read from the file; whole images are resized to one size, whatever it says."""
        found = [f"{name}: true, but the whole image is resized" for name in _OTHER_SIZES if stored.get(name)]
        factor = stored.get("rescale_factor", 1 / 255)
        if not isinstance(factor, int | float) or abs(factor - 1 / 255) > 1e-6:
            found.append(f"rescale_factor: {factor}, but {1 / 255} is used")
        return found

    def special_tokens(self, config: Any) -> dict[str, int]:
        return {self.image_token: config.image_token_id}

    def image_text(self, tokens: int) -> str:
        return self.image_token * tokens

    def image_token_id(self, config: Any) -> int:
        return config.image_token_id

    def visual_positions(self, vla: Vla, input_ids: torch.Tensor) -> torch.Tensor:
        return (input_ids == vla.image_token_id).nonzero().flatten()

    def position_ids(
        self, vla: Vla, input_ids: torch.Tensor, grids: Sequence[tuple[int, int]]
    ) -> tuple[torch.Tensor, int]:
        """Positions [1, L] from 0 on, and L."""
        return torch.arange(len(input_ids))[None], len(input_ids)

    def vision(self, vla: Vla) -> ProjectedVision:
        return ProjectedVision(vla, lambda pixels: self.encode(vla, pixels), self._normalisation(vla))

    def _normalisation(self, vla: Vla) -> Normalisation:
        return read_normalisation(vla.path, self.normalisation)

    def encoder_constants(self, vla: Vla) -> dict[str, Any]:
        config, normalisation = vla.config, self._normalisation(vla)
        tower = config.vision_config
        return {
            "vision_feature_layer": config.vision_feature_layer,
            "projector_hidden_act": config.projector_hidden_act,
            "hidden_act": tower.hidden_act,
            "num_attention_heads": tower.num_attention_heads,
            "layer_norm_eps": tower.layer_norm_eps,
            "mean": normalisation.mean,
            "std": normalisation.std,
        }

    def language(self, vla: Vla) -> TransformersLanguage:
        return TransformersLanguage(vla)

    def language_position_inputs(self, vla: Vla, position_ids: torch.Tensor) -> PositionInputs:
        raise ModelError(f"{self.model_type}: has no engines, so no position inputs of one")

    def language_sizes(self, config: Any) -> dict[str, int]:
        return text_sizes(config.text_config)

    def language_constants(self, config: Any) -> dict[str, Any]:
        return {}  # no engines are built

    def pruner_layer(self, sizes: Any) -> Any:
        return build_pruner_layer(sizes)


def text_sizes(text: Any) -> dict[str, int]:
    """``VlaFamily.language_sizes`` of a text configuration."""
    heads = text.num_attention_heads
    return {
        "layers": text.num_hidden_layers,
        "heads": heads,
        "kv_heads": text.num_key_value_heads,
        "head_dim": getattr(text, "head_dim", None) or text.hidden_size // heads,
        "width": text.hidden_size,
        "vocabulary": text.vocab_size,
    }


def _side(value: Any) -> int:
    """An image or patch size of a configuration that is square; ValueError where it is not."""
    sides = {int(side) for side in (value if isinstance(value, list | tuple) else [value])}
    if len(sides) != 1:
        raise ValueError(f"vision_config: {value} is not square, which is not supported")
    return sides.pop()
