"""FastV and SparseVLM on cases worked out by hand."""

import math

import pytest
import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.families.prompt import build_prompt
from fastdrive_node.families.qwen2_5_vl.language import TorchLanguage
from fastdrive_node.pruning.baselines.fastv import FastV
from fastdrive_node.pruning.baselines.sparsevlm import (
    SparseVlm,
    best_count,
    cluster_count,
    merge_by_density,
    recycled_count,
)
from fastdrive_node.pruning.layer_pruning import LayerStep, Reached, tokens_by_layer
from fastdrive_node.pruning.pruner import PruningContext
from fastdrive_node.pruning.registry import make_pruner
from tests.generation import prefill_chosen


def reached(attention, hidden):
    return Reached(hidden, torch.zeros(len(hidden), dtype=torch.int64), lambda: attention)


UNMERGED = SparseVlm(merge=False, name="sparsevlm-unmerged")


def test_fastv_drops_once_in_front_of_layer_two():
    assert FastV().steps(28, 1000, 250) == (LayerStep(2, 250),)


def test_fastv_asks_the_last_token_alone():
    assert FastV().raters(torch.zeros(5, 4), torch.zeros(7, 4)).tolist() == [6]


def test_fastv_keeps_the_most_attended_in_order():
    attention = torch.tensor([0.1, 0.4, 0.0, 0.3, 0.4])
    choice = FastV().choose_in_layer(reached(attention, torch.zeros(5, 4)), 3)
    assert choice.indices.tolist() == [1, 3, 4] and choice.hidden is None


@pytest.mark.parametrize("layers", [1, 2])
def test_fastv_refuses_a_model_that_ends_before_its_layer(layers):
    with pytest.raises(ModelError, match="before layer 2"):
        FastV().steps(layers, 100, 50)


def test_fastv_in_the_model_keeps_what_the_last_token_attends_to_in_layer_one(tiny_vla, ego_history, monkeypatch):
    prompt = build_prompt(tiny_vla, ego_history)
    tokens = torch.randn(192, 128, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(tiny_vla.model.config.text_config, "_attn_implementation", "eager")
    with torch.inference_mode():
        embeddings = tiny_vla.model.get_input_embeddings()(prompt.input_ids)
        embeddings[prompt.visual] = tokens
        weights = tiny_vla.model.model.language_model(
            inputs_embeds=embeddings[None], position_ids=prompt.position_ids[:, None], output_attentions=True
        ).attentions
    best = weights[1][0, :, -1, prompt.visual].mean(dim=0).topk(48).indices.sort().values
    language = TorchLanguage(tiny_vla)
    context = PruningContext.of(tokens.view(6, 32, -1), tiny_vla.grid)
    done = prefill_chosen(language, make_pruner("fastv"), [context], [prompt], 48, 1)
    assert torch.equal(done.kept[0], best) and done.tokens_by_layer == (192, 192, 48)


def test_sparsevlm_drops_behind_the_layers_that_stand_where_the_published_ones_do():
    layers = {depth: [step.layer for step in UNMERGED.steps(depth, 1000, 400)] for depth in (32, 36, 28, 4, 2)}
    assert layers == {32: [3, 7, 16], 36: [3, 8, 18], 28: [3, 6, 14], 4: [1, 2, 3], 2: [1]}


def mean_over_layers(layers, total, keep):
    return sum(tokens_by_layer(layers, total, UNMERGED.steps(layers, total, keep))) / layers


@pytest.mark.parametrize("layers,total,keep", [(32, 576, 192), (32, 576, 128), (28, 3249, 812), (4, 192, 144)])
def test_sparsevlms_budget_is_the_mean_over_the_layers(layers, total, keep):
    assert mean_over_layers(layers, total, keep) == pytest.approx(keep, abs=0.6)
    counts = tokens_by_layer(layers, total, UNMERGED.steps(layers, total, keep))
    first, second, third = sorted(set(counts), reverse=True)[1:]
    assert first / total == pytest.approx(second / first, abs=0.01) == third / second
    assert third < keep < first


def test_sparsevlm_leaves_a_quarter_of_the_budget_where_the_first_layer_alone_uses_it_up():
    assert [step.keep for step in UNMERGED.steps(4, 192, 48)] == [12, 12, 12]
    assert mean_over_layers(4, 192, 48) == 57


def test_sparsevlm_keeps_everything_where_everything_is_asked_for():
    assert [step.keep for step in UNMERGED.steps(32, 64, 64)] == [64, 64, 64]


def test_sparsevlm_refuses_a_model_of_one_layer():
    with pytest.raises(ModelError, match="sparsevlm-unmerged: a language model of 1 layers"):
        UNMERGED.steps(1, 100, 50)


def test_raters_are_the_words_above_the_average_of_softmax():
    visual = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    text = torch.tensor([[math.log(2.0), 0.0], [0.0, math.log(3.0)], [0.0, 0.0]])
    # softmax over the words: rows (2, 1, 1) / 4 twice, (1, 3, 1) / 5; means 0.4, 0.3667, 0.2333 against 1 / 3
    assert UNMERGED.raters(visual, text).tolist() == [0, 1]


def test_of_equally_relevant_words_all_rate():
    assert UNMERGED.raters(torch.ones(3, 2), torch.ones(5, 2)).tolist() == [0, 1, 2, 3, 4]


def test_unmerged_keeps_the_best_without_merging():
    choice = UNMERGED.choose_in_layer(reached(torch.tensor([0.5, 0.1, 0.3, 0.2]), torch.zeros(4, 2)), 2)
    assert choice.indices.tolist() == [0, 2] and choice.hidden is None


def test_thirty_percent_of_the_dropped_are_merged_into_a_tenth_and_one():
    assert [recycled_count(dropped) for dropped in (0, 3, 4, 10, 100)] == [0, 0, 1, 3, 30]
    assert [cluster_count(recycled) for recycled in (0, 1, 9, 10, 30)] == [0, 1, 1, 2, 4]


def test_kept_and_merged_tokens_make_up_the_budget():
    for total in (5, 48, 192, 1000):
        for keep in range(1, total + 1):
            count = best_count(total, keep)
            clusters = cluster_count(recycled_count(total - count))
            assert 1 <= count <= keep
            assert count == keep or count + clusters == keep
    assert best_count(100, 40) == 38  # 62 dropped, 18 recycled, 2 clusters
    assert best_count(100, 100) == 100


def test_merging_puts_the_mean_of_each_cluster_at_the_place_of_its_centre():
    # keep 3 of 12: 2 best, of 10 dropped the best 3 recycled, 1 cluster
    attention = torch.tensor([9.0, 0.1, 0.7, 0.2, 0.3, 5.0, 0.4, 6.0, 0.5, 7.0, 0.6, 8.0])
    hidden = torch.arange(12.0)[:, None].expand(12, 4).clone()
    hidden[[5, 7, 9]] = torch.tensor([[1.0], [2.0], [6.0]]).expand(3, 4)
    choice = SparseVlm().choose_in_layer(reached(attention, hidden), 3)
    # one cluster, so one neighbor: a token itself; all are equally dense, so the earliest is the only peak
    assert choice.indices.tolist() == [0, 5, 11]
    assert choice.hidden[:, 0].tolist() == [0.0, 3.0, 11.0]


def test_clusters_are_found_around_their_densest_members():
    generator = torch.Generator().manual_seed(0)
    groups = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    hidden = (groups[:, None] + 0.1 * torch.randn(3, 8, 2, generator=generator)).flatten(0, 1)
    centres, merged = merge_by_density(hidden, 3)
    assert (centres // 8).tolist() == [0, 1, 2]
    torch.testing.assert_close(merged, hidden.view(3, 8, 2).mean(dim=1))


@pytest.mark.parametrize("clusters", [1, 2, 4])
def test_equal_tokens_merge_into_themselves(clusters):
    centres, merged = merge_by_density(torch.ones(4, 3), clusters)
    assert len(set(centres.tolist())) == clusters
    assert torch.equal(merged, torch.ones(clusters, 3))


def test_one_token_is_its_own_cluster():
    centres, merged = merge_by_density(torch.tensor([[2.0, 3.0]]), 1)
    assert centres.tolist() == [0] and merged.tolist() == [[2.0, 3.0]]
