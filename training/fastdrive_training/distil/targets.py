"""What the distillation reads, kept on disk: the encoder's tokens, each teacher's sensitivity or answers, foreground,
scores.

An array is filled chunk by chunk and continues where it was cut off: a pass of a large teacher takes hours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from tqdm import tqdm

from fastdrive_node.errors import AnswerError, InputError
from fastdrive_node.families import Vla
from fastdrive_node.families.spec import spec_json
from fastdrive_node.files import write_atomically
from fastdrive_node.planning.generator import Generator
from fastdrive_node.pruning.baselines.simple import NoPruner
from fastdrive_node.pruning.pruner import PruningContext
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_training.data.adapters.base import ImageSource, dataset_identity
from fastdrive_training.data.token_cache import encode_keyframes, load_images
from fastdrive_training.distil.sensitivity import Teacher, TeacherPrompt, answer_states, passes

ENCODED_AT_ONCE = 16  # keyframes


@dataclass(frozen=True)
class Used:
    """The keyframes of a dataset that a run uses, and where what belongs to them is kept."""

    source: ImageSource
    positions: np.ndarray  # int64 [K] of its items
    cache: Path

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def identity(self) -> list[Any]:
        """What every array depends on beside the VLA."""
        return [dataset_identity(self.source), self.positions.tolist()]


def filled(folder: Path, key: list[Any], shape: tuple[int, ...], dtype: Any, at_once: int, fill: Callable) -> np.memmap:
    """An array on disk whose rows ``fill(start, stop)`` gives, once for each ``key``; read-only.

    Args:
        key: plain JSON values that the content depends on.
        at_once: rows that ``fill`` gives together; rows that were written before are not asked for again.
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    path, progress = folder / f"{name}.bin", folder / f"{name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    whole = path.exists() and path.stat().st_size == size
    done = json.loads(progress.read_text())["done"] if whole and progress.exists() else 0
    if done < shape[0]:
        array = np.memmap(path, dtype, "r+" if whole else "w+", shape=shape)
        with tqdm(total=shape[0], initial=done, desc=folder.name, unit="keyframe") as bar:
            for start in range(done, shape[0], at_once):
                stop = min(start + at_once, shape[0])
                array[start:stop] = fill(start, stop)
                array.flush()
                with write_atomically(progress) as partial:
                    partial.write_text(json.dumps({"done": stop}))
                bar.update(stop - start)
    return np.memmap(path, dtype, "r", shape=shape)


def encoded(used: Used, vla: Vla) -> np.memmap:
    """The encoder's tokens float16 [K, C, n, D]. Raises InputError: an image is unusable, tokens do not fit float16."""
    vision, cameras = vla.torch_vision(), vla.spec.cameras

    def fill(start: int, stop: int) -> np.ndarray:
        items = [used.source[int(index)] for index in used.positions[start:stop]]
        tokens = encode_keyframes(vision, [load_images(item, cameras) for item in items]).float().cpu().numpy()
        if not np.abs(tokens).max() <= np.finfo(np.float16).max:
            raise InputError(f"{vla.path}: the encoder's tokens of {items[0].name} do not fit float16")
        return tokens.astype(np.float16)

    shape = (len(used), len(cameras), vla.grid[0] * vla.grid[1], vla.width)
    key = [*used.identity, vla.encoder_fingerprint, str(vla.dtype), vla.spec.image_size, cameras]
    return filled(used.cache / "tokens", key, shape, np.float16, ENCODED_AT_ONCE, fill)


def sensitivities(used: Used, vla: Vla, tokens: np.ndarray, draws: int, seed: int, at_once: int) -> np.memmap:
    """What the plan of a VLA depends on, float32 [K, C * n], see :class:`Teacher`. Raises as its methods."""
    teacher = Teacher(vla, draws, seed)

    def fill(start: int, stop: int) -> np.ndarray:
        numbers = used.positions[start:stop].tolist()
        own = torch.from_numpy(tokens[start:stop].astype(np.float32)).flatten(1, 2)
        return teacher.sensitivity(own, [used.source[number] for number in numbers], numbers).numpy()

    shape = (len(used), tokens.shape[1] * tokens.shape[2])
    return filled(
        used.cache / "sensitivity", [*used.identity, *_content(vla), draws, seed], shape, np.float32, at_once, fill
    )


def own_answers(used: Used, vla: Vla, tokens: np.ndarray) -> np.memmap:
    """What a VLA writes on all tokens, ids int32 [K, T], -1 behind the last; only -1 where no plan can be read from it.

    Raises ModelError: the VLA cannot answer.
    """
    generator = Generator(vla)
    form = generator.answer
    width = len(form.prefix_ids) + form.max_new_tokens

    def fill(start: int, stop: int) -> np.ndarray:
        items = [used.source[number] for number in used.positions[start:stop].tolist()]
        rows = torch.from_numpy(tokens[start:stop].astype(np.float32)).to(vla.device, vla.dtype)
        contexts = [PruningContext.of(each, vla.grid) for each in rows]
        prompts = [generator.prompt(item.known_history, item.command) for item in items]
        found = np.full((stop - start, width), -1, np.int32)
        for place, each in enumerate(generator.generate(NoPruner(), contexts, prompts, vla.tokens)):
            with suppress(AnswerError):
                form.parse(each.answer.ids)
                ids = (*form.prefix_ids, *each.answer.ids)
                found[place, : len(ids)] = ids
        return found

    key = [*used.identity, *_content(vla), form.max_new_tokens]
    return filled(used.cache / "answers", key, (len(used), width), np.int32, ENCODED_AT_ONCE, fill)


@torch.inference_mode()
def whole_answers(
    used: Used, vla: Vla, tokens: np.ndarray, questions: Sequence[TeacherPrompt], at_once: int
) -> np.memmap:
    """``answer_states`` of a VLA on all tokens, float32 [K, A, D]; 0 before the first position of a shorter answer.

    Its predictions follow from them by the head alone, and are as many as the vocabulary where these are D.

    Args:
        at_once: keyframes of a pass through the VLA.
    """
    width = max(question.answer for question in questions)

    def fill(start: int, stop: int) -> np.ndarray:
        own = torch.from_numpy(tokens[start:stop].astype(np.float32)).flatten(1, 2)
        found = np.zeros((stop - start, width, vla.width), np.float32)
        for rows in passes(questions[start:stop], at_once):
            asked = [questions[start + row] for row in rows]
            found[rows, -asked[0].answer :] = answer_states(vla, own[rows].to(vla.device), asked).float().cpu().numpy()
        return found

    read = hashlib.sha256(b"".join(question.ids.numpy().tobytes() for question in questions)).hexdigest()
    key = [*used.identity, *_content(vla), [question.answer for question in questions], read]
    return filled(used.cache / "whole_answers", key, (len(used), width, vla.width), np.float32, ENCODED_AT_ONCE, fill)


def _content(vla: Vla) -> list[Any]:
    """What the answers of a VLA depend on."""
    return [vla.language_fingerprint, vla.encoder_fingerprint, str(vla.dtype), vla.template, spec_json(vla.spec)]


def foreground(used: Used, vla: Vla) -> np.memmap:
    """Foreground fraction of each token's cell, float32 [K, C * n]; 0 where it is in doubt. Raises InputError."""

    def fill(start: int, stop: int) -> np.ndarray:
        items = [used.source[int(index)] for index in used.positions[start:stop]]
        covered = np.stack([item.coverage(vla.spec.cameras, vla.grid) for item in items])
        return np.nan_to_num(covered).reshape(len(items), -1)

    shape = (len(used), len(vla.spec.cameras) * vla.grid[0] * vla.grid[1])
    key = [*used.identity, used.source.masks_identity, vla.grid, vla.spec.cameras]
    return filled(used.cache / "foreground", key, shape, np.float32, ENCODED_AT_ONCE, fill)


@torch.inference_mode()
def pruner_scores(used: Used, vla: Vla, tokens: np.ndarray, pruner: ReconPruner, fingerprint: str) -> np.memmap:
    """The scores that a pruner gives, float32 [K, C * n], of tokens [K, C, n, D].

    Args:
        pruner: on the device that it shall run on, in float32.
        fingerprint: of its file.
    """

    def fill(start: int, stop: int) -> np.ndarray:
        own = torch.from_numpy(tokens[start:stop].astype(np.float32)).to(pruner.query.device)
        return pruner(own.flatten(0, 1), vla.grid).view(stop - start, -1).cpu().numpy()

    shape = (len(used), tokens.shape[1] * tokens.shape[2])
    key = [*used.identity, vla.encoder_fingerprint, str(vla.dtype), vla.spec.image_size, vla.spec.cameras, fingerprint]
    return filled(used.cache / "scores", key, shape, np.float32, ENCODED_AT_ONCE, fill)


def target(
    sensitive: list[np.ndarray], covered: np.ndarray | None, power: float, foreground_weight: float
) -> np.ndarray:
    """What the softmax of the scores shall be, float32 [B, N] with a sum of 1 for each keyframe.

    Args:
        sensitive: [B, N] of each teacher, which count alike.
        covered: [B, N] fraction of foreground; None without ``foreground_weight``.
    """
    plan = np.mean([shares(each.astype(np.float64) ** power) for each in sensitive], axis=0)
    if covered is None:
        return plan.astype(np.float32)
    seen = covered.sum(1, keepdims=True) > 0
    mixed = (1 - foreground_weight) * plan + foreground_weight * shares(covered.astype(np.float64))
    return np.where(seen, mixed, plan).astype(np.float32)


@overload
def shares(values: np.ndarray) -> np.ndarray: ...


@overload
def shares(values: torch.Tensor) -> torch.Tensor: ...


def shares(values: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
    """Values [B, N], none negative, of an array or a tensor, as fractions of their sum in each row; zeros stay."""
    return values / values.sum(1)[:, None].clip(float(np.finfo(np.float32).tiny))
