"""Coverage-guided fuzzing of the parsers of camera messages, whose bytes come from anywhere.

    python -m benchmarks.robustness.fuzz_atheris --seconds 60

Serialized images and compressed images, which are decoded whole and at a fraction of their size, and camera infos.
Atheris (pip install atheris, Python 3.11 to 3.13) changes valid messages so that they reach branches that were not
reached before. Any exception but InputError is a defect: the run ends at once with another exit status than 0, and
writes the bytes to the folder of ``--found``. ``--again FILE`` runs them once more, without atheris.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

INSTRUMENTED = ("fastdrive_node.ros.cdr", "fastdrive_node.ros.images", "PIL")
PLUGINS = ("PIL.JpegImagePlugin", "PIL.PngImagePlugin")  # which PIL imports when it first needs them
PROGRESSIVE = {"progressive": True}
LEAST = (8, 8)  # height, width in px that a JPEG must keep
STAMP_NS = 1_700_000_000_000_000_000
RSS_LIMIT_MB = 2048  # an image has at most 64 megapixels


def parsers() -> dict[str, Callable[[bytes], object]]:
    """What reads the serialized messages of each type; the first byte of an input says which."""
    from fastdrive_node.ros.cdr import parse_camera_info
    from fastdrive_node.ros.images import camera_frame

    def loaded(message: bytes, compressed: bool) -> None:
        load: Any = camera_frame("CAM_FRONT", message, STAMP_NS, compressed).load
        whole, scaled = load(), load.scaled(LEAST)
        for pixels in (whole, scaled.pixels):
            assert pixels.dtype.name == "uint8" and pixels.ndim == 3 and pixels.shape[2] == 3, pixels.shape
        assert scaled.size == whole.shape[:2], (scaled.size, whole.shape)

    return {
        "Image": lambda message: loaded(message, False),
        "CompressedImage": lambda message: loaded(message, True),
        "CameraInfo": parse_camera_info,
    }


def check(data: bytes) -> None:
    """Read one input. Raises what the parser raises, but for InputError, which refuses the message."""
    from fastdrive_node.errors import InputError

    readers = list(parsers().values())
    if not data:
        return
    with contextlib.suppress(InputError):
        readers[data[0] % len(readers)](data[1:])


def write_samples(folder: Path) -> int:
    """Write valid messages of each type as inputs. Returns their number."""
    from PIL import Image
    from rclpy.serialization import serialize_message
    from sensor_msgs.msg import CameraInfo

    from benchmarks.robustness.fuzz import samples_of
    from benchmarks.robustness.live_node import compressed_image

    files = []
    for mode, form, more in (("RGB", "PNG", {}), ("P", "PNG", {}), ("L", "JPEG", {}), ("RGB", "JPEG", PROGRESSIVE)):
        Image.effect_noise((24, 16), 60).convert(mode).save(file := io.BytesIO(), form, **more)
        files.append(compressed_image(STAMP_NS, file.getvalue(), form.lower()))
    infos = [CameraInfo(height=900, width=1600, distortion_model="plumb_bob", d=[0.1] * 5), CameraInfo()]
    samples = {
        "Image": samples_of("Image", STAMP_NS),
        "CompressedImage": [*samples_of("CompressedImage", STAMP_NS), *files],
        "CameraInfo": [serialize_message(info) for info in infos],
    }
    inputs = [bytes([place]) + message for place, name in enumerate(parsers()) for message in samples[name]]
    for number, content in enumerate(inputs):
        (folder / f"sample{number}").write_bytes(content)
    return len(inputs)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="1 or more (default: %(default)s)")
    parser.add_argument("--corpus", type=Path, help="keeps what reached new branches, for the next run")
    parser.add_argument("--found", type=Path, default=Path("."), help="folder for bytes that failed (default: .)")
    parser.add_argument("--again", type=Path, metavar="FILE", help="run these bytes once more")
    options = parser.parse_args(arguments)
    if options.again is not None:
        check(options.again.read_bytes())
        return
    try:
        import atheris  # pyright: ignore[reportMissingModuleSource]
    except ImportError:
        sys.exit("fuzz_atheris: atheris is not installed: pip install atheris (Python 3.11 to 3.13)")
    fuzzer: Any = atheris
    with fuzzer.instrument_imports(include=list(INSTRUMENTED)):
        for plugin in PLUGINS:
            importlib.import_module(plugin)
        parsers()
    corpus = options.corpus or Path(tempfile.mkdtemp(prefix="fastdrive-fuzz-"))
    for folder in (corpus, options.found):
        folder.mkdir(parents=True, exist_ok=True)
    write_samples(corpus)
    limits = [f"-max_total_time={options.seconds}", f"-rss_limit_mb={RSS_LIMIT_MB}", f"-seed={options.seed}"]
    flags = ["-print_final_stats=1", f"-artifact_prefix={options.found}/"]
    fuzzer.Setup([sys.argv[0], *limits, *flags, str(corpus)], check)
    fuzzer.Fuzz()  # ends the process


if __name__ == "__main__":
    main()
