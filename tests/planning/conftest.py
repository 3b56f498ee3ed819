"""A frame set of noise, an untrained pruner, and answers that the language model is made to give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdrive_node.planning.answer_format import format_answer
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.pruning.score_pruner import ScorePruner
from fastdrive_node.types import CAMERAS, CameraFrame, FrameSet
from tests.generation import answer_with


def frame(camera, load, stamp_ns=10**9):
    return CameraFrame(camera, stamp_ns, stamp_ns, load)


def image_of(index, height=112, width=224):
    return np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def frames():
    return tuple(frame(camera, lambda i=i: image_of(i)) for i, camera in enumerate(CAMERAS))


@pytest.fixture
def frame_set(frames):
    return FrameSet(frames, t0_ns=10**9)


@pytest.fixture(scope="module")
def pruner(tiny_vla):
    torch.manual_seed(0)
    return ScorePruner(ReconPruner(tiny_vla.family, tiny_vla.config.text_config).requires_grad_(False).eval())


@pytest.fixture
def says(monkeypatch):
    """Sets what the language model answers; everything before still runs."""

    return lambda text: answer_with(monkeypatch, text)


@pytest.fixture
def good_plan(tiny_vla, says):
    waypoints = np.array([[2.5 * k, 0.2] for k in range(1, 7)])
    says(format_answer(waypoints, tiny_vla.spec.answer))
    return waypoints
