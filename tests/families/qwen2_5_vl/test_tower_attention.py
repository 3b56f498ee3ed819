"""Attention that tokens receive in the tower, against the weights that transformers computes."""

import pytest
import torch
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as stock
from transformers.vision_utils import get_vision_window_index

from fastdrive_node.errors import ModelError
from fastdrive_node.families.qwen2_5_vl import tower
from fastdrive_node.families.qwen2_5_vl.tower import TorchVision

ROWS, COLUMNS, IMAGES = 12, 20, 2  # patches; windows are ragged in one direction


def make_tower(full=(1, 2)):
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "window_size": 112,
            "fullatt_block_indexes": list(full),
            "out_hidden_size": 48,
        },
        text_config={"hidden_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 8},
    ).vision_config
    config._attn_implementation = "eager"
    visual = stock.Qwen2_5_VisionTransformerPretrainedModel(config).eval()
    for parameter in visual.parameters():  # attention away from uniform
        parameter.data += 0.2 * torch.randn_like(parameter)
    return visual


@pytest.fixture
def patches():
    return torch.randn(IMAGES, ROWS * COLUMNS, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(1))


def attention_by_transformers(visual, patches, block, monkeypatch):
    """Weights [heads, patches, patches] of each image in one block, in window order, and its tokens."""
    seen = []
    attend = stock.eager_attention_forward

    def watch(module, *arguments, **keywords):
        output, weights = attend(module, *arguments, **keywords)
        if module is visual.blocks[block].attn:
            seen.append(weights[0])
        return output, weights

    monkeypatch.setattr(stock, "eager_attention_forward", watch)
    with torch.inference_mode():
        grid = torch.tensor([[1, ROWS, COLUMNS]] * IMAGES)
        tokens = visual(patches.flatten(0, 1), grid_thw=grid).pooler_output
    assert len(seen) == IMAGES
    return seen, tokens


def test_attention_is_the_column_sum_of_the_last_full_block_in_raster_order(patches, monkeypatch):
    visual = make_tower()
    weights, expected_tokens = attention_by_transformers(visual, patches, 2, monkeypatch)
    order, _ = get_vision_window_index(torch.tensor([[1, ROWS, COLUMNS]]), 2, 112, 14)
    expected = torch.empty(IMAGES, ROWS * COLUMNS // 4)
    for image in range(IMAGES):
        for place, cell in enumerate(order.tolist()):
            columns = weights[image][:, :, 4 * place : 4 * place + 4]
            expected[image, cell] = columns.sum(dim=1).mean()
    vision = TorchVision(visual, (ROWS * 14, COLUMNS * 14), cameras=IMAGES)
    with torch.inference_mode():
        tokens, attention = vision.encode_with_attention(patches)
    torch.testing.assert_close(attention, expected, atol=1e-5, rtol=1e-4)
    assert attention.std() > 0.01, "uniform attention would prove nothing"
    torch.testing.assert_close(tokens.flatten(0, 1), expected_tokens, atol=1e-4, rtol=1e-4)


def test_attention_of_an_image_has_the_mean_one(patches):
    with torch.inference_mode():
        _, attention = TorchVision(make_tower(), (ROWS * 14, COLUMNS * 14)).encode_with_attention(patches)
    torch.testing.assert_close(attention.mean(dim=1), torch.ones(IMAGES))


def test_rows_in_parts_give_the_same_sums(patches, monkeypatch):
    vision = TorchVision(make_tower(), (ROWS * 14, COLUMNS * 14))
    with torch.inference_mode():
        _, whole = vision.encode_with_attention(patches)
        monkeypatch.setattr(tower, "ATTENTION_ROWS", 77)
        _, parts = vision.encode_with_attention(patches)
    torch.testing.assert_close(parts, whole)


def test_asking_for_attention_leaves_the_tokens_as_they_are(patches):
    vision = TorchVision(make_tower(), (ROWS * 14, COLUMNS * 14))
    with torch.inference_mode():
        tokens, _ = vision.encode_with_attention(patches)
        assert torch.equal(tokens, vision.encode_patches(patches))


def test_a_tower_of_windows_alone_is_refused(patches):
    vision = TorchVision(make_tower(full=()), (ROWS * 14, COLUMNS * 14))
    with pytest.raises(ModelError, match="fullatt_block_indexes"):
        vision.encode_with_attention(patches)
