"""The language graph against eager torch: logits at the end of prompts and behind forced tokens."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="onnx is not installed: pip install -e .[export]")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e .[export]")

import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

from fastdrive_export.build import GraphOptions, build_language
from fastdrive_export.graph_writer import FLOAT, FLOAT16, GraphWriter
from fastdrive_export.onnx_file import check_onnx, layer_table
from fastdrive_node.engines.graph_info import ASKED, NEW, PAST, SEEN, SHOWN
from fastdrive_node.engines.language_cache import HIDDEN
from fastdrive_node.engines.language_engine import EngineLanguage, LanguageChoice, open_language_engine
from fastdrive_node.engines.manifest import check_files
from fastdrive_node.errors import InputError, ModelError
from fastdrive_node.families import PrunedPrompt, load_vla, prune_prompt
from fastdrive_node.families.prompt import build_prompt
from fastdrive_node.families.qwen2_5_vl.language import TorchLanguage
from fastdrive_node.planning.generator import Generator
from fastdrive_node.pruning.pruner import Prefilled
from fastdrive_node.types import Command, EgoHistory
from fastdrive_training.vla.tiny_model import TinySize
from tests.engines.engine_toys import Toy, make_toy
from tests.generation import prefill

# opset and operators of a graph
GRAPHS = [(17, "standard"), (18, "standard"), (18, "onnxruntime")]
ANSWER = (19, 20, 30, 77, 29, 5, 21)  # any tokens
# query heads in groups of 4, 2 and 1
SIZES = {
    "wide groups": TinySize(image_height=140, image_width=168, tower_depth=1, width=64, heads=4, kv_heads=1, layers=3),
    "pairs": TinySize(image_height=112, image_width=224, tower_depth=1, width=128, heads=4, kv_heads=2, layers=2),
    "own": TinySize(image_height=56, image_width=56, tower_depth=1, width=64, heads=2, kv_heads=2, layers=1),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Toy]:
    return {name: make_toy(tmp_path_factory.mktemp("toy"), dataclasses.replace(size, full_attention_blocks=(0,)))
            for name, size in SIZES.items()}  # fmt: skip


@pytest.fixture(scope="module")
def pairs(models) -> Toy:
    return models["pairs"]


def build(toy, folder, **options):
    return build_language(toy.vla.path, folder, GraphOptions(**options))


def open_file(toy, file) -> EngineLanguage:
    return open_language_engine(LanguageChoice(file, "cpu"), toy.vla)


@dataclass(frozen=True)
class Question:
    prompt: PrunedPrompt
    tokens: torch.Tensor  # [K, D]


def forced_logits(toy, language, asked, ids):
    logits, cache = prefill(language, [asked.prompt], [asked.tokens], len(ids))
    return Generator(toy.vla, language).forced_logits(Prefilled([asked.prompt], logits, cache, [], ()), ids).cpu()


def question(toy, ego_history, keep, states=5, seed=0) -> Question:
    """``keep`` tokens of all cameras; fewer past states make another prompt."""
    random = torch.Generator().manual_seed(seed)
    kept = torch.randperm(toy.vla.tokens, generator=random)[:keep].sort().values
    prompt = build_prompt(toy.vla, EgoHistory(ego_history.states[:states], ego_history.interval_s), Command.LEFT)
    return Question(prune_prompt(prompt, kept), toy.tokens.flatten(0, 1)[kept])


def expected(toy, asked, ids=ANSWER):
    return forced_logits(toy, TorchLanguage(toy.vla), asked, ids)


@pytest.mark.parametrize(("opset", "operators"), GRAPHS[:2])
def test_onnxruntime_finds_its_own_normalisation_in_the_graph(pairs, tmp_path, opset, operators):
    file = build(pairs, tmp_path, opset=opset, operators=operators)[0]
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert kinds["SimplifiedLayerNormalization"] == 5 and not kinds["Sqrt"], "two of each of two layers, and the last"


@pytest.mark.parametrize(("opset", "operators"), GRAPHS)
@pytest.mark.parametrize("name", SIZES)
def test_logits_are_those_of_torch_at_every_budget(models, tmp_path, ego_history, name, opset, operators):
    toy = models[name]
    engine = open_file(toy, build(toy, tmp_path, opset=opset, operators=operators)[0])
    lengths = set()
    for keep, states in ((toy.vla.tokens, 5), (toy.vla.tokens // 2, 1), (toy.vla.tokens // 4 + 1, 3), (1, 2)):
        asked = question(toy, ego_history, keep, states)
        lengths.add(len(asked.prompt))
        ours, theirs = forced_logits(toy, engine, asked, ANSWER), expected(toy, asked)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
        assert float(theirs.std()) > 1, "logits of this size make the tolerance mean something"
    assert len(lengths) == 4


def test_fp16_stays_close_to_torch(pairs, tmp_path, ego_history):
    asked = question(pairs, ego_history, 96)
    engine = open_file(pairs, build(pairs, tmp_path, precision="fp16")[0])
    ours, theirs = forced_logits(pairs, engine, asked, ANSWER), expected(pairs, asked)
    assert float(torch.cosine_similarity(ours, theirs, dim=-1).min()) > 0.9999
    assert float((ours - theirs).abs().max()) > 1e-3, "these are float32's own numbers"


def arrays(graph_info, asked, language, pad=0) -> dict[str, np.ndarray]:
    """The graph's inputs for a prefill, as documented, ``pad`` positions added on the right."""
    prompt, length = asked.prompt, len(asked.prompt)
    whole = length + pad
    cos, sin = (each[0].float() for each in language.position_inputs(prompt.position_ids[:, None]))
    source = torch.arange(whole)
    source[prompt.visual] = whole + torch.arange(len(asked.tokens))
    mask = torch.full((whole, whole + 1), HIDDEN).triu(2)
    mask[:, 0] = HIDDEN
    rows = torch.nn.functional.pad
    inputs = {
        "ids": rows(prompt.input_ids, (0, pad), value=7).int().numpy(),
        "source": source.int().numpy(),
        "visual": asked.tokens.numpy(),
        "cos": rows(cos, (0, 0, 0, pad)).numpy(),
        "sin": rows(sin, (0, 0, 0, pad)).numpy(),
        "mask": mask.numpy(),
        "wanted": np.array([length - 1], np.int32),
    }
    for name, tensor in graph_info.inputs().items():
        if name not in inputs:
            shape = [1 if length in (PAST, ASKED) else length for length in tensor.shape]
            inputs[name] = np.zeros(shape, tensor.dtype if tensor.dtype != "bfloat16" else np.float32)
    return inputs


@pytest.mark.parametrize("pad", [1, 30])
def test_padding_on_the_right_changes_nothing(pairs, tmp_path, ego_history, pad):
    """With fixed lengths, as CUDA graphs want them, a prompt is padded and ``wanted`` says where it ends."""
    file, manifest = build(pairs, tmp_path, operators="standard")
    asked, language = question(pairs, ego_history, 50), TorchLanguage(pairs.vla)
    options = onnxruntime.SessionOptions()
    whole = len(asked.prompt) + pad
    for name, length in ((NEW, whole), (PAST, 1), (SEEN, whole + 1), (SHOWN, 50), (ASKED, 1)):
        options.add_free_dimension_override_by_name(name, length)
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [whole]
    logits, keys, _ = session.run(None, arrays(manifest.graph, asked, language, pad))
    torch.testing.assert_close(torch.from_numpy(logits), expected(pairs, asked, ANSWER[:1]), atol=1e-4, rtol=0)
    free = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    unpadded = free.run(None, arrays(manifest.graph, asked, language))
    np.testing.assert_allclose(keys[..., : len(asked.prompt)], unpadded[1], atol=1e-5)


def test_bf16_stays_close_to_torch(pairs, tmp_path, ego_history):
    """By onnx's own evaluator: onnxruntime computes no bf16 on a CPU."""
    file, manifest = build(pairs, tmp_path, precision="bf16")
    asked = question(pairs, ego_history, 20)
    inputs = arrays(manifest.graph, asked, TorchLanguage(pairs.vla))
    half = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
    inputs = {name: each.astype(half) if name[:4] in ("keys", "valu") else each for name, each in inputs.items()}
    logits = torch.from_numpy(ReferenceEvaluator(str(file)).run(None, inputs)[0])
    theirs = expected(pairs, asked, ANSWER[:1])
    assert float(torch.cosine_similarity(logits, theirs, dim=-1)) > 0.999
    with pytest.raises(ModelError, match=r"precision: bf16, .* build it with --precision fp16 or fp32"):
        open_file(pairs, file)


def test_an_output_layer_of_its_own_is_exported(pairs, tmp_path, ego_history):
    vla = load_vla(pairs.vla.path)
    config = vla.model.config
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    vla.model.lm_head = torch.nn.Linear(vla.width, config.text_config.vocab_size, bias=False)
    vla.model.requires_grad_(False)
    vla.model.save_pretrained(tmp_path / "vla")
    for name in ("tokenizer.json", "vla.json", "prompt.txt"):
        (tmp_path / "vla" / name).write_bytes((pairs.vla.path / name).read_bytes())
    own = dataclasses.replace(pairs, vla=load_vla(tmp_path / "vla"))
    assert own.vla.model.lm_head.weight is not own.vla.model.model.language_model.embed_tokens.weight
    assert own.vla.language_fingerprint != pairs.vla.language_fingerprint
    file, _ = build(own, tmp_path)
    asked = question(own, ego_history, 50)
    ours = forced_logits(own, open_file(own, file), asked, ANSWER)
    torch.testing.assert_close(ours, expected(own, asked), atol=1e-4, rtol=0)
    assert float((ours - expected(pairs, asked)).abs().max()) > 0.1


def test_weights_beside_the_file_give_the_same_and_are_hashed(pairs, tmp_path, ego_history):
    asked = question(pairs, ego_history, 50)
    inline = forced_logits(pairs, open_file(pairs, build(pairs, tmp_path / "inline")[0]), asked, ANSWER)
    file, manifest = build(pairs, tmp_path / "beside", external=True)
    assert set(manifest.files) == {"language.onnx", "language.onnx.data"}
    assert torch.equal(forced_logits(pairs, open_file(pairs, file), asked, ANSWER), inline)
    data = bytearray((tmp_path / "beside" / "language.onnx.data").read_bytes())
    data[1000] ^= 1
    (tmp_path / "beside" / "language.onnx.data").write_bytes(data)
    with pytest.raises(ModelError, match=r"language\.onnx\.data: sha256"):
        check_files(file, manifest)


@pytest.mark.parametrize("opset", [17, 18])
def test_the_file_is_of_the_opset_that_was_asked_for(pairs, tmp_path, opset):
    file, _ = build(pairs, tmp_path, opset=opset, operators="standard")
    check_onnx(file, opset)
    with pytest.raises(ModelError, match="opset"):
        check_onnx(file, 35 - opset)


def test_the_islands_are_where_they_are_said_to_be(pairs, tmp_path):
    file, manifest = build(pairs, tmp_path, precision="fp16", fp32_mlp=[1])
    model = onnx.load(str(file))
    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert manifest.graph.fp32_mlp == (1,)
    assert weights["language.layers.0.mlp.down_proj.weight"] == FLOAT16
    assert weights["language.layers.1.mlp.down_proj.weight"] == FLOAT
    assert weights["language.layers.1.input_layernorm.weight"] == weights["language.norm.weight"] == FLOAT
    types = {info.name: info.type.tensor_type.elem_type for info in model.graph.value_info}
    nodes = [node for node in model.graph.node if node.name.startswith("layers/layer_0")]
    kinds = {node.op_type: types[node.output[0]] for node in nodes}
    assert kinds["ReduceMean"] == kinds["Softmax"] == FLOAT and kinds["MatMul"] == FLOAT16


def test_the_embeddings_are_stored_once_and_every_parameter_is_counted(pairs, tmp_path):
    file, _ = build(pairs, tmp_path)
    model = onnx.load(str(file))
    table = [tensor for tensor in model.graph.initializer if tensor.name.startswith("language.embed")]
    uses = [node.op_type for node in model.graph.node if table[0].name in node.input]
    assert len(table) == 1 and sorted(uses) == ["Gather", "Gemm"]
    text = pairs.vla.model.model.language_model
    counted = sum(row["parameters"] for row in layer_table(file))
    assert counted == sum(each.numel() for each in text.parameters()) + text.embed_tokens.weight.numel()


def test_onnxruntime_s_operators_are_the_default_where_they_compute(pairs, tmp_path):
    file, manifest = build(pairs, tmp_path / "default")
    assert manifest.graph.operators == "onnxruntime" and manifest.graph.model_dump()["operators"] == "onnxruntime"
    kinds = Counter(node.op_type for node in onnx.load(str(file)).graph.node)
    assert kinds["Sqrt"] == 1, "the first norm: the others are one with the sum before"
    assert kinds["GroupQueryAttention"] == 2 and kinds["SkipSimplifiedLayerNormalization"] == 4 and not kinds["Softmax"]
    check_onnx(file, 18, fused=True)
    with pytest.raises(ModelError, match="opset: the file has"):
        check_onnx(file, 18)
    for folder, options in (("opset", {"opset": 17}), ("half", {"precision": "fp16"})):
        graph = build(pairs, tmp_path / folder, **options)[1].graph
        assert graph.operators == "standard" and "operators" not in graph.model_dump()


def test_heads_that_onnxruntime_s_operators_do_not_compute_get_onnx_s(tmp_path, ego_history):
    size = TinySize(image_height=56, image_width=56, tower_depth=1, width=64, heads=8, kv_heads=2, layers=1)
    toy = make_toy(tmp_path / "toy", dataclasses.replace(size, full_attention_blocks=(0,)))
    file, manifest = build(toy, tmp_path / "engine")
    assert (manifest.graph.head_dim, manifest.graph.operators) == (8, "standard")
    asked = question(toy, ego_history, 4)
    ours = forced_logits(toy, open_file(toy, file), asked, ANSWER)
    torch.testing.assert_close(ours, expected(toy, asked), atol=1e-4, rtol=0)
    with pytest.raises(InputError, match="operators: onnxruntime is for heads of a multiple of 16, not of 8"):
        build(toy, tmp_path / "other", operators="onnxruntime")


def test_a_machine_with_a_gpu_gets_onnx_s_operators(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert GraphOptions().graph_operators == "standard"
    assert GraphOptions(operators="onnxruntime").graph_operators == "onnxruntime"


def test_the_cache_is_written_where_it_lies(pairs, tmp_path, ego_history):
    engine = open_file(pairs, build(pairs, tmp_path)[0])
    asked = question(pairs, ego_history, 50)
    _, cache = prefill(engine, [asked.prompt], [asked.tokens], 8)
    used, length = len(asked.prompt), len(asked.prompt) + 8
    assert (cache.used, cache.length) == (used, length) and cache.capacity >= length
    assert bool((cache.keys[..., :used, :].abs().sum(-1) > 0).all()) and not bool(cache.keys[..., used:, :].any())
    before = cache.keys.clone()
    now = engine.position_inputs((asked.prompt.next_position + torch.arange(2)).expand(3, 1, -1))
    engine.extend(torch.tensor([[30, 77]]), now, cache)
    assert cache.used == used + 2 and torch.equal(cache.keys[..., :used, :], before[..., :used, :])
    assert bool((cache.keys[..., used : used + 2, :].abs().sum(-1) > 0).all())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"precision": "int8"}, "precision: 'int8'"),
        ({"precision": "bf16", "opset": 17}, "bf16 is for opset 18"),
        ({"operators": "cuda"}, "operators: 'cuda' is not one of standard, onnxruntime"),
        ({"operators": "onnxruntime", "precision": "fp16"}, "not for fp16 and opset 18; give standard"),
        ({"operators": "onnxruntime", "opset": 17}, "not for fp32 and opset 17; give standard"),
        ({"max_keep": 10}, "max_keep: is for vision engines"),
        ({"precision": "fp16", "fp32_mlp": [2]}, "the language model has blocks 0 to 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(pairs, tmp_path, options, reason):
    with pytest.raises(InputError, match=reason):
        build(pairs, tmp_path, **options)


def test_the_writer_takes_names_for_lengths_and_refuses_what_does_not_fit():
    graph = GraphWriter(18)
    rows, one = graph.input("a", ("rows", 6), FLOAT), graph.input("b", (1, 6), FLOAT)
    assert graph.add(one, rows).shape == ("rows", 6)
    assert graph.reshape(rows, (2, "rows", 3)).shape == (2, "rows", 3)
    assert graph.concat([rows, one], 0, "more").shape == ("more", 6)
    assert graph.matmul(rows, graph.input("c", (6, "columns"), FLOAT)).shape == ("rows", "columns")
    with pytest.raises(ValueError, match="Reshape"):
        graph.reshape(rows, (6, "columns"))
    with pytest.raises(ValueError, match="do not fit"):
        graph.add(rows, graph.input("d", ("columns", 6), FLOAT))
    with pytest.raises(TypeError, match="Gemm"):
        graph.matmul_transposed(rows, graph.input("e", (4, 5), FLOAT))
