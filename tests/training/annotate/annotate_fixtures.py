"""Stand-ins for annotation: tiny random Grounding DINO and SAM of the real classes, and models that see brightness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertTokenizerFast,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    SamConfig,
    SamModel,
    SamProcessor,
    SwinConfig,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from fastdrive_training.annotate.compose import Instance
from fastdrive_training.annotate.settings import AnnotateSettings, CompositionSettings, DetectionSettings, Group, Models

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "road", "person", "car", "traffic", "light", "sign", "cone"]
GROUPS = (
    Group("road", ("road",), max_area=1.0),
    Group("traffic_sign", ("traffic sign", "traffic light"), max_area=1.0),
    Group("vehicle", ("car",), max_area=1.0),
    Group("human", ("person",), max_area=1.0),
)


def settings(
    models: Path | None = None, groups: tuple[Group, ...] = GROUPS, detection: dict | None = None, **composition
) -> AnnotateSettings:
    """Thresholds as shipped, areas without an upper limit; ``composition`` overrides."""
    named = Models() if models is None else Models(str(models / "dino"), str(models / "sam"))
    return AnnotateSettings(
        groups,
        named,
        DetectionSettings(**(detection or {})),
        CompositionSettings(**{"min_quality": 0.0, **composition}),
    )


def write_models(folder: Path, seed: int = 0) -> Path:
    """Random weights under ``dino`` and ``sam``; images are read at 64 px."""
    torch.manual_seed(seed)
    _detector().save_pretrained(folder / "dino")
    tokenizer = BertTokenizerFast(vocab={word: number for number, word in enumerate(WORDS)}, do_lower_case=True)
    size = {"shortest_edge": 64, "longest_edge": 128}
    GroundingDinoProcessor(GroundingDinoImageProcessorPil(size=size), tokenizer).save_pretrained(folder / "dino")
    _segmenter().save_pretrained(folder / "sam")
    processor = SamImageProcessorPil(
        size={"longest_edge": 64},
        pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )
    SamProcessor(processor).save_pretrained(folder / "sam")
    return folder


def _detector() -> GroundingDinoForObjectDetection:
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            window_size=4,
            image_size=64,
            patch_size=4,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 1, 1],
            out_indices=[2, 3, 4],
        ),
        text_config=BertConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=64,
        ),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        num_queries=12,
        max_text_len=32,
        disable_custom_kernels=True,
        **heads,
    )
    return GroundingDinoForObjectDetection(config)


def _segmenter() -> SamModel:
    vision = {
        "hidden_size": 16,
        "output_channels": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
        "mlp_dim": 16,
        "global_attn_indexes": [0],
        "num_pos_feats": 4,
        "window_size": 0,
        "initializer_range": 0.02,
    }
    prompt = {"hidden_size": 8, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
    decoder = {
        "hidden_size": 8,
        "mlp_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "attention_downsample_rate": 1,
        "iou_head_hidden_dim": 8,
    }
    return SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder))


class BrightModels:
    """Takes what is bright for road, with a score of 0.9, in the place of GroundedSam. Counts its images."""

    def __init__(self, weights: str = "a"):
        self.images = 0
        self.identity = {
            role: {"name": role, "class": "Bright", "commit": None, "weights_sha256": weights * 64}
            for role in ("detector", "segmenter")
        }

    def find(self, image: np.ndarray) -> list[Instance]:
        self.images += 1
        mask = image.min(-1) > 215
        rows, cols = np.nonzero(mask)
        box = (float(cols.min()), float(rows.min()), float(cols.max() + 1), float(rows.max() + 1))
        return [Instance("road", "road", box, 0.9, 0.95, mask)]

    def find_all(self, images: Sequence[np.ndarray]) -> list[list[Instance]]:
        return [self.find(image) for image in images]
