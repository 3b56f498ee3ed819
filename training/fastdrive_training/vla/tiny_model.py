"""An untrained tiny VLA: its family's own classes at a toy size, with a tokenizer of its own.

The tokenizer writes a length or speed, sign to tenth, as one token. A model of this size cannot carry a plan from digit
to digit: with a token per digit its text was worse than its hidden states, and lost digits (docs/decisions/0002).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, field
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers.generation.configuration_utils import GenerationConfig

from fastdrive_node.families.numbers import NumberFormat
from fastdrive_node.families.spec import (
    FRAME,
    SPEC_FILE,
    AnswerSpec,
    FramesSpec,
    HistorySpec,
    NumberSpec,
    VlaSpec,
    spec_json,
)
from fastdrive_node.types import CAMERAS
from fastdrive_training.engine.config import RecipeError, Seed, parse_recipe, recipe_class
from fastdrive_training.families import SPECIAL, build_model

UNKNOWN = "<unk>"
PREAMBLE = "<PLANNING>Trajectory [x, y]: "
CLOSING = "</PLANNING>"
TEMPLATE = (
    "<|im_start|>user\n{images}"
    "Past: {history}. Speed: {speed}, acceleration: {accel}, yaw rate: {yaw_rate}. Command: {command}.<|im_end|>\n"
    "<|im_start|>assistant\n"
)
# One token each: the words between the numbers, with their spaces; longer ones are matched first.
PHRASES = (
    "user",
    "assistant",
    "Past: ",
    ". Speed: ",
    ", acceleration: ",
    ", yaw rate: ",
    ". Command: ",
    "left",
    "straight",
    "right",
    "none",
    "<PLANNING>",
    "Trajectory [x, y]: ",
    "</PLANNING>",
)
SYMBOLS = ("], [", ", ", "[", "]", "+", "-", ".", "?", " ", "\n", *"0123456789")
NUMBER = NumberFormat(decimals=1, integer_digits=2)
UNKNOWN_NUMBER = NUMBER.unknown(HistorySpec.missing or "?")
NUMBERS = tuple(NUMBER.write(tenth / 10) for tenth in range(-999, 1000))
WAVELENGTHS_M = (0.8, 400.0)  # shortest and longest of the first embeddings of numbers


@recipe_class
class TinySize:
    """Sizes of the toy model; the defaults are those of models/tiny."""

    image_height: int = 112
    image_width: int = 224
    tower_depth: int = 4
    tower_width: int = 128
    tower_intermediate: int = 256
    full_attention_blocks: tuple[int, ...] = (1, 3)
    layers: int = 4
    width: int = 128
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 384


@recipe_class
class TinyRecipe:
    """Keys of a ``tiny_vla`` recipe: an untrained tiny VLA directory, the start of any training."""

    out: str  # the VLA directory to write
    seed: Seed = 0
    size: TinySize = field(default_factory=TinySize)
    cameras: tuple[str, ...] = CAMERAS


def build(recipe: dict, resume: bool = False) -> dict:
    """Write the directory; returns its path and sizes. Raises RecipeError: a wrong key, or ``resume``."""
    if resume:
        raise RecipeError("kind: tiny_vla writes untrained weights at once; there is nothing to resume")
    settings = parse_recipe(TinyRecipe, recipe)
    path = build_tiny_vla(settings.out, settings.seed, settings.size, settings.cameras)
    return {"vla": str(path), "seed": settings.seed, "size": asdict(settings.size)}


def tiny_spec(
    size: TinySize | None = None,
    cameras: tuple[str, ...] = CAMERAS,
    image_sizes: Mapping[str, tuple[int, int]] | None = None,
    frames: FramesSpec | None = None,
) -> VlaSpec:
    """A compact history, and answers of constant length; ``image_sizes`` in px, height and width."""
    size = size or TinySize()
    return VlaSpec(
        cameras=cameras,
        image_size=(size.image_height, size.image_width),
        image_sizes=dict(image_sizes or {}),
        frames=frames,
        format=1,
        frame=FRAME,
        prompt="prompt.txt",
        camera_item="{camera}{image}",
        history=HistorySpec(steps=(4, 2, 1), interval_s=0.5),
        numbers=NumberSpec(
            position=NUMBER, speed=NUMBER, accel=NUMBER, yaw_rate=NumberFormat(decimals=2, integer_digits=1)
        ),
        answer=AnswerSpec(
            preamble=PREAMBLE, points=6, interval_s=0.5, closing=CLOSING, max_new_tokens=32, number=NUMBER
        ),
    )


def tiny_tokenizer(cameras: tuple[str, ...] = CAMERAS, special: tuple[str, ...] = SPECIAL) -> Tokenizer:
    """A word-level tokenizer of the prompt's phrases, cameras, numbers and symbols; any other text is unknown.

    Decoding gives exactly the encoded text back.

    Args:
        special: tokens of the model's own.
    """
    words = (*special, UNKNOWN, *PHRASES, *cameras, *SYMBOLS, UNKNOWN_NUMBER, *NUMBERS)
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN))
    alternatives = sorted((*PHRASES, *cameras, *SYMBOLS, UNKNOWN_NUMBER), key=len, reverse=True)
    pattern = "|".join([f"{NUMBER.pattern}(?![0-9])", *(_escape(word) for word in alternatives)])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*special, UNKNOWN)])
    return tokenizer


def _escape(word: str) -> str:
    """The word as a regular expression of the tokenizers library (Oniguruma)."""
    return "".join(f"\\{char}" if char in "\\[](){}.+*?|^$-/" else char for char in word)


def build_tiny_vla(
    path: str | Path,
    seed: int,
    size: TinySize | None = None,
    cameras: tuple[str, ...] = CAMERAS,
    image_sizes: Mapping[str, tuple[int, int]] | None = None,
    frames: FramesSpec | None = None,
) -> Path:
    """Write an untrained tiny VLA directory with weights drawn from ``seed``.

    Args:
        path: the directory; made where absent.
        size: model and image sizes; None for those of models/tiny.
        cameras: names, in the order of the prompt.
        image_sizes: (height, width) in px of cameras that have another one than ``size`` says.
        frames: past images that the model reads.
    """
    size = size or TinySize()
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer(cameras)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(tokenizer, size)
        weight = model.get_input_embeddings().get_parameter("weight")
        _embed_numbers(weight, tokenizer, model.config.get_text_config().initializer_range)
    stop, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    model.generation_config = GenerationConfig(eos_token_id=stop, pad_token_id=pad, do_sample=False)
    model.save_pretrained(path)
    tokenizer.save(str(path / "tokenizer.json"))
    spec = tiny_spec(size, cameras, image_sizes, frames)
    (path / spec.prompt).write_text(TEMPLATE, encoding="utf-8")
    (path / SPEC_FILE).write_text(json.dumps(spec_json(spec), indent=2) + "\n", encoding="utf-8")
    return path


@torch.no_grad()
def _embed_numbers(weight: torch.Tensor, tokenizer: Tokenizer, deviation: float) -> None:
    """Numbers start out close to their neighbours: sines and cosines of the value, then learned like any other row."""
    values = torch.tensor([float(word) for word in NUMBERS])
    rows = torch.tensor([tokenizer.token_to_id(word) for word in NUMBERS])
    wavelengths = torch.from_numpy(np.geomspace(*WAVELENGTHS_M, weight.shape[1] // 2)).float()
    angle = 2 * math.pi * values[:, None] / wavelengths
    weight[rows] = math.sqrt(2) * deviation * torch.cat([angle.sin(), angle.cos()], 1)
