"""The losses of the reconstruction and the way of their gradient."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fastdrive_node.families.loading import read_language_layer
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_training.pruner.data import cells_to_pixels, matched_random_masks, oracle_masks, random_masks
from fastdrive_training.pruner.decoder import ReconDecoder, fold_cells, start_from_layers
from fastdrive_training.pruner.losses import LossWeights, split_losses, straight_through
from tests.generation import QWEN
from tests.training.pruner.recon_fixtures import CELL, GRID, PaintedBatches, text_config

SIZE = (GRID[0] * CELL, GRID[1] * CELL)


def _paint_decoder(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """A ready decoder for tokens that are gray values: each token paints its cell, zeros stay black."""
    return fold_cells(tokens[..., :1].expand(-1, -1, 3 * CELL * CELL), grid, CELL)


def _one_cell_scene() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gray cells of which the first is foreground: tokens [1, 8, 1], pixels and foreground mask."""
    tokens = torch.full((1, 8, 1), 0.8)
    fore = torch.zeros(1, 8)
    fore[0, 0] = 1
    return tokens, torch.full((1, 3, *SIZE), 0.8), cells_to_pixels(fore, GRID, SIZE)


@pytest.mark.parametrize("surrogate", ["sigmoid", "raw"])
def test_mask_is_binary_forward_and_has_the_surrogates_gradient(surrogate):
    scores = torch.tensor([-2.0, -0.1, 0.0, 0.1, 3.0], requires_grad=True)
    mask = straight_through(scores, surrogate)
    assert mask.tolist() == [0, 0, 0, 1, 1]
    mask.sum().backward()
    expected = torch.ones(5) if surrogate == "raw" else scores.detach().sigmoid() * (1 - scores.detach().sigmoid())
    torch.testing.assert_close(scores.grad, expected)


@pytest.mark.parametrize("surrogate", ["sigmoid", "raw"])
def test_every_part_of_the_pruner_gets_gradient_through_the_mask(surrogate):
    torch.manual_seed(0)
    pruner, decoder = ReconPruner(QWEN, text_config()), ReconDecoder(QWEN, text_config(), 1, CELL)
    batch = PaintedBatches().at(0)
    scores = pruner(batch.tokens, GRID)
    mask = straight_through(scores, surrogate)
    weights = LossWeights(surrogate=surrogate)
    losses = split_losses(decoder, batch.tokens, mask, batch.pixels / 255, batch.foreground.float(), GRID, weights)
    losses["total"].backward()
    for name, parameter in pruner.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert pruner.scorer.weight.grad.abs().sum() > 0
    assert pruner.query.grad.abs().sum() > 0


def test_a_mask_without_straight_through_gives_the_scorer_no_gradient():
    scores = torch.randn(1, 8, requires_grad=True)
    tokens, pixels, foreground = _one_cell_scene()
    losses = split_losses(_paint_decoder, tokens, (scores > 0).float(), pixels, foreground, GRID, LossWeights())
    assert not losses["total"].requires_grad


def test_foreground_and_background_gradients_oppose():
    """With a ready decoder both branches move a misplaced token to the other one, and leave a well placed one alone."""
    tokens, pixels, foreground = _one_cell_scene()
    gradients = {}
    for branch, alpha in (("fore", 1.0), ("back", 0.0), ("both", 0.5)):
        scores = torch.full((1, 8), 0.01, requires_grad=True)  # all tokens in the foreground branch
        weights = LossWeights(alpha=alpha, ssim_weight=0.0, balance_regions=False)
        mask = straight_through(scores)
        split_losses(_paint_decoder, tokens, mask, pixels, foreground, GRID, weights)["total"].backward()
        gradients[branch] = scores.grad[0]
    assert (gradients["fore"][1:] > 0).all()  # background cells painted into the foreground branch: scores down
    assert (gradients["back"][1:] > 0).all()  # and missing in the background branch: scores down
    assert gradients["fore"][0] == pytest.approx(0, abs=1e-7)  # a foreground cell where it belongs costs nothing
    assert (gradients["both"][1:] > 0).all()

    for branch, alpha in (("fore", 1.0), ("back", 0.0)):
        scores = torch.full((1, 8), -0.01, requires_grad=True)  # all tokens in the background branch
        weights = LossWeights(alpha=alpha, ssim_weight=0.0, balance_regions=False)
        mask = straight_through(scores)
        split_losses(_paint_decoder, tokens, mask, pixels, foreground, GRID, weights)["total"].backward()
        assert scores.grad[0, 0] < 0, branch  # the foreground cell is wanted in the foreground branch: score up
        assert scores.grad[0, 1:].abs().max() < 1e-7


def test_foreground_and_background_have_opposite_gradients_at_a_token():
    """In a cell that is all foreground, more of its token lowers the foreground loss; in one that is all background it
    raises the background loss by as much."""
    tokens, pixels, _ = _one_cell_scene()
    level = torch.full((1, 8), 0.5, requires_grad=True)
    weights = LossWeights(ssim_weight=0.0, balance_regions=False)
    gradients = []
    for foreground, branch in ((torch.ones(1, 1, *SIZE), "mse_fore"), (torch.zeros(1, 1, *SIZE), "mse_back")):
        losses = split_losses(_paint_decoder, tokens, level, pixels, foreground, GRID, weights)
        gradients.append(torch.autograd.grad(losses[branch], level)[0])
    fore, back = gradients
    assert (fore < 0).all() and (back > 0).all()
    torch.testing.assert_close(fore, -back)


def test_right_mask_costs_nothing_and_region_balance_weighs_the_smaller_region_up():
    tokens, pixels, foreground = _one_cell_scene()
    right = torch.zeros(1, 8)
    right[0, 0] = 1
    plain = LossWeights(balance_regions=False)
    exact = split_losses(_paint_decoder, tokens, right, pixels, foreground, GRID, plain)
    assert float(exact["total"]) == pytest.approx(0, abs=1e-6)
    nothing = torch.zeros(1, 8)
    unbalanced = split_losses(_paint_decoder, tokens, nothing, pixels, foreground, GRID, plain)
    balanced = split_losses(_paint_decoder, tokens, nothing, pixels, foreground, GRID, LossWeights())
    assert balanced["total"] > unbalanced["total"]
    assert unbalanced["fore"] == balanced["fore"]


def test_decoder_is_bidirectional_and_paints_raster_order():
    torch.manual_seed(0)
    decoder = ReconDecoder(QWEN, text_config(), 1, CELL)
    tokens = torch.randn(1, 8, 32)
    changed = tokens.clone()
    changed[0, 7] += 1.0
    first_cell = (slice(None), slice(None), slice(0, CELL), slice(0, CELL))
    with torch.no_grad():
        before, after = decoder(tokens, GRID), decoder(changed, GRID)
    assert before.shape == (1, 3, *SIZE)
    assert not torch.allclose(before[first_cell], after[first_cell])  # the first cell sees the last token
    cells = torch.arange(8.0).view(1, 8, 1).expand(-1, -1, 3 * CELL * CELL)
    image = fold_cells(cells, GRID, CELL)
    assert [float(image[0, 0, 0, column * CELL]) for column in range(4)] == [0, 1, 2, 3]
    assert float(image[0, 2, CELL, 0]) == 4


def test_random_masks_are_reproducible_blobs_of_all_fractions():
    masks = torch.cat([random_masks(64, (4, 8), torch.Generator().manual_seed(seed)) for seed in range(8)])
    again = random_masks(64, (4, 8), torch.Generator().manual_seed(0))
    torch.testing.assert_close(masks[:64], again)
    hard, soft = masks[::2], masks[1::2]
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    assert all(len(row.unique()) <= 2 for row in soft) and 0.3 < float(soft.mean()) < 0.7
    fractions = hard.mean(dim=1)
    assert fractions.min() < 0.15 and fractions.max() > 0.85 and 0.4 < fractions.mean() < 0.6
    grids = hard.view(-1, 4, 8)
    same_neighbour = (grids[:, :, 1:] == grids[:, :, :-1]).float().mean()
    assert same_neighbour > 0.75  # 0.65 for single tokens if random, at these fractions


@pytest.mark.parametrize(("targets", "channels"), [("pixels", 3), ("mask", 1), ("both", 4)])
def test_the_right_reconstruction_of_each_target_costs_nothing(targets, channels):
    tokens, pixels, foreground = _one_cell_scene()
    right = torch.zeros(1, 8)
    right[0, 0] = 1

    def decode(images: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        white = (images > 0).float().expand(-1, -1, CELL * CELL)
        gray = images.expand(-1, -1, 3 * CELL * CELL)
        parts = {"pixels": [gray], "mask": [white], "both": [gray, white]}[targets]
        return fold_cells(torch.cat(parts, dim=-1), grid, CELL)

    weights = LossWeights(targets=targets)
    assert weights.channels == channels
    assert float(split_losses(decode, tokens, right, pixels, foreground, GRID, weights)["total"]) < 1e-6
    assert float(split_losses(decode, tokens, 1 - right, pixels, foreground, GRID, weights)["total"]) > 0.1


def test_without_the_adversary_the_background_branch_has_no_weight():
    scores = torch.randn(1, 8, requires_grad=True)
    tokens, pixels, foreground = _one_cell_scene()
    weights = LossWeights(ssim_weight=0.0, adversary=False)
    losses = split_losses(_paint_decoder, tokens, straight_through(scores), pixels, foreground, GRID, weights)
    assert losses["total"].item() == pytest.approx(losses["fore"].item() / (2 * foreground.mean().item()))
    assert losses["back"] > 0


def test_doubtful_pixels_cost_nothing_and_give_no_gradient():
    tokens, pixels, foreground = _one_cell_scene()
    level = torch.full((1, 8), 0.5, requires_grad=True)
    ignore = torch.zeros(1, 1, *SIZE, dtype=torch.bool)
    ignore[..., CELL:] = True  # all but the first column of cells
    weights = LossWeights(ssim_weight=0.0)
    losses = split_losses(_paint_decoder, tokens, level, pixels, foreground, GRID, weights, ignore=ignore)
    losses["total"].backward()
    assert (level.grad.view(GRID)[:, 0] != 0).all()
    assert (level.grad.view(GRID)[:, 1:] == 0).all()
    assert torch.isfinite(losses["total"])


def test_masks_that_are_given_follow_the_foreground():
    foreground = torch.zeros(2, 1, *SIZE)
    foreground[0, :, :CELL, :CELL] = 1
    foreground[0, :, CELL:, : CELL // 2 + 1] = 1  # a little more than half of a cell
    foreground[0, :, CELL:, CELL : CELL + 3] = 1  # less than half
    foreground[1] = 1
    assert oracle_masks(foreground, GRID).tolist() == [[1, 0, 0, 0, 1, 0, 0, 0], [1] * 8]
    seeds = [(0, step, 0) for step in range(200)]
    drawn = matched_random_masks(foreground[:1].expand(200, -1, -1, -1), 8, seeds)
    assert float(drawn.mean()) == pytest.approx(float(foreground[0].mean()), abs=0.03)
    assert torch.equal(matched_random_masks(foreground[:1], 8, seeds[7:8])[0], drawn[7])


def test_pruner_and_decoder_can_start_from_the_language_models_layers(tiny_vla):
    config, layers = tiny_vla.config.text_config, tiny_vla.model.model.language_model.layers
    pruner, decoder = ReconPruner(QWEN, config), ReconDecoder(QWEN, config, 2, 28)
    query = pruner.query.detach().clone()
    read = partial(read_language_layer, tiny_vla)
    start_from_layers(pruner, decoder, read, 3, pruner_layer=2, decoder_layer=1)
    for ours, theirs in ((pruner.layer, layers[2]), (decoder.layers[0], layers[1]), (decoder.layers[1], layers[2])):
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], tensor), name
    assert torch.equal(pruner.query, query)
    assert all(parameter.requires_grad for parameter in [*pruner.parameters(), *decoder.parameters()])
    with torch.no_grad():
        pruner.layer.mlp.up_proj.weight.add_(1.0)
    assert not torch.equal(layers[2].mlp.up_proj.weight, pruner.layer.mlp.up_proj.weight)  # a copy
    with pytest.raises(
        ValueError, match=r"pruner_init: 1 layer\(s\) from 3 on are wanted, but the VLA has 3; use 0 to 2"
    ):
        start_from_layers(pruner, decoder, read, 3, 3, None)
    with pytest.raises(ValueError, match="decoder_init: 6 layers are wanted, but the VLA has 3; lower decoder_layers"):
        start_from_layers(pruner, ReconDecoder(QWEN, config, 6, 28), read, 3, None, 0)


def test_the_papers_decoder_adds_nothing_to_the_tokens():
    torch.manual_seed(0)
    ours, paper = (ReconDecoder(QWEN, text_config(), 1, CELL, offset=offset) for offset in (True, False))
    paper.load_state_dict({name: value for name, value in ours.state_dict().items() if name != "offset"})
    tokens = torch.randn(1, 8, 32)
    with torch.no_grad():
        assert not torch.allclose(ours(tokens, GRID), paper(tokens, GRID), atol=1e-3)
        ours.offset.zero_()
        assert torch.equal(ours(tokens, GRID), paper(tokens, GRID))
