"""Fuzzed serialized messages of every input through the callbacks of a live node, and whether it still plans then.

``python -m benchmarks.robustness.fuzz --messages 100000`` sends as many of each type: mutations of valid messages
(truncated, extended, flipped bits, extreme numbers, spliced) and random bytes. It ends with 1 where an exception was
raised that nobody expected, or where valid frame sets are no longer planned.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from geometry_msgs.msg import AccelWithCovarianceStamped
from PIL import Image as Picture
from rclpy.serialization import serialize_message
from std_msgs.msg import Float64, String

from benchmarks.robustness.live_node import (
    HEIGHT,
    WIDTH,
    DirectPlanner,
    compressed_image,
    image,
    inputs_of,
    live_node,
    now_ns,
    odometry,
    plans_a_set,
    send_set,
    stamp,
)
from fastdrive_node import logs
from fastdrive_node.ros.node import FastDriveNode
from fastdrive_node.types import CAMERAS, Command

WORDS = [0, 1, 2, 3, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE, 1_000_000_000, 64_000_001]
DOUBLES = [float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 1e200, 5e-324, 1e18, -0.0, 0.0, 1.0, -1.0]
ENCODINGS = {"rgb8": 3, "bgr8": 3, "mono8": 1, "bayer_rggb8": 1, "yuv422": 2, "mono16": 2, "32FC1": 4, "nv21": 1}
FRESH_EVERY = 50  # messages between two valid frame sets, so that the planner has work


@dataclass(frozen=True)
class Fuzzed:
    """What became of the messages of one type."""

    type: str
    sent: int
    ignored: int  # of them, told and counted
    defects: int  # exceptions that nobody expected; any is a fault of the node
    plans: int
    planned_after: bool
    messages_per_s: float


def mutated(rng: random.Random, samples: Sequence[bytes]) -> bytes:
    """A sample with one to four changes, or random bytes."""
    if rng.random() < 0.05:
        return rng.randbytes(rng.randrange(200))
    data = bytearray(rng.choice(samples))
    for _ in range(rng.randint(1, 4)):
        rng.choice(_MUTATIONS)(rng, data, samples)
    return bytes(data)


def _truncate(rng: random.Random, data: bytearray, samples: Sequence[bytes]) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _extend(rng: random.Random, data: bytearray, samples: Sequence[bytes]) -> None:
    data += rng.randbytes(rng.randrange(64))


def _flip(rng: random.Random, data: bytearray, samples: Sequence[bytes]) -> None:
    for _ in range(rng.randint(1, 8) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _word(rng: random.Random, data: bytearray, samples: Sequence[bytes]) -> None:
    """An extreme length, size or time where CDR has a number of four bytes."""
    if len(data) >= 8:
        struct.pack_into("<I", data, 4 + 4 * rng.randrange((len(data) - 4) // 4), rng.choice(WORDS))


def _double(rng: random.Random, data: bytearray, samples: Sequence[bytes]) -> None:
    if len(data) >= 12:
        struct.pack_into("<d", data, 4 + 8 * rng.randrange((len(data) - 4) // 8), rng.choice(DOUBLES))


def _splice(rng: random.Random, data: bytearray, samples: Sequence[bytes]) -> None:
    other = rng.choice(samples)
    at = rng.randrange(len(data) + 1)
    data[at:] = other[at : at + 4 * rng.randrange(16)] + data[at:]


def _encapsulate(rng: random.Random, data: bytearray, samples: Sequence[bytes]) -> None:
    """Another byte order, or an encapsulation of another middleware."""
    data[:2] = rng.choice([b"\x00\x00", b"\x00\x02", b"\x00\x03", b"\xff\xff"])


_MUTATIONS = (_truncate, _extend, _flip, _word, _double, _word, _double, _splice, _encapsulate)


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    Picture.fromarray(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def _acceleration(ns: int) -> bytes:
    message = AccelWithCovarianceStamped()
    message.header.stamp = stamp(ns)
    message.accel.accel.linear.x = 1.0
    return serialize_message(message)


def samples_of(kind: str, ns: int) -> list[bytes]:
    """Valid messages of an input type, stamped ``ns``."""
    if kind == "Image":
        return [image(ns, encoding, channels) for encoding, channels in ENCODINGS.items()]
    if kind == "CompressedImage":
        return [compressed_image(ns, _jpeg()), compressed_image(ns, _jpeg()[:40], "png")]
    if kind == "Odometry":
        return [odometry(ns), odometry(ns, -3.0)]
    if kind == "String":
        return [serialize_message(String(data=word)) for word in (*(each.value for each in Command), "u-turn", "")]
    if kind == "Float64":
        return [serialize_message(Float64(data=value)) for value in (0.0, 0.3, -0.6)]
    return [_acceleration(ns)]


INPUTS: dict[str, tuple[str, ...]] = {  # of a node with raw images; the other transport needs another node
    "Image": CAMERAS,
    "Odometry": ("odometry",),
    "String": ("command",),
    "Float64": ("steering",),
    "AccelWithCovarianceStamped": ("acceleration",),
}
TYPES = (*INPUTS, "CompressedImage")
PARAMETERS: dict[str, object] = {"steering_input": "float64", "acceleration_input": True, "odometry_wait_s": 0.0}


def fuzz(messages: int, seed: int = 0, types: Sequence[str] = TYPES) -> list[Fuzzed]:
    """Send as many fuzzed messages of each type; one node for the raw inputs, another for compressed images."""
    rng = random.Random(seed)
    results = []
    for transport in ("raw", "compressed"):
        chosen = [kind for kind in types if (kind == "CompressedImage") == (transport == "compressed")]
        if not chosen:
            continue
        planner = DirectPlanner()
        with live_node(planner, {"image_transport": transport, **PARAMETERS}) as node:
            results += [_fuzz_type(node, planner, kind, messages, rng) for kind in chosen]
    return results


def _fuzz_type(node: FastDriveNode, planner: DirectPlanner, kind: str, messages: int, rng: random.Random) -> Fuzzed:
    names = INPUTS.get(kind, CAMERAS)
    picture: Callable[[int], bytes] = image
    if kind == "CompressedImage":
        jpeg = _jpeg()
        picture = lambda ns: compressed_image(ns, jpeg)  # noqa: E731
    callbacks = inputs_of(node).callbacks
    ignored, defects, plans = _ignored(node, names), _defects(node), planner.plans
    began, samples = time.monotonic(), samples_of(kind, now_ns())
    for count in range(messages):
        if count % FRESH_EVERY == 0:
            ns = now_ns()
            samples = samples_of(kind, ns)
            send_set(node, ns, picture)
        callbacks[names[count % len(names)]](mutated(rng, samples))
    took_s = time.monotonic() - began
    node.publish_diagnostics()
    planned_after = plans_a_set(node, planner, picture)
    return Fuzzed(
        kind,
        messages,
        _ignored(node, names) - ignored,
        _defects(node) - defects,
        planner.plans - plans,
        planned_after,
        round(messages / took_s, 1),
    )


def _ignored(node: FastDriveNode, names: Sequence[str]) -> int:
    return sum(inputs_of(node).unusable[name] for name in names)


def _defects(node: FastDriveNode) -> int:
    """Of the callbacks, and of the thread that plans, whose refusals of such exceptions have the code "internal"."""
    return sum(inputs_of(node).defects.values()) + node._status.mode.refusals.get("internal", 0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fuzzed messages through the callbacks of a live node")
    parser.add_argument("--messages", type=int, default=100_000, help="of each type (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--types", nargs="+", choices=TYPES, default=TYPES)
    parser.add_argument("--json", help="write the figures here")
    options = parser.parse_args(arguments)
    logs.set_up()
    results = fuzz(options.messages, options.seed, options.types)
    for each in results:
        print(
            f"{each.type}: {each.sent} sent, {each.ignored} ignored, {each.defects} defects, {each.plans} plans, "
            f"{'plans on' if each.planned_after else 'PLANS NO MORE'}, {each.messages_per_s:.0f} messages/s"
        )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as stream:
            json.dump({"seed": options.seed, "types": [asdict(each) for each in results]}, stream, indent=2)
    return int(any(each.defects or not each.planned_after for each in results))


if __name__ == "__main__":
    sys.exit(main())
