"""What training a VLA reads: pixels, dense labels and text of every keyframe, decoded once and kept on disk.

Decoding 84,000 JPEG images takes minutes; an epoch over the arrays takes none of that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from fastdrive_node.families import Vla
from fastdrive_node.families.images import resize
from fastdrive_node.families.prompt import build_prompt
from fastdrive_node.families.spec import spec_json, text_answer
from fastdrive_node.planning.answer_format import format_answer
from fastdrive_node.types import EgoHistory
from fastdrive_training.data.adapters import ImageSource, dataset_identity
from fastdrive_training.data.sampling import with_future

LABELS_PER_TOKEN = 4  # dense labels are so many times finer than the tokens, in rows and in columns
LABEL_SAMPLES = 7  # pixels of a label image that are looked at for each label, in rows and in columns
SMALL_OBJECT_COVER = 0.12  # a small object names its cell when it covers this fraction of it
GAPS = ("light_gap_m", "vehicle_gap_m", "pedestrian_gap_m")
LIGHTS = ("none", "green", "yellow", "red", "red_yellow")
NO_GAP_M = 60.0
IGNORE = -100


@dataclass(frozen=True)
class Arrays:
    """Every keyframe with a future, as arrays; K keyframes, C cameras, tokens in R rows and S columns an image."""

    pixels: np.memmap  # uint8 [K, C, 3, H, W] at the VLA's image size
    labels: np.ndarray  # uint8 [K, C, 4 R, 4 S], the class of each cell; all zero where the dataset has no masks
    prompts: np.ndarray  # int16 [K, V, L] prompt tokens: the whole history first, then with only 1, 2, 3 states known
    answers: np.ndarray  # int16 [K, A] answer tokens, end of turn included
    futures: np.ndarray  # float32 [K, points, 2] m
    lights: np.ndarray  # int64 [K] index in LIGHTS, IGNORE where unknown
    gaps: np.ndarray  # float32 [K, 3] m, capped at NO_GAP_M
    names: np.ndarray  # str [K]

    def __len__(self) -> int:
        return len(self.futures)

    @staticmethod
    def load(*folders: Path) -> Arrays:
        """Open arrays that ``prepare`` wrote."""
        files = {path.stem: path for folder in folders for path in folder.glob("*.npy")}
        return Arrays(**{name: np.load(files[name], mmap_mode="r") for name in Arrays.__annotations__})


def prepare(vla: Vla, dataset: ImageSource, cache: Path) -> Arrays:
    """Decode a dataset for a VLA, or reuse what an earlier run decoded.

    Args:
        cache: a folder for the arrays; those of one VLA form and dataset are kept under their own name.

    Raises:
        InputError: no keyframe has a future, or one of its files is missing or unreadable.
    """
    images = [dataset_identity(dataset, masks=True), vla.spec.image_size, vla.grid, vla.spec.cameras]
    texts = [*images, vla.template, spec_json(vla.spec), vla.tokenizer.get_vocab()]
    return Arrays.load(
        _once(cache, "images", images, lambda folder: _write_images(vla, dataset, folder)),
        _once(cache, "texts", texts, lambda folder: _write_texts(vla, dataset, folder)),
    )


def _once(cache: Path, kind: str, key: list, write: Callable[[Path], None]) -> Path:
    """The folder of ``key``, written by the first who asks."""
    text = json.dumps(key, sort_keys=True)
    folder = cache / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write(folder)
        (folder / "complete").write_text(text + "\n")
    return folder


class _Decoder(Dataset):
    """One keyframe to pixels and labels, in a worker process."""

    def __init__(self, vla: Vla, dataset: ImageSource, indices: list[int]):
        self.dataset, self.indices = dataset, indices
        self.image_size, self.cameras = vla.spec.image_size, vla.spec.cameras
        self.rows, self.columns = (LABELS_PER_TOKEN * tokens for tokens in vla.grid)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        keyframe = self.dataset[self.indices[place]]
        pixels = resize([keyframe.load_image(camera) for camera in self.cameras], self.image_size)
        if keyframe.load_labels is None:
            return pixels, torch.zeros(len(self.cameras), self.rows, self.columns, dtype=torch.uint8)
        labels = (keyframe.load_labels(camera) for camera in self.cameras)
        return pixels, torch.from_numpy(np.stack([cell_labels(each, self.rows, self.columns) for each in labels]))


def cell_labels(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The class of each cell of a label image: the largest, or a small object's that covers enough of it.

    Args:
        mask: uint8 [H, W] label ids.

    Returns:
        uint8 [rows, columns].
    """
    height, width = mask.shape
    y = (np.arange(rows * LABEL_SAMPLES) * height) // (rows * LABEL_SAMPLES)
    x = (np.arange(columns * LABEL_SAMPLES) * width) // (columns * LABEL_SAMPLES)
    cells = mask[np.ix_(y, x)].reshape(rows, LABEL_SAMPLES, columns, LABEL_SAMPLES)
    ids = np.unique(cells)
    cover = np.stack([(cells == label).mean((1, 3)) for label in ids])
    area = cover.mean((1, 2))
    weight = np.where(cover > SMALL_OBJECT_COVER, cover / np.sqrt(area + 0.01)[:, None, None], 0.1 * cover)
    return ids[weight.argmax(0)]


def _with_future(vla: Vla, dataset: ImageSource) -> list[int]:
    return with_future(dataset, None, vla.spec.answer.points, vla.spec.answer.interval_s)[0]


def _write_images(vla: Vla, dataset: ImageSource, folder: Path) -> None:
    indices = _with_future(vla, dataset)
    decoder = _Decoder(vla, dataset, indices)
    shape = (len(indices), len(vla.spec.cameras))
    pixels = open_memmap(folder / "pixels.npy", "w+", np.uint8, (*shape, 3, *vla.spec.image_size))
    labels = open_memmap(folder / "labels.npy", "w+", np.uint8, (*shape, decoder.rows, decoder.columns))
    loader = DataLoader(decoder, batch_size=None, num_workers=2)
    for place, (image, cells) in enumerate(tqdm(loader, desc="decode", unit="keyframe")):
        pixels[place], labels[place] = image.numpy(), cells.numpy()
    pixels.flush()
    labels.flush()


def histories(whole: EgoHistory) -> list[EgoHistory]:
    """The history, and what of it a vehicle would know that has just started; one state alone tells no acceleration."""
    short = [EgoHistory(whole.states[:known], whole.interval_s) for known in (1, 2, 3)]
    short[0] = EgoHistory((replace(whole.now, accel_mps2=0.0),), whole.interval_s)
    return [whole, *short]


def _write_texts(vla: Vla, dataset: ImageSource, folder: Path) -> None:
    vla.require_one_frame("training")
    vla.require_one_size("training")
    keyframes, answer = [dataset[index] for index in _with_future(vla, dataset)], text_answer(vla.spec, vla.path)
    futures = [keyframe.known_future(answer.points, answer.interval_s) for keyframe in keyframes]
    (stop,) = vla.eos_ids
    prompts = [
        [build_prompt(vla, each, keyframe.command).input_ids.numpy() for each in histories(keyframe.known_history)]
        for keyframe in tqdm(keyframes, desc="prompts", unit="keyframe")
    ]
    texts = [format_answer(future, answer, vla.spec.frame, vla.spec.origin_m) for future in futures]
    answers = [[*vla.tokenizer.encode(text, add_special_tokens=False), stop] for text in texts]
    ahead = [keyframe.extras.get("ahead", {}) for keyframe in keyframes]
    gaps = [[min(max(a.get(name, NO_GAP_M), 0.0), NO_GAP_M) for name in GAPS] for a in ahead]
    np.save(folder / "prompts.npy", np.array(prompts, np.int16))
    np.save(folder / "answers.npy", np.array(answers, np.int16))
    np.save(folder / "futures.npy", np.array(futures, np.float32))
    np.save(folder / "lights.npy", np.array([LIGHTS.index(a["light"]) if "light" in a else IGNORE for a in ahead]))
    np.save(folder / "gaps.npy", np.array(gaps, np.float32))
    np.save(folder / "names.npy", np.array([f"{keyframe.scene} {keyframe.name}" for keyframe in keyframes]))
