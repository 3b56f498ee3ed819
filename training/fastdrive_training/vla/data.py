"""What training a VLA reads: pixels, dense labels and text of keyframes, decoded once and kept on disk.

Decoding 84,000 JPEG images takes minutes; an epoch over the arrays takes none of that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from fastdrive_node.errors import InputError
from fastdrive_node.families import Vla
from fastdrive_node.families.images import resize
from fastdrive_node.families.prompt import build_prompt
from fastdrive_node.families.spec import spec_json, text_answer
from fastdrive_node.planning.answer_format import format_answer
from fastdrive_node.types import EgoHistory
from fastdrive_training.data.adapters import ImageSource, Item, dataset_identity
from fastdrive_training.data.sampling import with_future
from fastdrive_training.vla.other_speeds import at_other_speeds

LABELS_PER_TOKEN = 4  # dense labels are so many times finer than the tokens, in rows and in columns
LABEL_SAMPLES = 7  # pixels of a label image that are looked at for each label, in rows and in columns
SMALL_OBJECT_COVER = 0.12  # a small object names its cell when it covers this fraction of it
GAPS = ("light_gap_m", "vehicle_gap_m", "pedestrian_gap_m")
LIGHTS = ("none", "green", "yellow", "red", "red_yellow")
NO_GAP_M = 60.0
TEXTS_FORMAT = 3  # another number where the arrays of texts are others: those of earlier runs are written anew
IGNORE = -100


@dataclass(frozen=True)
class ImageGroup:
    """The images of a prompt that have one size, n of them."""

    size: tuple[int, int]  # height, width in px
    grid: tuple[int, int]  # token rows and columns of each
    cameras: tuple[int, ...]  # of the VLA that have this size; the columns of an array
    places: tuple[int, ...]  # of each image in ``Vla.images``
    columns: tuple[int, ...]  # of each image in ``cameras``
    steps: tuple[int, ...]  # of ``frames`` before t0, of each image

    def gather(self, array: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """[B, n, ...] of an array [I, cameras, ...]; ``rows`` as in ``Arrays``, of B keyframes."""
        return array[rows[:, self.steps], self.columns]


def image_groups(vla: Vla) -> tuple[ImageGroup, ...]:
    """The images of the VLA's prompt by size, that of the first camera first."""
    sizes, groups = vla.spec.sizes, []
    for size in dict.fromkeys(sizes):
        cameras = tuple(camera for camera, own in enumerate(sizes) if own == size)
        images = [(place, *image) for place, image in enumerate(vla.images) if image[0] in cameras]
        places, of_camera, steps = zip(*images, strict=True)
        columns = tuple(cameras.index(camera) for camera in of_camera)
        groups.append(ImageGroup(size, vla.grids[cameras[0]], cameras, places, columns, steps))
    return tuple(groups)


@dataclass(frozen=True)
class Arrays:
    """Keyframes with a future, and with the past images that the VLA reads, as arrays.

    K samples: keyframes, and with ``other_speeds`` behind each the same one at other speeds. I keyframes of which
    images are read, T images of each camera in a prompt. Pixels and labels are there for each image size: C cameras,
    tokens in R rows and S columns an image.
    """

    pixels: tuple[np.memmap, ...]  # uint8 [I, C, 3, H, W] at the VLA's image size
    labels: tuple[np.ndarray, ...]  # uint8 [I, C, 4 R, 4 S], class of each cell; zero where the dataset has no masks
    rows: np.ndarray  # int64 [K, T], in pixels and labels: at t0, and at each step before it
    prompts: np.ndarray  # int16 [K, V, L] prompt tokens: the whole history first, then with only 1, 2, 3 states known
    answers: np.ndarray  # int16 [K, A] answer tokens, end of turn included
    futures: np.ndarray  # float32 [K, points, 2] m
    speeds: np.ndarray  # float32 [K] m/s at the keyframe
    lights: np.ndarray  # int64 [K] index in LIGHTS, IGNORE where unknown
    gaps: np.ndarray  # float32 [K, 3] m, capped at NO_GAP_M
    names: np.ndarray  # str [K]

    def __len__(self) -> int:
        return len(self.futures)

    @staticmethod
    def load(*folders: Path) -> Arrays:
        """Open arrays that ``prepare`` wrote."""
        files = {path.stem: path for folder in folders for path in sorted(folder.glob("*.npy"))}
        arrays = {name: np.load(file, mmap_mode="r") for name, file in files.items() if "-" not in name}
        by_size = {
            kind: tuple(np.load(file, mmap_mode="r") for name, file in files.items() if name.startswith(f"{kind}-"))
            for kind in ("pixels", "labels")
        }
        arrays["rows"] = arrays["rows"][arrays.pop("keyframes")]
        names = Arrays.__annotations__.keys() - by_size.keys()
        return Arrays(**by_size, **{name: arrays[name] for name in names})


def prepare(vla: Vla, dataset: ImageSource, cache: Path, workers: int = 2, other_speeds: bool = False) -> Arrays:
    """Decode a dataset for a VLA, or reuse what an earlier run decoded.

    Args:
        cache: a folder for the arrays; those of one VLA form and dataset are kept under their own name.
        workers: processes that decode images and write prompts.
        other_speeds: the keyframes at other speeds too, from a dataset that has labels for them.

    Raises:
        InputError: no keyframe has a future and the past images, or labels for other speeds that are asked for, or one
            of its files is missing or unreadable.
    """
    spec = vla.spec
    if other_speeds and spec.frames is not None:
        raise InputError(f"{vla.path}: frames: past images show the true speed; train it without other_speeds")
    read = [spec.frames and asdict(spec.frames), spec.answer.points, spec.answer.interval_s]
    images = [dataset_identity(dataset, masks=True), spec.sizes, vla.grids, spec.cameras, *read]
    texts = [*images, TEXTS_FORMAT, vla.template, spec_json(vla.spec), vla.tokenizer.get_vocab(), other_speeds]
    # texts first: what is wrong with them is told before minutes of decoding
    written = _once(cache, "texts", texts, lambda folder: _write_texts(vla, dataset, folder, workers, other_speeds))
    return Arrays.load(
        _once(cache, "images", images, lambda folder: _write_images(vla, dataset, folder, workers)), written
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
    """One keyframe to pixels and labels of each image size, in a worker process."""

    def __init__(self, vla: Vla, dataset: ImageSource, indices: list[int]):
        self.dataset, self.indices = dataset, indices
        self.groups = [
            ([vla.spec.cameras[camera] for camera in group.cameras], group.size, label_shape(group))
            for group in image_groups(vla)
        ]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        keyframe, found = self.dataset[self.indices[place]], []
        for cameras, size, shape in self.groups:
            pixels = resize([keyframe.load_image(camera) for camera in cameras], size)
            labels = torch.zeros(len(cameras), *shape, dtype=torch.uint8)
            if keyframe.load_labels is not None:
                masks = (keyframe.load_labels(camera) for camera in cameras)
                labels = torch.from_numpy(np.stack([cell_labels(mask, *shape) for mask in masks]))
            found.append((pixels, labels))
        return found


def label_shape(group: ImageGroup) -> tuple[int, int]:
    """Rows and columns of the dense labels of an image."""
    return LABELS_PER_TOKEN * group.grid[0], LABELS_PER_TOKEN * group.grid[1]


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


def samples_with_images(vla: Vla, dataset: ImageSource) -> np.ndarray:
    """int64 [K, T]: positions of the items to train on, and before each, step by step, those of its past images.

    Items whose past images are not all there are left out, whatever the VLA does without one.
    Raises InputError: no item has a future and the past images, or no stamp.
    """
    spec = vla.spec
    indices, _ = with_future(dataset, None, spec.answer.points, spec.answer.interval_s)
    if spec.frames is None:
        return np.array(indices)[:, None]
    stamps = [dataset[index].stamp_ns for index in range(len(dataset))]
    if None in stamps:
        raise InputError(f"{dataset.root}: an item has no stamp, and a VLA with frames reads images of earlier times")
    times, scenes = np.array(stamps, np.int64), np.array(dataset.scenes)
    found = []
    for index in indices:
        before = np.flatnonzero(scenes[:index] == scenes[index])
        wanted = [times[index] - round(step * spec.frames.interval_s * 1e9) for step in range(1, spec.frames.count)]
        late = [np.abs(times[before] - time_ns) for time_ns in wanted]
        if len(before) and all(each.min() <= spec.frames.tolerance_s * 1e9 for each in late):
            found.append([index, *(before[each.argmin()] for each in late)])
    if not found:
        reach = (spec.frames.count - 1) * spec.frames.interval_s
        raise InputError(f"{dataset.root}: no item with a future has all images of the {reach:g} s before it")
    return np.array(found)


def _write_images(vla: Vla, dataset: ImageSource, folder: Path, workers: int) -> None:
    samples = samples_with_images(vla, dataset)
    used = np.unique(samples)
    np.save(folder / "rows.npy", np.searchsorted(used, samples))
    groups, count = image_groups(vla), len(used)
    arrays = []
    for number, group in enumerate(groups):
        shape = (count, len(group.cameras))
        pixels = open_memmap(folder / f"pixels-{number:02}.npy", "w+", np.uint8, (*shape, 3, *group.size))
        labels = open_memmap(folder / f"labels-{number:02}.npy", "w+", np.uint8, (*shape, *label_shape(group)))
        arrays.append((pixels, labels))
    decoder = _Decoder(vla, dataset, used.tolist())
    loader = DataLoader(decoder, batch_size=None, num_workers=workers, collate_fn=_unchanged)
    for row, found in enumerate(tqdm(loader, desc="decode", unit="keyframe", total=count)):
        for (pixels, labels), (image, cells) in zip(arrays, found, strict=True):
            pixels[row], labels[row] = image.numpy(), cells.numpy()
    for pixels, labels in arrays:
        pixels.flush()
        labels.flush()


def _unchanged(found: Any) -> Any:
    return found


def histories(whole: EgoHistory) -> list[EgoHistory]:
    """The history, and what of it a vehicle would know that has just started; one state alone tells no acceleration."""
    short = [EgoHistory(whole.states[:known], whole.interval_s) for known in (1, 2, 3)]
    short[0] = EgoHistory((replace(whole.now, accel_mps2=0.0),), whole.interval_s)
    return [whole, *short]


class _Texts(Dataset):
    """Prompts, answer and labels of one keyframe, and of it at other speeds, in a worker process."""

    def __init__(self, vla: Vla, dataset: ImageSource, indices: list[int], other_speeds: bool):
        self.vla, self.dataset, self.indices, self.other_speeds = vla, dataset, indices, other_speeds
        self.answer = text_answer(vla.spec, vla.path)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> list[dict[str, Any]]:
        keyframe = self.dataset[self.indices[place]]
        others = at_other_speeds(keyframe) if self.other_speeds else []
        return [{"keyframes": place, **self._texts(each)} for each in (keyframe, *others)]

    def _texts(self, keyframe: Item) -> dict[str, Any]:
        vla, answer = self.vla, self.answer
        future = keyframe.known_future(answer.points, answer.interval_s)
        text = format_answer(future, answer, vla.spec.frame, vla.spec.origin_m)
        (stop,) = vla.eos_ids
        prompts = [build_prompt(vla, each, keyframe.command) for each in histories(keyframe.known_history)]
        ahead = keyframe.extras.get("ahead", {})
        return {
            "prompts": np.array([prompt.input_ids.numpy() for prompt in prompts], np.int16),
            "answers": np.array([*vla.tokenizer.encode(text, add_special_tokens=False), stop], np.int16),
            "futures": future.astype(np.float32),
            "speeds": np.float32(keyframe.known_history.now.speed_mps),
            "lights": LIGHTS.index(ahead["light"]) if "light" in ahead else IGNORE,
            "gaps": np.array([min(max(ahead.get(name, NO_GAP_M), 0.0), NO_GAP_M) for name in GAPS], np.float32),
            "names": f"{keyframe.scene} {keyframe.name}",
        }


def _write_texts(vla: Vla, dataset: ImageSource, folder: Path, workers: int, other_speeds: bool) -> None:
    indices = samples_with_images(vla, dataset)[:, 0].tolist()
    # all of them here, for an error of a worker process comes as its traceback
    if other_speeds and not sum(len(at_other_speeds(dataset[index])) for index in indices):
        raise InputError(
            f"{dataset.root}: no labels for other speeds; write it with `fastdrive sim dataset --other-speeds N`"
        )
    texts = _Texts(vla, dataset, indices, other_speeds)
    loader = DataLoader(texts, batch_size=None, num_workers=workers, collate_fn=_unchanged)
    rows = [row for rows in tqdm(loader, desc="prompts", unit="keyframe", total=len(texts)) for row in rows]
    for name in rows[0]:
        np.save(folder / f"{name}.npy", np.array([row[name] for row in rows]))
