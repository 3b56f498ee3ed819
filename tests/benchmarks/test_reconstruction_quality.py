"""PSNR and SSIM of rebuilt images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from benchmarks.studies.reconstruction_quality import BEST_PSNR_DB, oracle_cells, quality, random_cells
from fastdrive_training.pruner.decoder import fold_cells
from fastdrive_training.pruner.validate import HeldOut
from tests.training.pruner.recon_fixtures import CELL, GRID

SIZE = (GRID[0] * CELL, GRID[1] * CELL)
CELLS = GRID[0] * GRID[1]


class _Painter(nn.Module):
    """Each token is the gray value of its cell."""

    def __init__(self, channels: int = 3, shift: float = 0.0):
        super().__init__()
        self.channels, self.shift = channels, nn.Parameter(torch.tensor(shift))

    def forward(self, tokens, grid):
        return fold_cells(tokens[..., :1].expand(-1, -1, self.channels * CELL * CELL) + self.shift, grid, CELL)


@pytest.fixture
def held_out() -> HeldOut:
    """Two keyframes, of the first the image is known; gray cells of which the first two are foreground."""
    rng = np.random.default_rng(0)
    gray = rng.integers(50, 255, (2, 1, CELLS))
    fore = np.zeros((2, 1, CELLS), np.float32)
    fore[..., :2] = 1

    def grow(cells: np.ndarray) -> np.ndarray:
        return cells.reshape(2, 1, *GRID).repeat(CELL, 2).repeat(CELL, 3)

    images = grow(gray).astype(np.uint8)[..., None].repeat(3, -1)[:1]
    tokens = (gray / 255).astype(np.float32)[..., None]
    return HeldOut(("a", "b"), ("camera",), GRID, tokens, fore, images, grow(fore)[:1] > 0)


def test_the_right_mask_and_decoder_are_perfect(held_out):
    figures = quality(_Painter(), held_out, oracle_cells(held_out))
    assert {name for name in figures if figures[name] < 0.999} == set()
    assert figures["psnr_fore"] == BEST_PSNR_DB and figures["ssim_back"] == pytest.approx(1, abs=1e-5)


def test_the_figures_are_those_of_torchmetrics(held_out):
    mask = ~oracle_cells(held_out)
    figures = quality(_Painter(shift=0.05), held_out, mask)
    pixels = torch.from_numpy(held_out.images[0]).permute(0, 3, 1, 2) / 255
    region = torch.from_numpy(held_out.foreground[0])[:, None].float()
    painted = pixels * (1 - region) + 0.05  # the wrong branch is in the foreground's place
    target = pixels * region
    assert figures["psnr_fore"] == pytest.approx(float(peak_signal_noise_ratio(painted, target, data_range=1.0)), 1e-4)
    expected = float(structural_similarity_index_measure(painted, target, data_range=1.0))
    assert figures["ssim_fore"] == pytest.approx(expected, abs=1e-4)
    inside = ((painted - target) ** 2)[region.expand_as(target) > 0].mean()
    assert figures["psnr_fore_region"] == pytest.approx(float(-10 * inside.log10()), 1e-4)


def test_random_masks_cover_as_much_as_the_foreground(held_out):
    fractions = [random_cells(held_out, seed).mean() for seed in range(60)]
    assert random_cells(held_out, 0).shape == (1, 1, CELLS)
    assert np.mean(fractions) == pytest.approx(2 / CELLS, abs=0.06)


def test_a_decoder_of_masks_has_no_figures(held_out):
    assert quality(_Painter(channels=1), held_out, oracle_cells(held_out)) is None
