"""Fixtures of several rooms: untrained tiny VLAs."""

import pytest
import torch
from hypothesis import settings

from fastdrive_node.planning.vla import Vla, load_vla
from fastdrive_node.types import EgoHistory, EgoState
from fastdrive_training.tiny_vla import build_tiny_vla

torch.set_num_threads(1)
settings.register_profile("suite", deadline=None)  # times vary with the machine's load
settings.load_profile("suite")


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory):
    """An untrained tiny VLA directory; tests must not change it."""
    return build_tiny_vla(tmp_path_factory.mktemp("vla") / "tiny", seed=0)


@pytest.fixture(scope="session")
def tiny_vla(tiny_dir) -> Vla:
    return load_vla(tiny_dir)


@pytest.fixture(scope="session")
def ego_history() -> EgoHistory:
    """Five states, 0.5 s apart, of a vehicle that drives a bend at 5.2 m/s."""
    states = tuple(
        EgoState(-int(5e8 * k), 10 - 2.6 * k, 5 - 0.1 * k * k, 0.3 - 0.05 * k, 5.2, 0.1, 0.1) for k in range(5)
    )
    return EgoHistory(states, interval_s=0.5)
