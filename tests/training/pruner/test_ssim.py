"""The fast SSIM is torchmetrics' SSIM."""

import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from fastdrive_training.pruner.ssim import ssim


def _pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.nn.functional.interpolate(torch.rand(2, 3, 7, 14, generator=generator), scale_factor=4)
    return (target + 0.2 * torch.randn(target.shape, generator=generator)).clamp(0, 1), target


def test_values_and_gradients_equal_torchmetrics():
    predicted, target = _pair()
    ours, theirs = predicted.clone().requires_grad_(), predicted.clone().requires_grad_()
    a = ssim(ours, target)
    b = structural_similarity_index_measure(theirs, target, data_range=1.0, reduction="none")
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    a.sum().backward()
    b.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-3)


def test_strided_windows_estimate_the_same_figure():
    predicted, target = _pair()
    torch.testing.assert_close(ssim(predicted, target, stride=2), ssim(predicted, target), atol=0.02, rtol=0.05)
    torch.testing.assert_close(ssim(target, target, stride=2), torch.ones(2))
