"""Memory of keys and values comes again, and never while another cache has it."""

from __future__ import annotations

import itertools

import pytest
import torch

from fastdrive_node.families.qwen2_5_vl import kv_cache
from fastdrive_node.families.qwen2_5_vl.kv_cache import KvMemory
from fastdrive_node.families.qwen2_5_vl.language import TorchLanguage
from fastdrive_node.pruning.baselines.fastv import FastV
from fastdrive_node.pruning.pruner import PruningContext
from tests.families.checks import scene_of
from tests.generation import generate, prefill_chosen


class Counted(KvMemory):
    """Counts what it allocates."""

    allocated = 0

    def _allocate(self, elements, like):
        self.allocated += 1
        return super()._allocate(elements, like)


@pytest.fixture
def memory(tiny_vla):
    return Counted(tiny_vla.config.text_config)


@pytest.fixture
def like(tiny_vla):
    return tiny_vla.model.lm_head.weight


def addresses(cache):
    return {part.data_ptr() for part in (*cache.keys, *cache.values)}


def spans(cache):
    """First and last address of each layer's keys and values."""
    parts = (*cache.keys, *cache.values)
    return sorted((part.data_ptr(), part.data_ptr() + part.numel() * part.element_size()) for part in parts)


@torch.inference_mode()
def test_the_memory_of_a_cache_that_is_gone_comes_again_for_lengths_of_the_same_step(memory, like):
    first = memory.cache(1, 130, like)
    place = min(addresses(first))
    del first
    for length in (130, 150, 192, 40):
        cache = memory.cache(1, length, like)
        assert min(addresses(cache)) == place and cache.used == 0
        assert {part.shape[2] for part in (*cache.keys, *cache.values)} == {length}
        del cache
    assert memory.allocated == 1
    memory.cache(1, 193, like)
    assert memory.allocated == 2


@torch.inference_mode()
def test_caches_that_are_held_at_once_share_no_memory(memory, like):
    held = [memory.cache(1, length, like) for length in (60, 100, 60)]
    ends = sorted(span for cache in held for span in spans(cache))
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ends))
    freed = addresses(held[1])
    del held[1]
    assert addresses(memory.cache(1, 100, like)) == freed and memory.allocated == 3


@torch.inference_mode()
def test_memory_that_nobody_holds_is_kept_for_few_caches_the_largest(memory, like):
    held = [memory.cache(1, length, like) for length in (60, 300, 100, 200)]
    del held
    assert len(memory._free) == kv_cache._FREE
    before = memory.allocated
    large = memory.cache(1, 300, like)
    middle = memory.cache(1, 250, like)
    assert memory.allocated == before and addresses(large).isdisjoint(addresses(middle))


@torch.inference_mode()
def test_the_memory_goes_with_the_language_model(memory, like):
    cache = memory.cache(1, 60, like)
    del memory
    cache.keys[0].zero_()
    del cache  # nobody is left to take it back


def test_batches_other_types_and_what_may_need_a_gradient_take_memory_of_their_own(memory, like):
    with torch.inference_mode():
        memory.cache(1, 60, like)
        assert memory.cache(1, 60, like.bfloat16()).keys[0].dtype == torch.bfloat16
        memory.cache(3, 60, like)
    assert memory.allocated == 3 and len(memory._free) == 2
    with torch.no_grad():
        cache = memory.cache(1, 60, like)
        assert not cache.keys[0].is_inference()
        del cache
    assert memory.allocated == 4 and len(memory._free) == 2


@torch.inference_mode()
def test_nothing_of_an_old_plan_is_read(tiny_vla, ego_history):
    _, visual, prompt = scene_of(tiny_vla, ego_history)
    asked = tiny_vla, visual.raster(), torch.arange(90), prompt
    language = TorchLanguage(tiny_vla)
    first = generate(language, *asked)
    for part in language._memory._free:
        part.fill_(torch.nan)
    assert generate(language, *asked) == first
    assert all(part.isnan().any() for part in language._memory._free), "what is behind the prompt is not written"


@torch.inference_mode()
def test_a_layer_that_misses_tokens_has_a_shorter_part_of_the_same_memory(tiny_vla, ego_history):
    """A pruner inside of the language model, in memory that held another plan."""
    _, visual, prompt = scene_of(tiny_vla, ego_history)
    language, context = TorchLanguage(tiny_vla), PruningContext(visual)
    states = []
    for _ in range(2):
        done = prefill_chosen(language, FastV(), [context], [prompt], 60, 8)
        states.append((done.logits, addresses(done.cache), [part.shape[2] for part in done.cache.keys]))
        del done
        for part in language._memory._free:
            part.fill_(torch.nan)
    assert torch.equal(states[0][0], states[1][0]) and states[0][1:] == states[1][1:]
    assert len(set(states[0][2])) == 2
