"""The installed decoders of JPEGs at a fraction of their size, for ``benchmarks.studies.images --decoders``.

Each reads the header, takes the smallest of 1/8, 1/4, 1/2 and 1 that leaves at least the size that is asked for, and
gives uint8 RGB, as ``fastdrive_node.ros.images.decode_compressed`` does with PIL. Nothing is checked here.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastdrive_node.benchmark.timing import Case, measure

Decode = Callable[[bytes, tuple[int, int]], np.ndarray]  # JPEG, least (height, width) px -> uint8 RGB [h, w, 3]


def divisor(size: tuple[int, int], least: tuple[int, int]) -> int:
    """Of height and width, such that at least ``least`` is left of ``size``."""
    return max(n for n in (1, 2, 4, 8) if n == 1 or all(-(-a // n) >= b for a, b in zip(size, least, strict=True)))


def pillow(data: bytes, least: tuple[int, int]) -> np.ndarray:
    """The product's."""
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as opened:
        opened.draft("RGB", least[::-1])
        return np.asarray(opened)


def opencv() -> Decode:
    """Raises ImportError."""
    import cv2

    flags = {
        1: cv2.IMREAD_COLOR,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }

    def decode(data: bytes, least: tuple[int, int]) -> np.ndarray:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as opened:  # OpenCV does not give the header
            by = divisor((opened.height, opened.width), least)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags[by] | cv2.IMREAD_IGNORE_ORIENTATION)
        assert image is not None
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    return decode


def simplejpeg() -> Decode:
    """Raises ImportError."""
    import simplejpeg as package  # pyright: ignore[reportMissingImports]

    def decode(data: bytes, least: tuple[int, int]) -> np.ndarray:
        height, width = package.decode_jpeg_header(data)[:2]
        by = divisor((height, width), least)
        return package.decode_jpeg(data, "RGB", min_height=-(-height // by), min_width=-(-width // by), min_factor=by)

    return decode


def turbojpeg() -> Decode:
    """PyTurboJPEG. Raises ImportError: it or libturbojpeg is not installed."""
    import turbojpeg as package  # pyright: ignore[reportMissingImports]

    try:
        decoder: Any = package.TurboJPEG()
    except RuntimeError as error:  # of another version than the package needs, too
        raise ImportError(" ".join(str(error).split())[:80]) from error

    def decode(data: bytes, least: tuple[int, int]) -> np.ndarray:
        width, height = decoder.decode_header(data)[:2]
        by = divisor((height, width), least)
        return decoder.decode(data, pixel_format=package.TJPF_RGB, scaling_factor=(1, by))

    return decode


OTHERS: Mapping[str, Callable[[], Decode]] = {
    "cv2.imdecode, reduced": opencv,
    "simplejpeg": simplejpeg,
    "PyTurboJPEG": turbojpeg,
}


def compare(jpegs: Sequence[bytes], least: tuple[int, int], runs: int) -> dict[str, Any]:
    """Milliseconds for all the JPEGs, one by one and on threads, in turns, and how the pixels differ from PIL's.

    Args:
        least: (height, width) in px that must be left.
    """
    decoders: dict[str, Decode] = {"PIL, draft": pillow}
    absent: dict[str, str] = {}
    for name, make in OTHERS.items():
        try:
            decoders[name] = make()
        except ImportError as error:
            absent[name] = str(error)
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        cases = {}
        for name, decode in decoders.items():
            cases[name] = Case(lambda _, decode=decode: [decode(data, least) for data in jpegs])
            cases[f"{name}, on threads"] = Case(
                lambda _, decode=decode: list(pool.map(lambda data: decode(data, least), jpegs))
            )
        timings = measure(cases, runs, torch.device("cpu"))
    wanted = [pillow(data, least) for data in jpegs]
    return {
        "least": list(least),
        "decoded": list(wanted[0].shape[:2]),
        "threads": threads,
        "absent": absent,
        "rows": {
            name: {
                "one_by_one_ms": round(timings[name].median_ms, 2),
                "on_threads_ms": round(timings[f"{name}, on threads"].median_ms, 2),
                "ratio_to_pil": [
                    round(ratio(timings[f"{name}{how}"].ms, timings[f"PIL, draft{how}"].ms), 3)
                    for how in ("", ", on threads")
                ],
                **difference([decode(data, least) for data in jpegs], wanted),
            }
            for name, decode in decoders.items()
        },
    }


def ratio(times: Sequence[float], of: Sequence[float]) -> float:
    """Median of the ratios turn by turn."""
    return float(np.median(np.divide(times, of)))


def difference(images: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> dict[str, Any]:
    """Mean and largest difference of the pixels, of 255; None where the sizes differ."""
    if any(one.shape != other.shape for one, other in zip(images, wanted, strict=True)):
        return {"difference_mean": None, "difference_max": None}
    apart = np.stack([np.abs(np.subtract(a, b, dtype=np.int16)) for a, b in zip(images, wanted, strict=True)])
    return {"difference_mean": round(float(apart.mean()), 4), "difference_max": int(apart.max())}
