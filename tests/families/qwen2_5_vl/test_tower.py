import pytest
import torch
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from fastdrive_node.families.qwen2_5_vl.tower import TorchVision


def make_tower(seed=0, full=(1, 3)):
    torch.manual_seed(seed)
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 4,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 4,
            "window_size": 112,
            "fullatt_block_indexes": list(full),
            "out_hidden_size": 48,
        },
        text_config={"hidden_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 8},
    ).vision_config
    config._attn_implementation = "sdpa"
    tower = Qwen2_5_VisionTransformerPretrainedModel(config).eval()
    for parameter in tower.parameters():  # biases and norms away from their neutral start
        parameter.data += 0.05 * torch.randn_like(parameter)
    return tower


def patches_of(rows, columns, images=3, seed=1):
    return torch.randn(images, rows * columns, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(seed))


# patches: windows all full; ragged in both directions; smaller than a window; ragged in one
@pytest.mark.parametrize("rows,columns", [(8, 16), (18, 28), (4, 6), (12, 20)])
@pytest.mark.parametrize("full", [(1, 3), ()])
def test_tokens_equal_those_of_transformers(rows, columns, full):
    tower, patches = make_tower(full=full), patches_of(rows, columns)
    vision = TorchVision(tower, (rows * 14, columns * 14), cameras=3)
    with torch.inference_mode():
        expected = tower(patches.flatten(0, 1), grid_thw=torch.tensor([[1, rows, columns]] * 3)).pooler_output
        ours = vision.encode_patches(patches)
    assert vision.grid == (rows // 2, columns // 2)
    torch.testing.assert_close(ours.flatten(0, 1), expected, atol=1e-5, rtol=1e-5)


def test_each_camera_is_encoded_by_itself():
    vision = TorchVision(make_tower(), (252, 392))
    patches = patches_of(18, 28)
    with torch.inference_mode():
        together, alone = vision.encode_patches(patches), vision.encode_patches(patches[1:2])
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-5)


def test_gradients_equal_those_of_transformers():
    ours, theirs, patches = make_tower(), make_tower(), patches_of(18, 28, images=2)
    TorchVision(ours, (252, 392)).encode_patches(patches).square().sum().backward()
    theirs(patches.flatten(0, 1), grid_thw=torch.tensor([[1, 18, 28]] * 2)).pooler_output.square().sum().backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-3, rtol=1e-3, msg=lambda text, n=name: f"{n}: {text}")


def test_bfloat16_stays_close_to_transformers():
    tower, patches = make_tower().bfloat16(), patches_of(18, 28)
    with torch.inference_mode():
        expected = tower(patches.bfloat16().flatten(0, 1), grid_thw=torch.tensor([[1, 18, 28]] * 3)).pooler_output
        ours = TorchVision(tower, (252, 392)).encode_patches(patches)
    assert ours.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(ours.flatten(0, 1).float(), expected.float(), dim=-1).min() > 0.999
