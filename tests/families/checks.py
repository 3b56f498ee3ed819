"""What the tests of all families and their table do: answers by two paths, a trained pruner, a VLA that shares it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from fastdrive_node.families import Prompt, VisualTokens, Vla, build_prompt, load_vla
from fastdrive_node.families.common.language import TransformersLanguage
from fastdrive_node.planning.generator import Generator
from fastdrive_node.pruning.baselines.simple import NoPruner
from fastdrive_node.pruning.pruner import PruningContext, Selection
from fastdrive_node.types import CameraFrame, Command, EgoHistory, FrameSet
from fastdrive_training.pruner.train import train
from tests.families.tiny_vlas import CAMERAS, TINY, build_family_vla
from tests.training.tiny_nuscenes import write_dataset


def images_of(vla: Vla, seed: int = 0) -> list[np.ndarray]:
    """All images that the VLA reads, at its size."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (*vla.spec.image_size, 3), dtype=np.uint8) for _ in vla.images]


def frame_set_of(vla: Vla, seed: int = 0) -> FrameSet:
    frames = zip(vla.spec.cameras, images_of(vla, seed), strict=True)
    return FrameSet(tuple(CameraFrame(name, 10**9, 10**9, lambda i=image: i) for name, image in frames), t0_ns=10**9)


@torch.inference_mode()
def scene_of(vla: Vla, history: EgoHistory, seed: int = 0) -> tuple[list[np.ndarray], VisualTokens, Prompt]:
    """Images, their tokens and a prompt."""
    images, vision = images_of(vla, seed), vla.torch_vision()
    return images, vision.encode(vision.preprocess(images)), build_prompt(vla, history, Command.LEFT)


def some_kept(vla: Vla, keep: int, seed: int = 0) -> torch.Tensor:
    return torch.randperm(vla.tokens, generator=torch.Generator().manual_seed(seed))[:keep].sort().values


def answer(
    vla: Vla, visual: VisualTokens, prompt: Prompt, kept: torch.Tensor | None = None, language: Any = None
) -> tuple[int, ...]:
    """Token ids of the answer from the tokens in ``kept``."""
    selections = [Selection(torch.arange(vla.tokens) if kept is None else kept)]
    generator = Generator(vla, language)
    done = generator.generate(NoPruner(), [PruningContext(visual)], [prompt], vla.tokens, selections)
    return done[0].answer.ids


@torch.inference_mode()
def by_transformers(vla: Vla, images: list[np.ndarray], prompt: Prompt) -> tuple[int, ...]:
    """Token ids of transformers' greedy ``generate`` from the same pixels and token ids."""
    inputs = TINY[vla.family.model_type].inputs(vla, vla.torch_vision().preprocess(images), prompt)
    ids = prompt.input_ids[None]
    out = vla.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=vla.spec.answer.max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(Generator(vla).answer.stop_ids),
        **inputs,
    )
    return tuple(out[0, len(prompt) :].tolist())


@torch.inference_mode()
def by_masking(vla: Vla, visual: VisualTokens, prompt: Prompt, kept: torch.Tensor, count: int) -> tuple[int, ...]:
    """Greedy ids with every token in the sequence, the dropped ones masked; the whole is computed again each time."""
    language = TransformersLanguage(vla, len(visual.layer_features))
    embeddings = vla.torch_language().embed(prompt.input_ids)[None].clone()
    embeddings[0, prompt.visual] = visual.rows
    seen = torch.ones(1, len(prompt), dtype=torch.int64)
    seen[0, prompt.visual] = 0
    seen[0, prompt.visual[kept]] = 1
    positions, ids = prompt.position_ids[:, None], []
    for step in range(count):
        is_visual = torch.zeros(embeddings.shape[:2], dtype=torch.bool)
        is_visual[0, prompt.visual] = True
        hidden = vla.model.model.language_model(
            inputs_embeds=embeddings,
            attention_mask=seen,
            position_ids=positions[0] if len(positions) == 1 else positions,
            use_cache=False,
            **language._features(is_visual, [visual]),
        ).last_hidden_state
        ids.append(int(vla.model.lm_head(hidden[0, -1]).argmax()))
        embeddings = torch.cat([embeddings, vla.model.get_input_embeddings()(torch.tensor([ids[-1:]]))], dim=1)
        seen = torch.cat([seen, torch.ones(1, 1, dtype=torch.int64)], dim=1)
        following = torch.full((len(positions), 1, 1), prompt.next_position + step)
        positions = torch.cat([positions, following], dim=2)
    return tuple(ids)


def dataset_of(folder: Path) -> Path:
    return write_dataset(folder / "dataset", scenes=2, keyframes=2, cameras=CAMERAS)


def train_pruner(vla_dir: Path, dataset: Path, folder: Path, steps: int = 2, **more: Any) -> dict[str, Any]:
    """Figures of a short training of a ReconPruner for a VLA; ``pruner`` is the file."""
    schedule = {"decoder_pretrain_steps": 1, "steps": steps, "batch": 4, "lr": 1e-3, "log_every": 1}
    return train(
        {
            "vla": str(vla_dir),
            "dataset": str(dataset),
            "out": str(folder / "run"),
            "cache": str(folder / "cache"),
            "device": "cpu",
            "workers": 0,
            "decoder_layers": 1,
            "tensorboard": False,
            "loss": {"ssim_stride": 8},
            "schedule": schedule,
            **more,
        }
    )


def build_sibling(path: Path, vla_dir: Path, seed: int = 1, others: tuple[str, ...] = ()) -> Path:
    """A VLA with the encoder of another one, and a language model that differs in depth and weights.

    Args:
        others: words in the names of the encoder's tensors that it does not take over.
    """
    family = load_vla(vla_dir, parts=frozenset()).family
    build_family_vla(path, family.model_type, seed, layers=4)
    shared = {
        name: tensor
        for name, tensor in load_file(vla_dir / "model.safetensors").items()
        if name.startswith(family.encoder_prefixes) and not any(word in name for word in others)
    }
    weights = load_file(path / "model.safetensors")
    assert shared and shared.keys() < weights.keys()
    save_file({**weights, **shared}, path / "model.safetensors", {"format": "pt"})
    return path
