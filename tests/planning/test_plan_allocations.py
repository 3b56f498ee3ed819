"""Plans after the first take no more memory from one to the next, and none for keys and values."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastdrive_node.families.qwen2_5_vl.kv_cache import KvMemory
from fastdrive_node.planning.loading import open_pipeline
from fastdrive_node.replay.bag import Recording
from fastdrive_node.replay.samples import planning_samples
from fastdrive_node.types import CAMERAS
from tests.generation import text_first

LARGE = 4096  # bytes; every activation of models/tiny that has a row for each token is larger


class NewStorages(TorchDispatchMode):
    """Counts the large tensors that operations put into new memory, by their size in bytes."""

    def __init__(self):
        super().__init__()
        self.sizes: Counter[int] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {each.untyped_storage().data_ptr() for each in _tensors((args, kwargs))}
        new = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in _tensors(out)}
        self.sizes.update(size for place, size in new.items() if size >= LARGE and place not in given)
        return out


def _tensors(tree):
    return [each for each in tree_leaves(tree) if isinstance(each, torch.Tensor)]


@pytest.fixture(scope="module")
def samples():
    return planning_samples(Recording.open("samples/city", None, CAMERAS), 4, 0.5, limit=2)


@pytest.fixture
def allocated(monkeypatch) -> list[int]:
    """Elements of each memory for keys and values that is allocated."""
    sizes: list[int] = []
    real = KvMemory._allocate
    monkeypatch.setattr(
        KvMemory, "_allocate", lambda self, elements, like: sizes.append(elements) or real(self, elements, like)
    )
    return sizes


def test_the_count_sees_new_memory_and_no_views():
    values = torch.zeros(64, 64)
    with torch.inference_mode(), NewStorages() as counted:
        values[:32].add_(1.0)
        values.view(-1)
        torch.nn.functional.linear(values, values)
    assert counted.sizes == {64 * 64 * 4: 1}


@pytest.mark.parametrize(
    ("pruner", "drop", "drafts", "head"),
    [(None, 0.5, True, False), (None, 0.75, True, True), (None, 0.0, False, False), ("fastv", 0.5, True, False)],
)
def test_plans_take_as_much_memory_as_the_plans_before_and_none_for_keys_and_values(
    tmp_path, samples, allocated, pruner, drop, drafts, head
):
    pipeline = open_pipeline(text_first(tmp_path / "vla") if head else None, pruner, drop, drafts=drafts)
    pipeline.warm_up()
    assert len(allocated) == (2 if head else 1)
    rounds = []
    for _ in range(4):
        plans = []
        for sample in samples:
            with NewStorages() as counted:
                plan = pipeline.plan(sample.frames, sample.history, sample.command)
            plans.append((plan.text, counted.sizes))
        rounds.append(plans)
    assert len(allocated) == (2 if head else 1)
    assert rounds[1] == rounds[2] == rounds[3], "a plan takes other memory than the same plan took before"
    for (_, first), (_, later) in zip(rounds[0], rounds[1], strict=True):
        assert sum(later.values()) > 0 and later <= first, "the first of them makes masks that are kept"
