import itertools

import pytest
import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.pruning import registry
from fastdrive_node.pruning.catalog import PRUNERS
from fastdrive_node.pruning.checkpoint import save_pruner
from fastdrive_node.pruning.pruner import PruningContext
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.pruning.registry import make_pruner
from tests.generation import choose as choose_tokens

TOKENS = torch.randn(6, 32, 128, generator=torch.Generator().manual_seed(0))
CONTEXT = PruningContext.of(TOKENS, (4, 8))


def choose(pruner, keep):
    return choose_tokens(pruner, CONTEXT, keep).tolist()


def test_none_keeps_everything():
    assert choose(make_pruner("none"), 48) == list(range(192))


def test_random_keeps_as_many_as_asked_in_raster_order():
    kept = choose(make_pruner("random"), 48)
    assert len(set(kept)) == 48 and kept == sorted(kept) and kept != list(range(48))


def test_random_depends_on_its_seed_alone():
    first, again, other = make_pruner("random", seed=3), make_pruner("random", seed=3), make_pruner("random", seed=4)
    choices = [choose(first, 48), choose(first, 48)]
    torch.manual_seed(99)
    assert [choose(again, 48), choose(again, 48)] == choices
    assert choose(other, 48) not in choices and choices[0] != choices[1]


def test_random_without_a_seed_depends_on_the_tokens_alone():
    pruner, other = make_pruner("random"), PruningContext.of(TOKENS + 0.001, (4, 8))
    first, second = choose(pruner, 48), choose_tokens(pruner, other, 48).tolist()
    assert first != second and choose(pruner, 48) == first, "whatever was asked before"
    assert choose_tokens(make_pruner("random"), other, 48).tolist() == second


def test_uniform_takes_the_middle_of_equal_parts():
    assert choose(make_pruner("uniform"), 4) == [24, 72, 120, 168]
    assert choose(make_pruner("uniform"), 192) == list(range(192))


@pytest.mark.parametrize("keep", [1, 7, 100, 191])
def test_uniform_keeps_as_many_as_asked_with_even_gaps(keep):
    kept = choose(make_pruner("uniform"), keep)
    gaps = {after - before for before, after in itertools.pairwise(kept)}
    assert len(kept) == keep and kept[-1] < 192
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_reconpruner_keeps_the_highest_scores(tiny_vla, tmp_path):
    module = ReconPruner(tiny_vla.family, tiny_vla.config.text_config).eval()
    save_pruner(tmp_path / "pruner.safetensors", module, tiny_vla.encoder_fingerprint)
    pruner = make_pruner("reconpruner", tiny_vla, tmp_path / "pruner.safetensors")
    with torch.inference_mode():
        scores = pruner.score(CONTEXT)
        kept = choose(pruner, 48)
    assert set(kept) == set(scores.flatten().topk(48).indices.tolist())


def test_an_unknown_pruner_is_refused_with_the_known_ones():
    with pytest.raises(ModelError, match="'fastest' is not known; known are none, random, "):
        make_pruner("fastest")


def test_each_name_gives_the_pruner_of_that_name(tiny_vla, tmp_path):
    module = ReconPruner(tiny_vla.family, tiny_vla.config.text_config)
    save_pruner(tmp_path / "pruner.safetensors", module, tiny_vla.encoder_fingerprint)
    assert [make_pruner(name, tiny_vla, tmp_path / "pruner.safetensors").name for name in PRUNERS] == list(PRUNERS)


def test_reconpruner_without_a_file_is_refused(tiny_vla):
    with pytest.raises(ModelError, match="a pruner file"):
        make_pruner("reconpruner", tiny_vla)


def test_the_registry_makes_the_pruners_of_the_catalog():
    assert tuple(registry._BY_NAME) == PRUNERS
