"""The graph against eager torch: ragged and full windows, both opsets, three precisions."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="onnx is not installed: pip install -e .[export]")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e .[export]")

import onnx
from onnx.reference import ReferenceEvaluator

from fastdrive_export.build import GraphOptions, build_onnx
from fastdrive_export.graph_writer import FLOAT, FLOAT16, GraphWriter
from fastdrive_export.onnx_file import check_onnx, layer_table
from fastdrive_node.engines.manifest import check_files, manifest_path
from fastdrive_node.engines.vision_engine import EngineChoice, open_engine
from fastdrive_node.errors import InputError, ModelError
from fastdrive_node.pruning.checkpoint import load_pruner, save_pruner
from fastdrive_node.pruning.recon_pruner import ReconPruner
from tests.engines.engine_fixtures import sealed
from tests.generation import lite_pruner

# opset and operators of a graph
GRAPHS = [(17, "standard"), (18, "standard"), (18, "onnxruntime")]


def build(toy, folder, **options):
    return build_onnx(toy.vla.path, toy.pruner_file, folder, GraphOptions(**options))


def run(toy, file):
    """Tokens [C, N, D] and scores of an engine that gives all."""
    visual, _ = encode(toy, file)
    return visual.raster(), visual.scores


def encode(toy, file, images=None):
    """What an engine gives; and itself."""
    engine = open_engine(EngineChoice("onnxruntime", file, "cpu"), toy.vla, toy.pruner_file)
    return engine.encode(engine.preprocess(toy.images if images is None else images)), engine


def cosine(ours, theirs) -> float:
    return float(torch.cosine_similarity(ours, theirs, dim=-1).min())


@pytest.mark.parametrize(("opset", "operators"), GRAPHS)
@pytest.mark.parametrize("windows", ["ragged", "full"])
def test_tokens_and_scores_are_those_of_torch(toys, tmp_path, windows, opset, operators):
    toy = toys[windows]
    tokens, scores = run(toy, build(toy, tmp_path, opset=opset, operators=operators)[0])
    torch.testing.assert_close(tokens, toy.tokens, atol=2e-5, rtol=0)
    torch.testing.assert_close(scores, toy.scores, atol=2e-5, rtol=0)


def test_a_bias_for_each_camera_is_in_the_scores_and_the_order(toy, tmp_path):
    plain, cameras = load_pruner(toy.pruner_file, toy.vla), toy.vla.spec.cameras
    biased = ReconPruner(toy.vla.family, plain.layer.sizes(), cameras=cameras)
    biased.load_state_dict({**plain.state_dict(), "camera_bias": torch.arange(6.0)})
    save_pruner(tmp_path / "biased.safetensors", biased, toy.vla.encoder_fingerprint)
    toy = replace(toy, pruner_file=tmp_path / "biased.safetensors")
    visual, _ = encode(toy, build(toy, tmp_path / "engine")[0])
    torch.testing.assert_close(visual.scores, toy.scores + torch.arange(6.0)[:, None], atol=2e-5, rtol=0)
    assert torch.equal(visual.indices, torch.sort(visual.scores.flatten(), descending=True, stable=True).indices)


@pytest.mark.parametrize("precision,error", [("fp32", 2e-5), ("fp16", 0.02)])
def test_a_lite_pruner_s_scores_are_those_of_torch(toy, tmp_path, precision, error):
    torch.manual_seed(4)
    lite = lite_pruner(toy.vla, cameras=toy.vla.spec.cameras)
    lite.camera_bias.data = torch.arange(6.0) / 8
    save_pruner(tmp_path / "lite.safetensors", lite, toy.vla.encoder_fingerprint)
    toy = replace(toy, pruner_file=tmp_path / "lite.safetensors")
    visual, _ = encode(toy, build(toy, tmp_path / "engine", precision=precision)[0])
    with torch.inference_mode():
        expected = load_pruner(toy.pruner_file, toy.vla)(toy.tokens, toy.vla.grid)
    torch.testing.assert_close(visual.scores, expected, atol=error, rtol=0)
    assert torch.equal(visual.indices, torch.sort(visual.scores.flatten(), descending=True, stable=True).indices)


@pytest.mark.parametrize("opset", [17, 18])
def test_fp16_stays_close_to_torch(toys, tmp_path, opset):
    toy = toys["ragged"]
    tokens, scores = run(toy, build(toy, tmp_path, precision="fp16", opset=opset)[0])
    assert cosine(tokens, toy.tokens) > 0.9999 and float((tokens - toy.tokens).abs().max()) > 1e-5
    assert float((scores - toy.scores).abs().max()) < 0.02


def test_bf16_stays_close_to_torch(toy, tmp_path):
    """By onnx's own evaluator: onnxruntime computes no bf16 on a CPU."""
    file, manifest = build(toy, tmp_path, precision="bf16")
    pixels = np.ascontiguousarray(toy.images.transpose(0, 3, 1, 2))
    best, indices, scores = ReferenceEvaluator(str(file)).run(None, {"images": pixels})
    tokens = torch.zeros_like(toy.tokens).flatten(0, 1)
    tokens[torch.from_numpy(indices).long()] = torch.from_numpy(best)
    assert len(indices) == manifest.graph.total
    assert cosine(tokens.view_as(toy.tokens), toy.tokens) > 0.999
    assert float((torch.from_numpy(scores) - toy.scores).abs().max()) < 0.1


def test_bf16_is_refused_where_the_runtime_does_not_compute_it(toy, tmp_path):
    file, _ = build(toy, tmp_path, precision="bf16")
    with pytest.raises(ModelError, match=r"precision: bf16, .* build it with --precision fp16 or fp32"):
        run(toy, file)


def test_tokens_come_by_descending_score(toy, engine_file):
    visual, _ = encode(toy, engine_file)
    assert torch.equal(visual.indices, torch.sort(visual.scores.flatten(), descending=True, stable=True).indices)


def test_equal_scores_come_in_index_order(toy, tmp_path):
    """Black pictures: every camera gives the same scores."""
    black, _ = encode(toy, build(toy, tmp_path)[0], np.zeros_like(toy.images))
    assert torch.equal(black.scores[0], black.scores[5])
    assert torch.equal(black.indices, torch.sort(black.scores.flatten(), descending=True, stable=True).indices)


def test_a_smaller_engine_gives_the_best_tokens_only(toy, tmp_path):
    file, manifest = build(toy, tmp_path, max_keep=20)
    visual, engine = encode(toy, file)
    best = torch.sort(toy.scores.flatten(), descending=True).indices[:20]
    assert manifest.graph.max_keep == engine.max_keep == 20 and not visual.complete
    assert set(visual.indices.tolist()) == set(best.tolist()) and visual.scores.shape == toy.scores.shape
    torch.testing.assert_close(visual.take(best), toy.tokens.flatten(0, 1)[best], atol=2e-5, rtol=0)
    with pytest.raises(ModelError, match="the engine gives 20 of"):
        visual.raster()
    with pytest.raises(ModelError, match="were not given by the engine"):
        visual.take(torch.sort(toy.scores.flatten()).indices[:2])


def test_weights_beside_the_file_give_the_same_and_are_hashed(toy, tmp_path, engine_file):
    file, manifest = build(toy, tmp_path, external=True)
    assert set(manifest.files) == {"vision.onnx", "vision.onnx.data"}
    assert manifest.files["vision.onnx"].bytes < manifest.files["vision.onnx.data"].bytes
    assert torch.equal(run(toy, file)[0], run(toy, engine_file)[0])
    data = bytearray((tmp_path / "vision.onnx.data").read_bytes())
    data[1000] ^= 1
    (tmp_path / "vision.onnx.data").write_bytes(data)
    with pytest.raises(ModelError, match=r"vision\.onnx\.data: sha256"):
        check_files(file, manifest)


@pytest.mark.parametrize("opset", [17, 18])
def test_the_file_is_of_the_opset_that_was_asked_for(toy, tmp_path, opset):
    file, _ = build(toy, tmp_path, opset=opset, operators="standard")
    check_onnx(file, opset)
    with pytest.raises(ModelError, match="opset"):
        check_onnx(file, 35 - opset)


def test_a_newer_operator_or_misplaced_axes_are_refused(toy, tmp_path):
    file, _ = build(toy, tmp_path, opset=17)
    model = onnx.load(str(file))
    model.opset_import[0].version = 18  # what an exporter writes that only warns
    onnx.save(model, str(file))
    with pytest.raises(ModelError, match=r"valid ONNX|ReduceMean"):
        check_onnx(file, 18)
    model.opset_import[0].version = 17
    next(node for node in model.graph.node if node.op_type == "Sigmoid").op_type = "Sign"
    onnx.save(model, str(file))
    with pytest.raises(ModelError, match="operators: Sign"):
        check_onnx(file, 17)


def test_the_islands_are_where_they_are_said_to_be(toy, tmp_path):
    file, manifest = build(toy, tmp_path, precision="fp16")
    model = onnx.load(str(file))
    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert manifest.graph.fp32_mlp == (1,)
    assert weights["tower.blocks.0.mlp.down_proj.weight"] == FLOAT16
    assert weights["tower.blocks.1.mlp.down_proj.weight"] == FLOAT
    assert weights["tower.blocks.1.norm1.weight"] == weights["pruner.scorer.weight"] == FLOAT
    types = {info.name: info.type.tensor_type.elem_type for info in model.graph.value_info}
    products = {
        node.op_type: types[node.output[0]] for node in model.graph.node if node.name.startswith("tower/block_0")
    }
    assert products["ReduceMean"] == products["Sqrt"] == FLOAT and products["Softmax"] == FLOAT16
    assert all(row["types"].keys() <= {"float16", "float"} for row in layer_table(file))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"precision": "int8"}, "precision: 'int8'"),
        ({"opset": 19}, "opset: 19"),
        ({"operators": "cuda"}, "operators: 'cuda' is not one of standard, onnxruntime"),
        ({"operators": "onnxruntime", "precision": "bf16"}, "not for bf16 and opset 18; give standard"),
        ({"precision": "bf16", "opset": 17}, "bf16 is for opset 18"),
        ({"max_keep": 0}, "max_keep: 0"),
        ({"max_keep": 181}, "max_keep: 181 is not in 1..180"),
        ({"precision": "fp16", "fp32_mlp": [4]}, "blocks 0 to 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(toy, tmp_path, options, reason):
    with pytest.raises(InputError, match=reason):
        build(toy, tmp_path, **options)


def test_the_table_of_parts_counts_the_towers_parameters(toy, engine_file):
    rows = layer_table(engine_file)
    parameters = sum(parameter.numel() for parameter in toy.vla.model.model.visual.parameters())
    embedding = toy.vla.model.model.visual.patch_embed.proj.weight
    folded = embedding.numel() // 2 - len(embedding)  # one of two slices, but a bias that takes the pixels' mean away
    assert sum(row["parameters"] for row in rows if row["part"].startswith("tower")) == parameters - folded
    assert [row["part"] for row in rows][:3] == ["preprocess", "tower", "tower/block_0"]


def test_both_graphs_have_the_multiply_adds_of_the_tower(toy, tmp_path):
    rows = {name: layer_table(build(toy, tmp_path / name, operators=name)[0]) for _, name in GRAPHS[1:]}
    standard, fused = ({row["part"]: row["macs"] for row in each} for each in rows.values())
    assert standard.keys() == fused.keys()
    assert all(fused[part] == standard[part] for part in standard if part.startswith("tower"))
    assert fused["pruner"] > standard["pruner"], "keys and values are repeated for the queries of their group"


@pytest.mark.parametrize("operators", ["standard", "onnxruntime"])
def test_a_manifest_that_states_other_operators_is_refused(toy, tmp_path, operators):
    """Of a vision engine inputs and outputs are the same."""
    file, _ = build(toy, tmp_path, operators=operators)
    content = json.loads(manifest_path(file).read_text())
    if operators == "standard":
        content["graph"]["operators"] = "onnxruntime"
    else:
        del content["graph"]["operators"]
    manifest_path(file).write_text(sealed(content))
    other = {"standard": "onnxruntime", "onnxruntime": "standard"}[operators]
    with pytest.raises(ModelError, match=f"operators: the graph says {operators}, its manifest {other}"):
        encode(toy, file)


def test_the_writer_refuses_mixed_types_and_shapes():
    graph = GraphWriter(18)
    wide, half = graph.input("a", (2, 3), FLOAT), graph.input("b", (3, 2), FLOAT16)
    with pytest.raises(TypeError, match="MatMul"):
        graph.matmul(wide, half)
    with pytest.raises(TypeError, match="types differ"):
        graph.add(wide, half)
    with pytest.raises(ValueError, match="Reshape"):
        graph.reshape(wide, (5,))
    with pytest.raises(ValueError, match="Slice"):
        graph.slice(wide, 1, 2, 4)
