"""samples/city is what the command in samples/README.md writes."""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdrive_node.cli import main
from fastdrive_node.errors import SimError
from fastdrive_node.replay.bag import Bag, BagMessage
from fastdrive_node.ros.cdr import parse_compressed
from tests.replay.bags import STORE

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
LARGEST_MEAN_DIFFERENCE = 2.0  # of pixels in 0..255, between OpenGL drivers


def messages(path: Path) -> list[BagMessage]:
    bag = Bag.open(path)
    return list(bag.messages(list(bag.types)))


def pixels(message: BagMessage) -> np.ndarray:
    with Image.open(io.BytesIO(parse_compressed(message.raw).data)) as image:
        return np.asarray(image.convert("RGB"), np.int16)


def values(message) -> Iterator[object]:
    """The numbers and texts of a message, one after the other."""
    if is_dataclass(message):
        for field in fields(message):
            yield from values(getattr(message, field.name))
    elif isinstance(message, (list, np.ndarray)):
        for each in message:
            yield from values(each)
    else:
        yield message


def test_the_sample_bag_is_made_again_by_its_command(tmp_path):
    render = pytest.importorskip("fastdrive_sim.render", reason="the simulator is not installed")
    try:
        render.Renderer(16, 16).close()
    except SimError as error:
        pytest.skip(str(error))
    (line,) = (
        line for line in (SAMPLES / "README.md").read_text().splitlines() if line.startswith("fastdrive sim bag")
    )
    arguments = shlex.split(line)[1:]
    arguments[arguments.index("samples/city")] = str(tmp_path / "city")
    assert main(arguments) == 0
    made, shipped = messages(tmp_path / "city"), messages(SAMPLES / "city")
    assert [(each.topic, each.stamp_ns) for each in made] == [(each.topic, each.stamp_ns) for each in shipped]
    types = Bag.open(SAMPLES / "city").types
    for one, other in zip(made, shipped, strict=True):
        if one.topic.endswith("/compressed"):
            assert np.abs(pixels(one) - pixels(other)).mean() < LARGEST_MEAN_DIFFERENCE
        else:
            found, expected = (STORE.deserialize_cdr(each.raw, types[one.topic]) for each in (one, other))
            for value, wanted in zip(values(found), values(expected), strict=True):
                assert value == wanted or value == pytest.approx(wanted, rel=1e-9, abs=1e-9), one.topic
