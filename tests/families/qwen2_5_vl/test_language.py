"""The rotary angles of the hot path are those of transformers' module."""

from __future__ import annotations

import pytest
import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding

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
