"""``samples.npz`` of a run: held-out keyframes, their reconstructed foreground and background, and the scores."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_MAX_BYTES = 1 << 31  # of all arrays, unpacked
_PICTURES = ("images", "fore", "back")


@dataclass(frozen=True)
class HeldOutSamples:
    """S keyframes of C cameras."""

    names: tuple[str, ...]
    cameras: tuple[str, ...]
    images: np.ndarray  # uint8 [S, C, H, W, 3]
    foreground: np.ndarray  # bool [S, C, H, W]
    fore: np.ndarray  # uint8 [S, C, H, W, 3], rebuilt from the tokens with a score above zero
    back: np.ndarray  # uint8 [S, C, H, W, 3], rebuilt from the others
    scores: np.ndarray  # float32 [S, C, rows, cols]
    step: int | None

    def targets(self, white: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """What ``fore`` and ``back`` should be: the images blanked outside and inside the foreground.

        ``white`` puts white images in their place: the targets of a decoder that rebuilds masks.
        """
        inside = self.foreground[..., None]
        images = np.full_like(self.images, 255) if white else self.images
        return images * inside, images * ~inside


def read_samples(path: Path) -> HeldOutSamples:
    """Raises ValueError where the file is no such archive; the text names the array and what is wrong with it."""
    arrays = _load(path)
    names, cameras = (_words(key, arrays) for key in ("names", "cameras"))
    images = _array("images", arrays, "uint8", (len(names), len(cameras), None, None, 3))
    shape = images.shape
    for key in _PICTURES[1:]:
        _array(key, arrays, "uint8", shape)
    _array("foreground", arrays, "bool", shape[:4])
    scores = _array("scores", arrays, "float", (*shape[:2], None, None))
    if not np.isfinite(scores).all():
        raise ValueError("scores holds values that are no finite numbers")
    step = arrays.get("step")
    return HeldOutSamples(
        names,
        cameras,
        **{key: arrays[key] for key in (*_PICTURES, "foreground")},
        scores=scores.astype(np.float32),
        step=int(step) if step is not None and step.shape == () and step.dtype.kind in "iu" else None,
    )


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > _MAX_BYTES:
            raise ValueError(f"its arrays take {size} bytes, more than {_MAX_BYTES}")
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except ValueError:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds for a damaged archive
        raise ValueError("no readable archive of arrays") from error


def _array(key: str, arrays: dict[str, np.ndarray], kind: str, shape: tuple[int | None, ...]) -> np.ndarray:
    array = arrays.get(key)
    if array is None:
        raise ValueError(f"{key} is missing")
    wanted = f"{kind} [{', '.join('any' if side is None else str(side) for side in shape)}]"
    fits = len(array.shape) == len(shape) and all(
        side > 0 and expected in (None, side) for side, expected in zip(array.shape, shape, strict=True)
    )
    if not fits or not array.dtype.name.startswith(kind):
        raise ValueError(f"{key} is {array.dtype.name} {list(array.shape)}, not {wanted}")
    return array


def _words(key: str, arrays: dict[str, np.ndarray]) -> tuple[str, ...]:
    return tuple(str(word) for word in _array(key, arrays, "str", (None,)))
