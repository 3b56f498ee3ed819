"""bfloat16 on processors without its instructions: equal to rounding, and only where it is needed."""

import pytest
import torch
from torch import nn

from fastdrive_node.families import load_vla
from fastdrive_node.families.common import cpu_linear
from fastdrive_node.families.common.cpu_linear import MIN_ROWS, Float32Linear, multiply


@pytest.mark.parametrize("rows", [1, MIN_ROWS - 1, MIN_ROWS, 200])
def test_products_are_those_of_exact_sums_rounded_once(rows):
    torch.manual_seed(0)
    values, weight, bias = torch.randn(rows, 64).bfloat16(), torch.randn(48, 64).bfloat16(), torch.randn(48).bfloat16()
    exact = (values.double() @ weight.double().T + bias.double()).bfloat16()
    given = multiply(values, weight, bias)
    assert given.dtype == torch.bfloat16
    assert torch.allclose(given.float(), exact.float(), rtol=2**-7, atol=2**-6)


@pytest.mark.parametrize("native, exchanged", [(True, False), (False, True)])
def test_layers_are_exchanged_where_the_processor_lacks_bfloat16(monkeypatch, tiny_dir, native, exchanged):
    monkeypatch.setattr(cpu_linear, "has_bfloat16", lambda: native)
    layers = [each for each in load_vla(tiny_dir, dtype=torch.bfloat16).model.modules() if isinstance(each, nn.Linear)]
    assert layers and all((type(layer) is Float32Linear) == exchanged for layer in layers)
    assert not any(type(each) is Float32Linear for each in load_vla(tiny_dir).model.modules()), "float32 stays"


def test_a_layer_multiplies_many_rows_in_float32(monkeypatch):
    used, plain = [], cpu_linear.linear
    monkeypatch.setattr(cpu_linear, "linear", lambda x, w, b: used.append(x.dtype) or plain(x, w, b))
    layer = nn.Linear(8, 8).bfloat16()
    layer.__class__ = Float32Linear
    for rows in (1, MIN_ROWS):
        assert layer(torch.ones(rows, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert used == [torch.bfloat16, torch.float32]
