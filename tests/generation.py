"""The parts of ``Generator`` one by one, on raw tensors, for tests that look inside."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdrive_node.families import PrunedPrompt, VisualTokens, Vla, family_of, load_vla
from fastdrive_node.families.loading import read_vla
from fastdrive_node.families.spec import default_vla_dir
from fastdrive_node.files import SHIPPED_PRUNER
from fastdrive_node.planning.answer_format import TextAnswer
from fastdrive_node.planning.generator import Answer, Generated, Generator
from fastdrive_node.pruning.baselines.ring_view import GEOMETRY_FILE, ViewGeometry, save_geometry
from fastdrive_node.pruning.baselines.simple import NoPruner
from fastdrive_node.pruning.checkpoint import save_pruner
from fastdrive_node.pruning.lite import narrow_sizes
from fastdrive_node.pruning.pruner import Prefilled, Pruner, PruningContext, Selection, batch_inputs
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.pruning.token_packer import TokenPacker, save_packer
from fastdrive_node.types import CAMERAS
from fastdrive_training.vla.tiny_model import TinySize, build_tiny_vla

QWEN = family_of("qwen2_5_vl")
EXAMPLE = "Past: [+01.0, -02.0], [+03.0, -04.0]. Speed: +05.0, acceleration: +00.6. Command: left. "  # 18 tokens
SHALLOW = TinySize(tower_depth=2, full_attention_blocks=(1,), layers=3)  # a layer is left behind one that prunes


def untrained_vla(folder: Path, size: TinySize | None = None) -> Path:
    """An untrained tiny VLA with an untrained pruner beside it."""
    vla = load_vla(build_tiny_vla(folder, seed=0, size=size))
    pruner = ReconPruner(vla.family, vla.config.text_config)
    save_pruner(folder / SHIPPED_PRUNER, pruner, vla.encoder_fingerprint)
    return write_packer(write_geometry(folder))


def write_geometry(folder: Path, cameras: Sequence[str] = CAMERAS) -> Path:
    """Beside a VLA: level cameras of 70 degrees, turned by 60 degrees against each other. Returns the folder."""
    views = {camera: level_camera(60.0 * index, 70.0) for index, camera in enumerate(cameras)}
    save_geometry(folder / GEOMETRY_FILE, views)
    return folder


def random_packer(width: int) -> TokenPacker:
    """A packer whose tokens are not the means of their cells, always the same one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        packer = TokenPacker(width, 2)
        for parameter in packer.mlp[-1].parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return packer.requires_grad_(False).eval()


def write_packer(folder: Path) -> Path:
    """Beside a VLA: a packer with random weights. Returns the folder."""
    save_packer(folder, random_packer(read_vla(folder).width))
    return folder


def level_camera(yaw_deg: float, width_deg: float, size: tuple[float, float] = (1600.0, 800.0)) -> ViewGeometry:
    """A pinhole camera of a horizontal field of view, turned to the left by ``yaw_deg``."""
    yaw, focal = math.radians(yaw_deg), size[0] / 2 / math.tan(math.radians(width_deg / 2))
    intrinsic = ((focal, 0.0, size[0] / 2), (0.0, focal, size[1] / 2), (0.0, 0.0, 1.0))
    sine, cosine = math.sin(yaw), math.cos(yaw)
    rotation = ((sine, 0.0, cosine), (-cosine, 0.0, sine), (0.0, -1.0, 0.0))
    return ViewGeometry(size=size, intrinsic=intrinsic, rotation=rotation)


def vary_answers(vla: Vla, seed: int) -> None:
    """Random noise on the language model: untrained weights repeat one token, these do not."""
    torch.manual_seed(seed)
    for parameter in vla.model.model.language_model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)


def answer_with(monkeypatch, text) -> None:
    """Every answer is ``text``, or what it returns where it is callable; everything before still runs."""
    said = text if callable(text) else lambda: text
    last = []

    def decode(self, prefilled, draft=None):
        last[:] = [said() for _ in prefilled.prompts]
        return [Answer(each, (0,)) for each in last]

    monkeypatch.setattr(Generator, "decode", decode)
    monkeypatch.setattr(TextAnswer, "text", lambda self, ids: last[0])


def generate_as(monkeypatch, text_of) -> None:
    """Nothing runs; each answer is ``text_of`` the indices that its pruner chose."""

    def generate(self, pruner, contexts, prompts, keep, selections=None, timer=None, draft=None):
        selections = selections or [pruner.choose(context, keep) for context in contexts]
        texts = [text_of(selection.indices) for selection in selections]
        return [
            Generated(Answer(text, tuple(self.vla.encode_text(text))), selection.indices)
            for text, selection in zip(texts, selections, strict=True)
        ]

    monkeypatch.setattr(Generator, "generate", generate)


def read_answers_as(monkeypatch, waypoints_m=None) -> list[str]:
    """Every text is read as ``waypoints_m`` (zeros) and passes the checks. Returns the texts, as they come."""
    read: list[str] = []

    def parse(text, spec):
        read.append(text)
        return np.zeros((spec.points, 2)) if waypoints_m is None else waypoints_m

    monkeypatch.setattr("fastdrive_node.planning.answer_format.parse_answer", parse)
    monkeypatch.setattr("fastdrive_node.planning.pipeline.check_plan", lambda *arguments: ())
    return read


def untrained_pruner(vla: Vla, normalise: bool = True) -> ReconPruner:
    return ReconPruner(vla.family, vla.config.text_config, normalise)


def lite_pruner(vla: Vla, cameras: Sequence[str] = (), width: int = 32) -> ReconPruner:
    """Untrained, with a layer of ``width``."""
    sizes = narrow_sizes(vla.family, vla.config.text_config, width)
    return ReconPruner(vla.family, sizes, cameras=cameras, token_width=vla.width)


def choose(pruner: Pruner, context: PruningContext, keep: int) -> torch.Tensor:
    """Score and select: int64 [keep]."""
    return pruner.choose(context, keep).indices


@torch.inference_mode()
def encode(vla: Vla, images: Sequence) -> torch.Tensor:
    """Images to tokens [C, N, D] by torch."""
    vision = vla.torch_vision()
    return vision.encode_patches(vision.preprocess(images))


def visual_of(rows: torch.Tensor) -> VisualTokens:
    """Tokens [K, D] that are all there are."""
    return VisualTokens(rows, torch.arange(len(rows)), (1, 1, len(rows)))


def generate(language: Any, vla: Vla, tokens: torch.Tensor, kept: torch.Tensor | None, prompt) -> Answer:
    return generate_batch(language, vla, [tokens], [kept], [prompt])[0]


def generate_batch(language: Any, vla: Vla, tokens: Sequence, kept: Sequence, prompts: Sequence) -> list[Answer]:
    """Answers to prompts whose visual tokens [C, N, D] were selected already."""
    contexts = [PruningContext.of(each.reshape(len(vla.spec.cameras), -1, each.shape[-1]), vla.grid) for each in tokens]
    selections = [Selection(torch.arange(vla.tokens) if each is None else each) for each in kept]
    done = Generator(vla, language).generate(NoPruner(), contexts, prompts, vla.tokens, selections)
    return [each.answer for each in done]


def prefill(language: Any, prompts: Sequence[PrunedPrompt], tokens: Sequence[torch.Tensor], max_new_tokens: int):
    """Logits and cache of pruned prompts with their kept tokens [K, D]."""
    inputs = batch_inputs(language, prompts, [visual_of(rows) for rows in tokens])
    logits, cache = language.prefill(*inputs, max_new_tokens)
    return logits[:, 0], cache


def decode(language: Any, vla: Vla, prompts: Sequence[PrunedPrompt], logits: torch.Tensor, cache: Any) -> list[Answer]:
    return Generator(vla, language).decode(Prefilled(list(prompts), logits, cache, [], ()))


def prefill_chosen(
    language: Any, pruner: Pruner, contexts: Sequence[PruningContext], prompts: Sequence, keep: int, max_new_tokens: int
) -> Prefilled:
    """What ``Generator`` does up to the prefill, for samples of equal pruned length."""
    chosen = [choose(pruner, context, keep) for context in contexts]
    return pruner.prefill(language, prompts, [context.visual for context in contexts], chosen, keep, max_new_tokens)


def text_first(folder: Path, text: str = EXAMPLE) -> Path:
    """A copy of models/tiny whose prompts begin with ``text``, which its tokenizer knows. Returns the folder."""
    shutil.copytree(default_vla_dir(), folder)
    file = folder / "prompt.txt"
    file.write_text(file.read_text().replace("{images}", f"{text}{{images}}"))
    return folder
