"""Six JPEGs of 1600x900 to what the vision encoder reads: whole and one by one, or scaled while decoded, on threads.

    python -m benchmarks.studies.images --bag BAG --topics config/topics_nuscenes.yaml --json images.json

The first complete frame set of a bag with JPEGs; without one the images of the sample bag are enlarged to 1600x900 and
compressed, which have less detail than a camera's. Whole and scaled take turns. ``difference``
is the mean difference of the model's pixels, of 255.

``--decoders`` compares the decoders of JPEGs that are installed instead: PIL, as the node has it, OpenCV, simplejpeg
and PyTurboJPEG (with libturbojpeg), at the same fraction, in turns, and their pixels with PIL's.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.studies.jpeg_decoders import compare
from benchmarks.studies.summary import summarize, to_text
from fastdrive_node.benchmark.timing import Case, measure
from fastdrive_node.devices import describe
from fastdrive_node.errors import FastDriveError, InputError
from fastdrive_node.families import Vla, load_vla
from fastdrive_node.families.spec import default_vla_dir
from fastdrive_node.planning.images import ImageDecoder
from fastdrive_node.replay.bag import Recording
from fastdrive_node.replay.samples import planning_samples
from fastdrive_node.ros.cdr import CompressedView
from fastdrive_node.ros.images import ImageLoader
from fastdrive_node.ros.topics import load_topic_map
from fastdrive_node.types import CameraFrame

SAMPLE = Path("samples/city")
SIZE = (1600, 900)
QUALITY = 90
PIXEL_DEVIATION = 0.27  # of a normalised value, mean of the three channels


def recorded(vla: Vla, bag: Path, topics: Path | None) -> list[CameraFrame]:
    """The first complete set of a bag."""
    given = None if topics is None else load_topic_map(topics)
    found = planning_samples(Recording.open(bag, given, vla.spec.cameras), 0, vla.spec.history.interval_s, 1)
    if not found:
        raise InputError(f"{bag}: no frame set of all cameras with odometry")
    return list(found[0].frames.frames)


def enlarged(frames: Sequence[CameraFrame]) -> list[CameraFrame]:
    """The same images as JPEGs of a camera's size, as they come from the topics."""
    made = []
    for frame in frames:
        file = io.BytesIO()
        Image.fromarray(frame.load()).resize(SIZE, Image.Resampling.BICUBIC).save(file, "jpeg", quality=QUALITY)
        view = CompressedView(0, frame.camera, "jpeg", memoryview(file.getvalue()))
        made.append(replace(frame, load=ImageLoader(frame.camera, view)))
    return made


@torch.inference_mode()
def run(vla: Vla, frames: Sequence[CameraFrame], runs: int) -> dict[str, Any]:
    """Median, p99 and the difference of both ways."""
    vision = vla.torch_vision()
    whole, scaled = ImageDecoder(threads=1), ImageDecoder(vla.spec.size_by_camera)
    decoders = {"whole, one by one": whole, "scaled, on threads": scaled}
    preprocess_ms: dict[str, list[float]] = {name: [] for name in decoders}

    def load(name: str) -> torch.Tensor:
        images = [image.pixels for image in decoders[name].decode(frames)]
        begun = time.perf_counter()
        patches = vision.preprocess(images)
        preprocess_ms[name].append((time.perf_counter() - begun) * 1e3)
        return patches

    timings = measure({name: Case(lambda _, name=name: load(name)) for name in decoders}, runs, vla.device)
    rows = {
        name: {
            "median_ms": round(timing.median_ms, 2),
            "p99_ms": timing.spread["p99_ms"],
            "preprocess_median_ms": round(float(np.median(preprocess_ms[name])), 2),
        }
        for name, timing in timings.items()
    }
    one, other = (load(name) for name in decoders)
    height, width = decoders["whole, one by one"].decode(frames)[0].pixels.shape[:2]
    return {
        "images": len(frames),
        "size": [width, height],
        "model_size": list(next(iter(vla.spec.size_by_camera.values()))),
        "rows": rows,
        "difference": round(float((one - other).abs().mean()) * PIXEL_DEVIATION * 255, 3),
        **describe(vla.device),
    }


def run_decoders(vla: Vla, frames: Sequence[CameraFrame], runs: int) -> dict[str, Any]:
    """The decoders that are installed, on the JPEGs of the frames. Raises InputError: one is no JPEG."""
    jpegs = []
    for frame in frames:
        if not isinstance(frame.load, ImageLoader) or not frame.load.shrinks:
            raise InputError(f"{frame.camera}: no JPEG; give a bag with JPEGs, or none")
        jpegs.append(bytes(frame.load.view.data))
    least = next(iter(vla.spec.size_by_camera.values()))
    return {"images": len(jpegs), **compare(jpegs, least, runs), **describe(vla.device)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vla", type=Path, help="VLA directory (default: the shipped one)")
    parser.add_argument("--bag", type=Path, help="with JPEGs (default: the sample bag, enlarged)")
    parser.add_argument("--topics", type=Path, help="topic map of the bag")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--decoders", action="store_true", help="compare decoders of JPEGs")
    parser.add_argument("--json", type=Path, help="(default: standard output)")
    args = parser.parse_args(arguments)
    if args.runs < 1:
        parser.error(f"--runs: {args.runs}; give 1 or more")
    vla = load_vla(args.vla or default_vla_dir())
    frames = recorded(vla, args.bag or SAMPLE, args.topics)
    if args.bag is None:
        frames = enlarged(frames)
    source = "the sample bag, enlarged" if args.bag is None else args.bag.name
    figures = run_decoders(vla, frames, args.runs) if args.decoders else run(vla, frames, args.runs)
    text = to_text(summarize({"source": source, **figures}))
    if args.json is None:
        print(text)
    else:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    try:
        main()
    except FastDriveError as error:
        sys.exit(f"images: {error}")
