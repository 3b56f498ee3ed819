"""Tiny VLAs of every family, with random weights: transformers' own classes at toy sizes."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from fastdrive_node.families import Prompt, Vla
from fastdrive_node.families.spec import SPEC_FILE, spec_json
from fastdrive_training.families import SPECIAL, build_model
from fastdrive_training.vla.tiny_model import TEMPLATE, TinySize, tiny_spec, tiny_tokenizer

CAMERAS = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT")
SIDE = 84
SPACE = "\u2581"  # of SentencePiece
ODD_SIDE = 86  # no multiple of the patch, as SigLIP's 384


@dataclass(frozen=True)
class Tiny:
    """How the tiny VLA of a family is made."""

    model: Callable[[Tokenizer, int], Any]  # tokenizer, layers of the language model -> model
    special: tuple[str, ...] = ()  # tokens beside those of the template
    size: tuple[int, int] = (SIDE, SIDE)  # height, width of its images
    inputs: Callable[[Vla, torch.Tensor, Prompt], dict[str, Any]] = lambda vla, pixels, prompt: {"pixel_values": pixels}


def build_family_vla(
    path: Path, model_type: str, seed: int = 0, layers: int = 3, tokenizer: Tokenizer | None = None
) -> Path:
    """Write a VLA directory; the same seed gives the same weights, which are made once in a process."""
    if tokenizer is not None:
        return _build(path, model_type, seed, layers, tokenizer)
    path.mkdir(parents=True, exist_ok=True)
    for name, content in _files(model_type, seed, layers).items():
        (path / name).write_bytes(content)
    return path


@functools.cache
def _files(model_type: str, seed: int, layers: int) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = _build(Path(folder), model_type, seed, layers, None)
        return {file.name: file.read_bytes() for file in path.iterdir()}


def _build(path: Path, model_type: str, seed: int, layers: int, tokenizer: Tokenizer | None) -> Path:
    tiny = TINY[model_type]
    tokenizer = tokenizer or tiny_tokenizer(CAMERAS, (*SPECIAL, *tiny.special))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = tiny.model(tokenizer, layers)
        for name, parameter in model.named_parameters():  # untrained weights repeat one token; these do not
            parameter.data += (0.2 if "language_model" in name else 0.1) * torch.randn_like(parameter)
    stop, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    model.generation_config = transformers.GenerationConfig(eos_token_id=stop, pad_token_id=pad, do_sample=False)
    model.save_pretrained(path)
    tokenizer.save(str(path / "tokenizer.json"))
    spec = tiny_spec(TinySize(image_height=tiny.size[0], image_width=tiny.size[1]), CAMERAS)
    (path / spec.prompt).write_text(TEMPLATE, encoding="utf-8")
    (path / SPEC_FILE).write_text(json.dumps(spec_json(spec)), encoding="utf-8")
    return path


def with_sizes(path: Path, sizes: dict[str, tuple[int, int]]) -> Path:
    """The VLA directory with image sizes (width, height) of some cameras."""
    spec = json.loads((path / SPEC_FILE).read_text())
    content = {name: {"width": width, "height": height} for name, (width, height) in sizes.items()}
    (path / SPEC_FILE).write_text(json.dumps({**spec, "image_sizes": content}))
    return path


def llama_tokenizer() -> Tokenizer:
    """A tokenizer of characters and bytes as Llama's is built: it writes a space behind each added token."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *map(chr, range(33, 127)), SPACE]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    plain = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(plain)
    added = ("<unk>", "<s>", "</s>", "<image>", *SPECIAL)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    return tokenizer


def _text(model_type: str, tokenizer: Tokenizer, layers: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        **more,
    }


def _tower(model_type: str, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    return {"model_type": model_type, **sizes, "image_size": SIDE, "patch_size": 14, **more}


def _id(tokenizer: Tokenizer, token: str) -> int:
    index = tokenizer.token_to_id(token)
    assert index is not None
    return index


def _qwen2_5_vl(tokenizer: Tokenizer, layers: int) -> Any:
    return build_model(tokenizer, TinySize(tower_depth=2, width=64, heads=2, kv_heads=1, layers=layers))


def _grid_inputs(vla: Vla, patches: torch.Tensor, prompt: Prompt) -> dict[str, Any]:
    merge = vla.config.vision_config.spatial_merge_size
    grid = torch.tensor([[1, merge * vla.grid[0], merge * vla.grid[1]]] * len(patches))
    kinds = (prompt.input_ids[None] == vla.image_token_id).int()
    return {"pixel_values": patches.flatten(0, 1), "image_grid_thw": grid, "mm_token_type_ids": kinds}


def _qwen3_vl(tokenizer: Tokenizer, layers: int) -> Any:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3], "mrope_interleaved": True}
    tower = {"depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
    return transformers.Qwen3VLForConditionalGeneration(
        transformers.Qwen3VLConfig(
            vision_config={**tower, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
            text_config=_text("qwen3_vl_text", tokenizer, layers, rope_parameters=rope, head_dim=16),
            image_token_id=_id(tokenizer, "<|image_pad|>"),
            video_token_id=_id(tokenizer, "<|video_pad|>"),
            vision_start_token_id=_id(tokenizer, "<|vision_start|>"),
            vision_end_token_id=_id(tokenizer, "<|vision_end|>"),
        )
    )


def _llava(tokenizer: Tokenizer, layers: int) -> Any:
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            vision_config=_tower("clip_vision_model"),
            text_config=_text("llama", tokenizer, layers),
            image_token_index=_id(tokenizer, "<image>"),
        )
    )


def _llava_onevision(tokenizer: Tokenizer, layers: int) -> Any:
    return transformers.LlavaOnevisionForConditionalGeneration(
        transformers.LlavaOnevisionConfig(
            vision_config=_tower("siglip_vision_model", image_size=ODD_SIDE, vision_use_head=False),
            text_config=_text("qwen2", tokenizer, layers),
            image_token_index=_id(tokenizer, "<image>"),
            video_token_index=_id(tokenizer, "<|video_pad|>"),
        )
    )


def _several_images(vla: Vla, pixels: torch.Tensor, prompt: Prompt) -> dict[str, Any]:
    sizes = torch.tensor([vla.spec.image_size] * len(pixels))
    return {"pixel_values": pixels, "image_sizes": sizes, "batch_num_images": torch.tensor([len(pixels)])}


def _internvl(tokenizer: Tokenizer, layers: int) -> Any:
    return transformers.InternVLForConditionalGeneration(
        transformers.InternVLConfig(
            vision_config=_tower("internvl_vision", image_size=[112, 112], patch_size=[14, 14]),
            text_config=_text("qwen2", tokenizer, layers, tie_word_embeddings=True),
            image_token_id=_id(tokenizer, "<IMG_CONTEXT>"),
            image_seq_length=16,
        )
    )


TINY = {
    "qwen2_5_vl": Tiny(_qwen2_5_vl, size=(84, 140), inputs=_grid_inputs),
    "qwen3_vl": Tiny(_qwen3_vl, size=(96, 160), inputs=_grid_inputs),
    "llava": Tiny(_llava, ("<image>",)),
    "llava_onevision": Tiny(_llava_onevision, ("<image>",), (ODD_SIDE, ODD_SIDE), _several_images),
    "internvl": Tiny(_internvl, ("<IMG_CONTEXT>", "<img>", "</img>"), (112, 112)),
}
