"""Foreground masks: label tables, folders of mask files with their checksums, and the coverage of each token's cell.

The simulator's exact masks, those of ``fastdrive annotate`` and those of other datasets are read by the same classes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from fastdrive_node.errors import InputError

MANIFEST, INDEX = "manifest.json", "images.jsonl"  # of an annotated folder; the index is written last
TABLES = ("sim.json", "labels.json")  # label tables of folders that hold masks without a manifest
KNOWN_FRACTION = 0.5  # of a cell; with fewer pixels that count its coverage is not known


def size_of(image: np.ndarray) -> tuple[int, int]:
    """(height, width) of an image or mask [H, W, ...]."""
    height, width = image.shape[:2]
    return height, width


@dataclass(frozen=True)
class Regions:
    """What a mask says of one image."""

    foreground: np.ndarray  # bool [H, W]
    ignore: np.ndarray | None = None  # bool [H, W], True where the label is in doubt; None where nothing is


@dataclass(frozen=True)
class LabelTable:
    """The label ids of a dataset's masks: which are foreground, and which say that the label is in doubt."""

    names: dict[int, str]
    foreground: tuple[int, ...]
    ignore: tuple[int, ...] = ()

    @classmethod
    def load(cls, path: Path) -> LabelTable:
        """Read ``labels`` {name: id}, ``foreground_groups`` {group: [label name or id]} and, if there, ``ignore``
        (an id or a list of them) of a JSON file.

        Raises InputError where the file is missing, is no JSON, has a group with an unknown label or an id that 8 bits
        do not hold.
        """
        try:
            content = json.loads(path.read_text())
            ids = {str(name): int(number) for name, number in content["labels"].items()}
            groups = content["foreground_groups"]
            members = [label for group in groups.values() for label in group]
            foreground = tuple(sorted({ids[label] if isinstance(label, str) else int(label) for label in members}))
            doubt = content.get("ignore", [])
            ignore = tuple(int(number) for number in (doubt if isinstance(doubt, list) else [doubt]))
            if not all(0 <= number <= 255 for number in (*ids.values(), *foreground, *ignore)):
                raise ValueError("an id is outside 0..255")
        except FileNotFoundError:
            raise InputError(f"{path} is missing: without its label table the masks cannot be read") from None
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise InputError(
                f"{path}: no usable label table ({error!r}); it needs labels {{name: id}} and "
                "foreground_groups {group: [label]}"
            ) from None
        return cls({number: name for name, number in ids.items()}, foreground, ignore)

    def is_foreground(self, labels: np.ndarray) -> np.ndarray:
        """bool of the same shape as ``labels`` (uint8), True at pixels of a foreground group."""
        return _lookup(self.foreground)[labels]

    def regions(self, labels: np.ndarray) -> Regions:
        """Foreground and doubtful pixels of ``labels`` (uint8 [H, W])."""
        return Regions(self.is_foreground(labels), _lookup(self.ignore)[labels] if self.ignore else None)


def _lookup(numbers: tuple[int, ...]) -> np.ndarray:
    lookup = np.zeros(256, bool)
    lookup[list(numbers)] = True
    return lookup


class MaskFolder:
    """A folder with ``masks/<camera>/<name>.png`` (label ids, 8 bits) and their label table.

    The table is ``manifest.json`` of ``fastdrive annotate``, the simulator's ``sim.json``, or a ``labels.json``.

    Args:
        root: the folder.
        split: of the data that the masks are for. An annotated folder serves the split that it was made for only.

    Raises:
        InputError: no label table there, an annotation that is not complete or was made for another split.
    """

    def __init__(self, root: str | Path, split: str | None = None):
        self.root = Path(root)
        self._checksums: dict[tuple[str, str], bytes] | None = None  # SHA-256 by camera and name
        if (self.root / MANIFEST).exists():
            self.table_path = self.root / MANIFEST
            self._open_annotation(split)
        else:
            found = [self.root / name for name in TABLES if (self.root / name).exists()]
            self.table_path = found[0] if found else self.root / TABLES[0]
        self.labels = LabelTable.load(self.table_path)

    @property
    def files(self) -> list[Path]:
        """The files that change when the masks are made again."""
        return [self.table_path, self.root / INDEX]

    def path(self, camera: str, name: str) -> Path:
        return self.root / "masks" / camera / f"{name}.png"

    def load_labels(self, camera: str, name: str, size: tuple[int, int]) -> np.ndarray:
        """uint8 [H, W] label ids; ``size`` is (height, width) of the image. Raises InputError as :func:`read_labels`,
        and where the file is not the one that was annotated.
        """
        if self._checksums is None:
            return read_labels(self.path(camera, name), size)
        return read_labels(self.path(camera, name), size, self._checksums.get((camera, name), b""))

    def load(self, camera: str, name: str, size: tuple[int, int]) -> Regions:
        """Foreground and doubtful pixels of one image. Raises InputError as :meth:`load_labels`."""
        return self.labels.regions(self.load_labels(camera, name, size))

    def require(self, cameras: tuple[str, ...], names: list[str]) -> None:
        """Raises InputError where an annotated folder lacks a mask of these items; others are seen when read."""
        if self._checksums is None:
            return
        absent = [f"{camera}/{name}" for name in names for camera in cameras if (camera, name) not in self._checksums]
        if absent:
            raise InputError(
                f"{self.root}: has no mask of {absent[0]} ({len(absent)} of {len(names) * len(cameras)} are absent): "
                "it was made from other images; annotate these"
            )

    def _open_annotation(self, split: str | None) -> None:
        made_for = annotated_split(self.root)
        if made_for != split:
            raise InputError(
                f"{self.root / MANIFEST}: the masks are of split {made_for or 'none'}, the data of split "
                f"{split or 'none'}: splits do not mix; annotate this split into a folder of its own"
            )
        if not (self.root / INDEX).exists():
            raise InputError(f"{self.root}: the annotation is not complete; run fastdrive annotate to its end")
        try:
            entries = [json.loads(line) for line in (self.root / INDEX).read_text().splitlines()]
            self._checksums = {
                (entry["camera"], entry["name"]): bytes.fromhex(entry["mask_sha256"]) for entry in entries
            }
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{self.root / INDEX}: broken ({error!r}); run fastdrive annotate again") from None


def annotated_split(root: Path) -> str | None:
    """The split that an annotated folder was made for. Raises InputError: no readable manifest."""
    try:
        return json.loads((root / MANIFEST).read_text())["source"]["split"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{root / MANIFEST}: no manifest of masks ({error!r}); annotate into another folder") from None


def read_labels(path: Path, size: tuple[int, int], sha256: bytes | None = None) -> np.ndarray:
    """A mask file as uint8 [H, W] of label ids. ``size`` is (height, width) of the image that it belongs to.

    Raises InputError where the file is missing, is no 8-bit single-channel image, has another size, or is not the file
    that ``sha256`` (32 bytes, if given) was taken of.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"mask {path} is missing: write the dataset's masks again") from None
    if sha256 is not None and hashlib.sha256(content).digest() != sha256:
        raise InputError(f"mask {path} is not the file that was written (SHA-256): run fastdrive annotate again")
    labels = decode_png(content)
    if labels is None:
        raise InputError(f"mask {path} is no readable image: write the dataset's masks again")
    return checked_labels(labels, size, f"mask {path}")


def decode_png(content: bytes) -> np.ndarray | None:
    """The pixels of an encoded image as they are stored; None where it cannot be decoded."""
    if not content:
        return None
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)


def checked_labels(labels: np.ndarray, size: tuple[int, int], what: str) -> np.ndarray:
    """``labels`` where they are uint8 [H, W] of the image's size; InputError that names ``what`` otherwise."""
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise InputError(f"{what} is {labels.dtype} {list(labels.shape)}, not one 8-bit channel of label ids")
    if labels.shape != tuple(size):
        raise InputError(
            f"{what} is {labels.shape[1]}x{labels.shape[0]}, its image {size[1]}x{size[0]}: "
            "write masks at the size of the images"
        )
    return labels


def cell_coverage(mask: np.ndarray, rows: int, cols: int, ignore: np.ndarray | None = None) -> np.ndarray:
    """Fraction of foreground pixels in the cell of each token, among the pixels that count.

    ``mask`` is bool [H, W] or [..., H, W]; the cells split the image evenly into ``rows`` x ``cols``, pixels on a
    border count by their area. Pixels of ``ignore`` (bool, same shape) do not count; where less than half of a cell
    does, its coverage is NaN. Returns float32 [..., rows * cols], raster order.
    """
    if ignore is None:
        return _cell_means(mask, rows, cols).astype(np.float32)
    counted = _cell_means(~ignore, rows, cols)
    covered = _cell_means(mask & ~ignore, rows, cols)
    fraction = np.divide(covered, counted, out=np.zeros_like(covered), where=counted > 0)
    return np.where(counted >= KNOWN_FRACTION - 1e-9, fraction, np.nan).astype(np.float32)


def _cell_means(mask: np.ndarray, rows: int, cols: int) -> np.ndarray:
    mask = np.asarray(mask, np.float64)
    over_rows = _cell_weights(mask.shape[-2], rows)
    over_cols = _cell_weights(mask.shape[-1], cols)
    cells = over_rows @ mask @ over_cols.T
    return cells.reshape(*mask.shape[:-2], rows * cols)


def _cell_weights(pixels: int, cells: int) -> np.ndarray:
    """float64 [cells, pixels]; each row averages the pixels (or parts of them) that lie in the cell."""
    edges = np.linspace(0, pixels, cells + 1)
    start = np.arange(pixels)
    overlap = np.minimum(start + 1, edges[1:, None]) - np.maximum(start, edges[:-1, None])
    return np.clip(overlap, 0, None) * cells / pixels
