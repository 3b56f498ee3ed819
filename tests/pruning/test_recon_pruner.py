import pytest
import torch
from transformers import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import eager_attention_forward

from fastdrive_node.families.qwen2_5_vl.pruner_layer import query_and_grid_positions
from fastdrive_node.pruning.recon_pruner import ReconPruner
from tests.generation import QWEN


def text_config(**values):
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
    return Qwen2_5_VLTextConfig(**{**sizes, "rope_parameters": rope, "vocab_size": 8, **values})


@pytest.fixture
def pruner():
    torch.manual_seed(0)
    pruner = ReconPruner(QWEN, text_config()).eval()
    for parameter in pruner.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return pruner


@pytest.fixture
def tokens():
    return torch.randn(3, 15, 32, generator=torch.Generator().manual_seed(1))


def test_at_the_3b_size_it_has_the_papers_0_07_billion_parameters():
    config = Qwen2_5_VLTextConfig(
        hidden_size=2048,
        intermediate_size=11008,
        num_attention_heads=16,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    )
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in ReconPruner(QWEN, config).parameters())
    assert 0.065e9 < count < 0.08e9


def test_it_scores_each_token_of_each_camera(pruner, tokens):
    scores = pruner(tokens, (3, 5))
    assert scores.shape == (3, 15) and scores.dtype == torch.float32


def test_cameras_do_not_influence_each_other(pruner, tokens):
    torch.testing.assert_close(pruner(tokens, (3, 5))[1:2], pruner(tokens[1:2], (3, 5)))


def test_attention_is_bidirectional(pruner, tokens):
    changed = tokens.clone()
    changed[:, -1] += 1
    assert not torch.allclose(pruner(changed, (3, 5))[:, 0], pruner(tokens, (3, 5))[:, 0])


def test_scores_equal_the_formula_written_out(pruner, tokens):
    """[Q*, V*] by eager attention with an explicit mask of zeros, then linear(norm(V*) . norm(Q*))."""
    layer, hidden = pruner.layer, torch.cat([pruner.query.expand(3, 1, -1), tokens], dim=1)
    cos, sin = pruner.layer.rotary(hidden, query_and_grid_positions((3, 5)))
    normed, attention = layer.input_layernorm(hidden), layer.self_attn

    def heads(projection):
        return projection(normed).view(3, 16, -1, 16).transpose(1, 2)

    def rotate(x):
        return x * cos + torch.cat([-x[..., 8:], x[..., :8]], dim=-1) * sin

    mixed, _ = eager_attention_forward(
        attention, rotate(heads(attention.q_proj)), rotate(heads(attention.k_proj)), heads(attention.v_proj),
        torch.zeros(1, 1, 16, 16), scaling=16**-0.5,
    )  # fmt: skip
    hidden = hidden + attention.o_proj(mixed.reshape(3, 16, 32))
    hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    hidden = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + pruner.layer.norm_eps)
    product = hidden[:, 1:] * hidden[:, :1]
    expected = product @ pruner.scorer.weight[0] + pruner.scorer.bias
    torch.testing.assert_close(pruner(tokens, (3, 5)), expected, atol=1e-5, rtol=1e-5)


def test_positions_follow_the_grid_with_the_query_at_the_origin():
    ids = query_and_grid_positions((2, 3))[:, 0]
    assert ids.tolist() == [[0, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 2, 2, 2], [0, 1, 2, 3, 1, 2, 3]]


def test_the_grid_matters_and_not_only_the_order(pruner, tokens):
    assert not torch.allclose(pruner(tokens, (3, 5)), pruner(tokens, (5, 3)))


def test_normalised_scores_do_not_grow_with_the_tokens(pruner, tokens):
    raw = ReconPruner(QWEN, text_config(), normalise=False).eval()
    raw.load_state_dict(pruner.state_dict())
    assert raw(1000 * tokens, (3, 5)).abs().max() > 100 * raw(tokens, (3, 5)).abs().max()
    assert pruner(1000 * tokens, (3, 5)).abs().max() < 10 * pruner(tokens, (3, 5)).abs().max()


def test_every_parameter_gets_a_gradient(pruner, tokens):
    pruner(tokens, (3, 5)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in pruner.parameters())


def test_the_models_configuration_is_left_alone():
    config = text_config(num_hidden_layers=5)
    ReconPruner(QWEN, config)
    assert config.num_hidden_layers == 5 and len(config.layer_types) == 5
