"""Qwen2.5-VL at full and toy size with random weights, made on the device or as a checkpoint, and scenes for it.

Times do not depend on the weights' values, so no checkpoint is needed.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from transformers.generation.configuration_utils import GenerationConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

from fastdrive_node.benchmark.workload import Workload
from fastdrive_node.families import Vla
from fastdrive_node.families.prompt import Prompt, full_positions
from fastdrive_node.families.qwen2_5_vl import FAMILY
from fastdrive_node.families.qwen2_5_vl.cuda_graphs import GraphedLanguage as GraphedLanguage
from fastdrive_node.families.qwen2_5_vl.language import TorchLanguage as TorchLanguage
from fastdrive_node.families.spec import FRAME, AnswerSpec, HistorySpec, VlaSpec
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.pruning.score_pruner import ScorePruner

TEXT_BEFORE, TEXT_BEHIND = 40, 160  # tokens of the prompt around the images, ego history included
VISION_START, VISION_END = 2, 3  # of the tokens below 8, which no random text token is


@dataclass(frozen=True)
class Scene:
    """Images of one request."""

    name: str
    images: int
    height: int  # px
    width: int  # px


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a model, and the scenes that it is measured on."""

    vision: dict
    text: dict
    scenes: tuple[Scene, ...]
    answer_tokens: int = 140  # a preamble and six points


SIZES = {
    "3b": ModelSize(  # Qwen2.5-VL-3B-Instruct
        vision={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "window_size": 112,
            "patch_size": 14,
            "out_hidden_size": 2048,
        },
        text={
            "hidden_size": 2048,
            "num_hidden_layers": 36,
            "intermediate_size": 11008,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "max_position_embeddings": 128000,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        # the paper's 3249 tokens, and 6 x 336 tokens: Impromptu-VLA's 262,144 px an image
        scenes=(Scene("one_image_1596x1596", 1, 1596, 1596), Scene("six_cameras_672x392", 6, 392, 672)),
    ),
    "tiny": ModelSize(
        vision={
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "fullatt_block_indexes": [1, 3],
            "window_size": 112,
            "patch_size": 14,
            "out_hidden_size": 128,
        },
        text={
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "intermediate_size": 384,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 256,
            "max_position_embeddings": 1024,
            "initializer_range": 0.2,  # else a tiny random model repeats one token
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
        },
        scenes=(Scene("one_image_168x168", 1, 168, 168), Scene("six_cameras_224x112", 6, 112, 224)),
        answer_tokens=96,
    ),
}


class UnusedTokenizer:
    """Stands for a tokenizer: prompts are random ids here, and answers are not read."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return []

    def decode(self, ids: list[int]) -> str:
        return ""


def build_model(
    size: ModelSize, device: torch.device, dtype: torch.dtype, seed: int
) -> Qwen2_5_VLForConditionalGeneration:
    """A model with random weights, allocated on the device."""
    config = Qwen2_5_VLConfig(
        text_config={**size.text, "bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": True},
        vision_config=size.vision,
        image_token_id=0,
        video_token_id=1,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    with torch.device(device):
        # cast: pyright would read all of transformers
        make = cast(Any, Qwen2_5_VLForConditionalGeneration)._from_config
        model = make(config, dtype=dtype, attn_implementation="sdpa")
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
    return model.requires_grad_(False).eval()


def build_pruner(model: Qwen2_5_VLForConditionalGeneration, seed: int) -> ScorePruner:
    """An untrained ReconPruner on the model's device and in its dtype."""
    torch.manual_seed(seed)
    with torch.device(model.device):
        module = ReconPruner(FAMILY, model.config.text_config).to(model.dtype)
        module.layer.rebuild_buffers(model.device)  # the rotary frequencies stay float32
    return ScorePruner(module.requires_grad_(False).eval())


def random_vla(model: Qwen2_5_VLForConditionalGeneration, scene: Scene, answer_tokens: int) -> Vla:
    """A model as the VLA of a scene, with a tokenizer that reads nothing."""
    spec = VlaSpec(
        cameras=tuple(f"CAM_{index}" for index in range(scene.images)),
        image_size=(scene.height, scene.width),
        format=1,
        frame=FRAME,
        prompt="prompt.txt",
        history=HistorySpec(steps=(), interval_s=0.5),
        answer=AnswerSpec(preamble="", points=6, interval_s=0.5, closing="end", max_new_tokens=answer_tokens),
    )
    return Vla(Path("random weights"), FAMILY, model.config, model, cast(Any, UnusedTokenizer()), spec, "")


def build_workload(model: Qwen2_5_VLForConditionalGeneration, scene: Scene, answer_tokens: int, seed: int) -> Workload:
    """Random images and a random prompt around them."""
    vla = random_vla(model, scene, answer_tokens)
    vision = vla.torch_vision()
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (scene.images, 3, scene.height, scene.width), generator=generator).byte()
    return Workload(vla, vision, vision.patches(pixels.to(model.device)), _prompt(vla, generator))


def _prompt(vla: Vla, generator: torch.Generator) -> Prompt:
    config = vla.config

    def random_ids(count: int) -> torch.Tensor:
        return torch.randint(8, config.text_config.vocab_size, (count,), generator=generator)

    each = vla.tokens // len(vla.spec.cameras)
    image = torch.tensor([VISION_START, *[config.image_token_id] * each, VISION_END])
    ids = torch.cat([random_ids(TEXT_BEFORE), *[image] * len(vla.spec.cameras), random_ids(TEXT_BEHIND)])
    positions, next_position = full_positions(vla, ids)
    return Prompt("", ids, positions, (ids == config.image_token_id).nonzero().flatten(), next_position)


SHARD_BYTES = 2_500_000_000
TOKEN_IDS = {  # of the released tokenizer
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
}


def flat_config(size: ModelSize) -> dict[str, Any]:
    """``config.json`` in the flat form of early 2025, with the released vocabulary."""
    text = {**size.text, "vocab_size": SIZES["3b"].text["vocab_size"]}
    rope = text.pop("rope_parameters")
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": True,
        **TOKEN_IDS,
        **text,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        "vision_config": size.vision,
    }


def write_checkpoint(folder: Path, size: ModelSize, tokenizer: Path, seed: int) -> Path:
    """Write a checkpoint as it is on the Hub: flat configuration, old key names, shards, random bfloat16 weights.

    Args:
        tokenizer: the released ``tokenizer.json``; it is copied.
    """
    folder.mkdir(parents=True)
    content = flat_config(size)
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(dict(content)))
    shapes = {name: value.shape for name, value in model.state_dict().items() if name != "lm_head.weight"}
    shards: list[list[str]] = [[]]
    taken = 0
    for name, shape in shapes.items():
        taken += 2 * shape.numel()
        if taken > SHARD_BYTES and shards[-1]:
            shards.append([])
            taken = 2 * shape.numel()
        shards[-1].append(name)
    generator = torch.Generator().manual_seed(seed)
    deviation = size.text.get("initializer_range", 0.02)
    index = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {_hub_name(name): _random(name, shapes[name], deviation, generator) for name in names}
        save_file(tensors, folder / file, {"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    ends = {"eos_token_id": [TOKEN_IDS["eos_token_id"], TOKEN_IDS["bos_token_id"]]}
    files = {
        "config.json": content,
        "generation_config.json": ends,
        "model.safetensors.index.json": {"metadata": {}, "weight_map": index},
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, indent=1))
    shutil.copy(tokenizer, folder / "tokenizer.json")
    return folder


def _hub_name(name: str) -> str:
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def _random(name: str, shape: torch.Size, deviation: float, generator: torch.Generator) -> torch.Tensor:
    """A norm's weight is one, a bias zero."""
    if len(shape) == 1:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, deviation, generator=generator)
