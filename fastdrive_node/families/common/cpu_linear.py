"""bfloat16 matrix products on processors without bfloat16 instructions.

There torch's product of many rows takes 3.5 times that of float32 (2048 x 2048, 256 rows, AVX2, two threads), while one
row is five times faster, being bound by memory. So weights stay bfloat16, and for many rows a copy of one matrix at a
time is float32: the sum is over the same products, in float32 as well, and is rounded once.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import linear

MIN_ROWS = 32


class Float32Linear(nn.Linear):
    """A bfloat16 ``nn.Linear`` that multiplies many rows in float32."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return multiply(input, self.weight, self.bias)


def multiply(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``linear`` of bfloat16 [..., D], through float32 where there are many rows."""
    if values.dtype != torch.bfloat16 or values.numel() < MIN_ROWS * values.shape[-1]:
        return linear(values, weight, bias)
    return linear(values.float(), weight.float(), None if bias is None else bias.float()).to(values.dtype)


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively (AVX512-BF16, AMX, or Arm's BF16)."""
    check = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return check is None or bool(check())


def use_float32_products(model: nn.Module) -> None:
    """Exchange the linear layers of a bfloat16 model on a CPU that has no bfloat16 instructions; in place."""
    parameter = next(model.parameters(), None)
    if parameter is None or parameter.device.type != "cpu" or parameter.dtype != torch.bfloat16 or has_bfloat16():
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Float32Linear
