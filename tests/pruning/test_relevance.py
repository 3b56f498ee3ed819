"""CDPruner and the oracle mask: by hand, and against determinants computed as such."""

import pytest
import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.pruning.baselines.cdpruner import CdPruner, likeliest_set
from fastdrive_node.pruning.baselines.diversity import directions
from fastdrive_node.pruning.baselines.simple import OraclePruner
from fastdrive_node.pruning.pruner import PruningContext
from tests.generation import choose


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_relevance_is_the_mean_cosine_with_the_text_scaled_to_one():
    tokens = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]]])
    text = torch.tensor([[5.0, 0.0], [0.0, 0.1], [7.0, 0.0]])
    # mean cosines 2/3, 1/3 and (2/3 + 1/3) / sqrt(2) = 0.7071
    scores = CdPruner().score(PruningContext.of(tokens, (1, 3), text=text))
    expected = torch.tensor([[(2 / 3 - 1 / 3) / (0.5**0.5 - 1 / 3), 0.0, 1.0]])
    torch.testing.assert_close(scores, expected)


def test_equally_relevant_tokens_are_chosen_by_their_difference_alone():
    tokens = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
    text = torch.tensor([[1.0, 1.0]])
    assert choose(CdPruner(), PruningContext.of(tokens, (1, 4), text=text), 2).tolist() == [0, 2]


def test_cdpruner_by_hand():
    vectors = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    quality = torch.tensor([1.0, 0.9, 0.5])
    # first 0 (gain 1). Behind it 1 has 0.81 - (0.9 * 0.8)^2 = 0.2916, 2 has 0.25: 1 follows
    assert likeliest_set(vectors, quality, 1).tolist() == [0]
    assert likeliest_set(vectors, quality, 2).tolist() == [0, 1]
    # with q = 0.6 for 1, 0.36 * (1 - 0.64) = 0.1296 loses against 0.25
    assert likeliest_set(vectors, torch.tensor([1.0, 0.6, 0.5]), 2).tolist() == [0, 2]


def naive_greedy(vectors, quality, keep):
    kernel = (quality[:, None] * (vectors @ vectors.T) * quality[None]).double()
    chosen = []
    while len(chosen) < keep:
        others = [i for i in range(len(vectors)) if i not in chosen]
        chosen.append(max(others, key=lambda i: float(torch.linalg.det(kernel[[*chosen, i]][:, [*chosen, i]]))))
    return sorted(chosen)


@pytest.mark.parametrize("keep", [1, 2, 7, 12])
def test_cdpruner_maximises_the_determinant_greedily(keep):
    vectors, quality = directions(draw(40, 24)).double(), torch.rand(40, generator=torch.Generator().manual_seed(1))
    assert likeliest_set(vectors, quality, keep).tolist() == naive_greedy(vectors, quality.double(), keep)


def test_beyond_the_rank_of_the_kernel_relevance_decides():
    vectors, quality = directions(draw(30, 4)), torch.linspace(0, 1, 30)
    first = set(likeliest_set(vectors, quality, 4).tolist())
    kept = set(likeliest_set(vectors, quality, 20).tolist())
    others = [index for index in range(29, -1, -1) if index not in first]
    assert kept == first | set(others[:16])


def test_all_tokens_can_be_kept():
    context = PruningContext.of(draw(2, 10, 4), (2, 5), text=draw(3, 4))
    assert choose(CdPruner(), context, 20).tolist() == list(range(20))


def test_cdpruner_follows_the_text():
    tokens = directions(draw(60, 24)).view(2, 30, 24)
    near_first = PruningContext.of(tokens, (5, 6), text=tokens[0, :1])
    kept = choose(CdPruner(), near_first, 5)
    assert 0 in kept.tolist()
    assert kept.tolist() != choose(CdPruner(), PruningContext.of(tokens, (5, 6), text=tokens[1, :1]), 5).tolist()


def test_cdpruner_without_text_is_refused():
    with pytest.raises(ModelError, match="text"):
        choose(CdPruner(), PruningContext.of(draw(1, 4, 4), (2, 2)), 2)


def test_the_oracle_keeps_the_most_foreground_and_breaks_ties_by_text_attention():
    coverage = torch.tensor([[0.0, 0.5, 0.0], [1.0, 0.0, 0.5]])
    attention = torch.tensor([[0.3, 0.1, 0.1], [0.0, 0.2, 0.4]])
    context = PruningContext.of(draw(2, 3, 4), (1, 3), text_attention=attention, coverage=coverage)
    order = [3, 5, 1, 0, 4, 2]
    for keep in range(1, 7):
        assert choose(OraclePruner(), context, keep).tolist() == sorted(order[:keep])


@pytest.mark.parametrize("field", ["coverage", "text_attention"])
def test_the_oracle_without_its_truth_is_refused(field):
    fields = {"coverage": torch.rand(1, 4), "text_attention": torch.rand(1, 4)}
    fields.pop(field)
    with pytest.raises(ModelError, match=field):
        choose(OraclePruner(), PruningContext.of(draw(1, 4, 4), (2, 2), **fields), 2)
