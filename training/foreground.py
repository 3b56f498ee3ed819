"""Foreground masks: which label ids are foreground, masks from PNG files, and the coverage of each token's cell."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from fastdrive_node.types import InputError


@dataclass(frozen=True)
class LabelTable:
    """The label ids of a dataset's masks and which of them are foreground."""

    names: dict[int, str]
    foreground: tuple[int, ...]

    @classmethod
    def load(cls, path: Path) -> LabelTable:
        """Read ``labels`` {name: id} and ``foreground_groups`` {group: [label name or id]} of a ``sim.json``.

        Raises InputError where the file is missing, is no JSON, or has a group with an unknown label.
        """
        try:
            content = json.loads(path.read_text())
            ids = {str(name): int(number) for name, number in content["labels"].items()}
            groups = content["foreground_groups"]
            members = [label for group in groups.values() for label in group]
            foreground = tuple(sorted({ids[label] if isinstance(label, str) else int(label) for label in members}))
        except FileNotFoundError:
            raise InputError(f"{path} is missing: without its label table the masks cannot be read") from None
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise InputError(
                f"{path}: no usable label table ({error!r}); it needs labels {{name: id}} and "
                "foreground_groups {group: [label]}"
            ) from None
        return cls({number: name for name, number in ids.items()}, foreground)

    def is_foreground(self, labels: np.ndarray) -> np.ndarray:
        """bool of the same shape as ``labels`` (uint8), True at pixels of a foreground group."""
        lookup = np.zeros(256, bool)
        lookup[list(self.foreground)] = True
        return lookup[labels]


def read_labels(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A mask file as uint8 [H, W] of label ids. ``size`` is (height, width) of the image that it belongs to.

    Raises InputError where the file is missing, is no 8-bit single-channel image, or has another size.
    """
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if labels is None:
        state = "is no readable image" if path.exists() else "is missing"
        raise InputError(f"mask {path} {state}: write the dataset's masks again")
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise InputError(f"mask {path} is {labels.dtype} {list(labels.shape)}, not one 8-bit channel of label ids")
    if labels.shape != tuple(size):
        raise InputError(
            f"mask {path} is {labels.shape[1]}x{labels.shape[0]}, its image {size[1]}x{size[0]}: "
            "write masks at the size of the images"
        )
    return labels


def cell_coverage(mask: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """Share of foreground pixels in the cell of each token.

    ``mask`` is bool [H, W] or [..., H, W]; the cells split the image evenly into ``rows`` x ``cols``, pixels on a
    border count by their area. Returns float32 [..., rows * cols], raster order.
    """
    mask = np.asarray(mask, np.float64)
    over_rows = _cell_weights(mask.shape[-2], rows)
    over_cols = _cell_weights(mask.shape[-1], cols)
    cells = over_rows @ mask @ over_cols.T
    return cells.reshape(*mask.shape[:-2], rows * cols).astype(np.float32)


def _cell_weights(pixels: int, cells: int) -> np.ndarray:
    """float64 [cells, pixels]; each row averages the pixels (or parts of them) that lie in the cell."""
    edges = np.linspace(0, pixels, cells + 1)
    start = np.arange(pixels)
    overlap = np.minimum(start + 1, edges[1:, None]) - np.maximum(start, edges[:-1, None])
    return np.clip(overlap, 0, None) * cells / pixels
