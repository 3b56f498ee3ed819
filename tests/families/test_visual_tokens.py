"""Visual tokens with their raster indices: all of them, or the best that an engine gives."""

import pytest
import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.families import VisualTokens

GRID = (2, 3)


@pytest.fixture
def tokens():
    return torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def best(tokens):
    """Ten of the 24 tokens, in another order, with a feature for a later language layer."""
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))[:10]
    rows = tokens.flatten(0, 1)[order]
    return VisualTokens(rows, order, (4, *GRID), scores=torch.zeros(4, 6), layer_features=(2 * rows,))


def test_all_tokens_are_the_raster_again(tokens):
    visual = VisualTokens.from_raster(tokens, GRID)
    assert visual.complete and visual.total == 24 and visual.grid == (4, 2, 3)
    assert torch.equal(visual.raster(), tokens)


def test_all_tokens_in_another_order_are_the_raster_again(tokens):
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    assert torch.equal(VisualTokens(tokens.flatten(0, 1)[order], order, (4, *GRID)).raster(), tokens)


def test_rows_are_found_by_their_raster_index(tokens, best):
    kept = best.indices.sort().values[2:7]
    assert torch.equal(best.take(kept), tokens.flatten(0, 1)[kept])
    chosen = best.keep(kept)
    assert torch.equal(chosen.rows, tokens.flatten(0, 1)[kept]) and torch.equal(chosen.indices, kept)
    assert torch.equal(chosen.layer_features[0], 2 * chosen.rows), "features of later layers are gathered alike"


def test_tokens_that_are_not_there_are_refused(best):
    absent = next(index for index in range(24) if index not in best.indices.tolist())
    with pytest.raises(ModelError, match="1 of the chosen ones were not given"):
        best.take(torch.tensor(sorted([absent, int(best.indices[0])])))
    with pytest.raises(ModelError, match=r"gives 10 of 24; .* --max-keep"):
        best.raster()
