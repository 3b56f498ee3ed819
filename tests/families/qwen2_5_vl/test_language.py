"""The rotary angles of the hot path are those of transformers' module, and a wide MLP in parts is the whole one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding

from fastdrive_node.families.qwen2_5_vl import language
from fastdrive_node.families.qwen2_5_vl.language import fold_rotation_sign, folded_angles


def rotary(sections: list[int], **rope) -> Qwen2_5_VLRotaryEmbedding:
    parameters = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections, **rope}
    size = 2 * sum(sections)
    sizes = {"hidden_size": 4 * size, "num_attention_heads": 4, "num_key_value_heads": 2}
    return Qwen2_5_VLRotaryEmbedding(Qwen2_5_VLTextConfig(**sizes, rope_parameters=parameters))


@pytest.mark.parametrize("sections", [[16, 24, 24], [4, 6, 6], [1, 1, 2]])
@pytest.mark.parametrize("count", [1, 700])
def test_angles_are_those_of_the_module_to_the_last_bit(sections, count):
    positions = torch.randint(0, 30_000, (3, 2, count), generator=torch.Generator().manual_seed(1))
    module = rotary(sections)
    ours, theirs = folded_angles(module, positions), fold_rotation_sign(*module(torch.empty(0), positions))
    assert [each.dtype for each in ours] == [torch.float32] * 2
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def test_another_kind_of_rotation_is_left_to_the_module():
    module, positions = rotary([4, 6, 6], rope_type="linear", factor=4.0), torch.arange(50).expand(3, 1, -1)
    ours, theirs = folded_angles(module, positions), fold_rotation_sign(*module(torch.empty(0), positions))
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
    assert not torch.equal(ours[0], folded_angles(rotary([4, 6, 6]), positions)[0])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("width", [300, 1100])
def test_a_wide_mlp_that_runs_in_parts_gives_what_it_gives_whole(tiny_vla, monkeypatch, width, bias):
    torch.manual_seed(0)
    layer, tokens = tiny_vla.model.model.language_model.layers[0], torch.randn(2, 7, 128)
    mlp = SimpleNamespace(
        gate_proj=nn.Linear(128, width, bias), up_proj=nn.Linear(128, width, bias), down_proj=nn.Linear(width, 128)
    )
    wide = SimpleNamespace(mlp=mlp, post_attention_layernorm=layer.post_attention_layernorm)
    normed = language._norm(layer.post_attention_layernorm, tokens)
    whole = mlp.down_proj(nn.functional.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))
    parts = []
    columns = language._columns
    monkeypatch.setattr(language, "_INNER", 256)  # of 1,100 it leaves 76
    monkeypatch.setattr(language, "_columns", lambda *given: parts.append(given[2]) or columns(*given))
    found = language._mlp(wide, tokens)
    torch.testing.assert_close(found, whole, atol=1e-6, rtol=1e-6)
    assert parts == ([] if width < 512 else [start for start in range(0, width, 256) for _ in range(2)])
    weights = [mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight]
    for ours, theirs in zip(*(torch.autograd.grad(out.square().sum(), weights) for out in (found, whole)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
