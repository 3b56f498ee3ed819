"""Pruners on every family: the learned one with the family's own layer, and those to compare with."""

from __future__ import annotations

import pytest
import torch

from fastdrive_node.benchmark.comparison import compare
from fastdrive_node.engines.language_engine import LanguageChoice
from fastdrive_node.engines.vision_engine import EngineChoice
from fastdrive_node.errors import ModelError
from fastdrive_node.families import MODEL_TYPES, LayeredLanguageModel, Vla, load_vla
from fastdrive_node.files import SHIPPED_PRUNER
from fastdrive_node.planning.loading import open_pipeline
from fastdrive_node.planning.pipeline import Pipeline
from fastdrive_node.pruning.catalog import PRUNERS, ScoreOptions
from fastdrive_node.pruning.checkpoint import load_pruner, save_pruner
from fastdrive_node.pruning.pruner import ContextField
from fastdrive_node.pruning.registry import make_pruner
from fastdrive_node.pruning.score_pruner import RefinedPruner, ScorePruner
from tests.families.checks import build_sibling, frame_set_of, images_of, scene_of
from tests.families.tiny_vlas import CAMERAS, build_family_vla
from tests.generation import lite_pruner, read_answers_as, untrained_pruner, write_geometry, write_packer


@pytest.fixture(scope="module", params=MODEL_TYPES)
def vla(request, tmp_path_factory) -> Vla:
    path = build_family_vla(tmp_path_factory.mktemp("vla"), request.param)
    return load_vla(write_packer(write_geometry(path, CAMERAS)))


@pytest.fixture(scope="module")
def pruner(vla):
    return untrained_pruner(vla).eval()


@pytest.fixture(scope="module")
def pruner_file(vla, pruner, tmp_path_factory):
    path = tmp_path_factory.mktemp("pruner") / SHIPPED_PRUNER
    save_pruner(path, pruner, vla.encoder_fingerprint)
    return path


@torch.inference_mode()
def tokens_of(vla):
    vision = vla.torch_vision()
    return vision.encode(vision.preprocess(images_of(vla))).raster()


def test_a_score_depends_on_tokens_before_and_behind(vla, pruner):
    tokens = tokens_of(vla)[:1]
    last, middle = tokens.shape[1] - 1, tokens.shape[1] // 2
    with torch.inference_mode():
        before = pruner(tokens, vla.grid)[0, middle]
        for place in (0, last):
            changed = tokens.clone()
            changed[:, place] = changed[:, place].flip(-1)
            assert not torch.equal(pruner(changed, vla.grid)[0, middle], before)


def test_a_score_depends_on_where_a_token_is(vla, pruner):
    tokens = tokens_of(vla)[:1]
    order = torch.arange(tokens.shape[1]).flip(0)
    with torch.inference_mode():
        scores, moved = pruner(tokens, vla.grid), pruner(tokens[:, order], vla.grid)[:, order]
    assert (scores - moved).abs().max() > 1e-4


def test_it_is_built_from_the_familys_own_decoder_layer(vla):
    layer = vla.model.model.language_model.layers[0]
    ours = untrained_pruner(vla).layer
    assert isinstance(ours, type(layer))
    ours.load_state_dict(layer.state_dict())


def test_a_stored_pruner_scores_as_the_one_that_was_stored(vla, pruner, pruner_file):
    loaded = load_pruner(pruner_file, vla)
    with torch.inference_mode():
        torch.testing.assert_close(pruner(tokens_of(vla), vla.grid), loaded(tokens_of(vla), vla.grid))


def test_a_lite_pruner_has_a_narrow_layer_of_the_family_and_is_stored_and_refused_as_the_full_one(vla, tmp_path):
    torch.manual_seed(0)
    lite = lite_pruner(vla).eval()
    assert isinstance(lite.layer, type(untrained_pruner(vla).layer)) and lite.layer.width == 32 < lite.width
    save_pruner(tmp_path / "lite.safetensors", lite, vla.encoder_fingerprint)
    with torch.inference_mode():
        loaded = load_pruner(tmp_path / "lite.safetensors", vla)(tokens_of(vla), vla.grid)
        torch.testing.assert_close(lite(tokens_of(vla), vla.grid), loaded)
    assert loaded.std() > 0
    stranger = load_vla(build_family_vla(tmp_path / "stranger", vla.family.model_type, seed=1))
    with pytest.raises(ModelError, match="encoder: trained on the vision encoder"):
        load_pruner(tmp_path / "lite.safetensors", stranger)


def test_a_pruner_file_serves_a_vla_with_the_same_encoder_and_another_language_model(vla, pruner_file, tmp_path):
    sibling = load_vla(build_sibling(tmp_path / "sibling", vla.path))
    assert len(sibling.model.model.language_model.layers) != len(vla.model.model.language_model.layers)
    with torch.inference_mode():
        scores = [load_pruner(pruner_file, each)(tokens_of(each), each.grid) for each in (vla, sibling)]
    assert torch.equal(*scores)


def test_a_pruner_file_is_refused_for_another_encoder(vla, pruner_file, tmp_path):
    stranger = load_vla(build_family_vla(tmp_path / "stranger", vla.family.model_type, seed=1))
    with pytest.raises(ModelError, match=r"encoder: trained on the vision encoder '\w{12}', but .*stranger has"):
        load_pruner(pruner_file, stranger)


def test_a_projector_is_part_of_the_encoder(vla, pruner_file, tmp_path):
    if not hasattr(vla.model.model, "multi_modal_projector"):
        pytest.skip("its tower ends in the language model's width")
    path = build_sibling(tmp_path / "sibling", vla.path, others=("projector",))
    with pytest.raises(ModelError, match="encoder: trained on the vision encoder"):
        load_pruner(pruner_file, load_vla(path))


def test_a_pruner_file_is_refused_by_another_family(vla, pruner_file, tmp_path):
    other = next(each for each in MODEL_TYPES if each != vla.family.model_type)
    with pytest.raises(ModelError, match=r"config: |encoder: "):
        load_pruner(pruner_file, load_vla(build_family_vla(tmp_path, other)))


@pytest.mark.parametrize("name", [name for name in PRUNERS if name not in ("none", "reconpruner", "oracle")])
def test_a_pruner_plans_or_says_what_the_family_lacks(vla, name, ego_history, monkeypatch):
    read_answers_as(monkeypatch)
    pruner, frames = make_pruner(name, vla), frame_set_of(vla)
    inside = pruner.acts_inside or ContextField.TOWER_ATTENTION in pruner.needs
    if inside and not vla.family.has_engines:
        lacks = (
            rf"(pruner {name}: reads the language model's layers|gives no attention of its tower), which .*; use anot"
        )
        with pytest.raises(ModelError, match=lacks):
            Pipeline(vla, pruner, drop=0.5).plan(frames, ego_history)
        return
    kept = Pipeline(vla, pruner, drop=0.5).plan(frames, ego_history).kept
    fewer = name in ("matryoshka", "tokenpacker") or name.startswith("sparsevlm")  # grids; the mean over the layers
    assert kept is not None and (0 < kept.kept < vla.tokens // 2 if fewer else kept.kept == vla.tokens // 2)


def test_pooled_cells_of_all_tokens_and_of_one_each_plan_as_none_and_matryoshka(vla, pruner, ego_history, monkeypatch):
    texts, frames = read_answers_as(monkeypatch), frame_set_of(vla)
    pooled = RefinedPruner(ScorePruner(pruner), ScoreOptions(pooled=True), None, vla.spec.cameras)
    cells = sum(-(-rows // 2) * -(-columns // 2) for rows, columns in vla.grids)
    fewest = 1 - (cells + 0.5) / vla.tokens
    for drop, name, keep in ((0.0, "none", vla.tokens), (fewest, "matryoshka", cells)):
        pair = (Pipeline(vla, pooled, drop), Pipeline(vla, make_pruner(name), drop))
        plans = [pipeline.plan(frames, ego_history) for pipeline in pair]
        assert plans[0].text == plans[1].text and plans[0].kept.kept == plans[1].kept.kept == keep
    assert len(texts) == 4


def test_a_directory_with_its_pruner_plans(vla, pruner_file, tmp_path, ego_history, monkeypatch):
    for file in (*vla.path.iterdir(), pruner_file):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    read_answers_as(monkeypatch)
    pipeline = open_pipeline(tmp_path, drop=0.75)
    kept = pipeline.plan(frame_set_of(vla), ego_history).kept
    assert kept is not None and kept.scores is not None
    assert pipeline.pruner.name == "reconpruner" and kept.kept == vla.tokens // 4
    assert kept.scores.shape == (vla.tokens,)


def test_engines_are_refused_with_the_reason(vla, tmp_path):
    if vla.family.has_engines:
        pytest.skip("it has engines")
    file, reason = tmp_path / "engine.onnx", f"there are no engines for '{vla.family.model_type}'"
    with pytest.raises(ModelError, match=reason):
        open_pipeline(vla.path, "none", engine=EngineChoice("onnxruntime", file))
    with pytest.raises(ModelError, match=reason):
        open_pipeline(vla.path, "none", language_engine=LanguageChoice(file))


def test_a_family_without_a_language_path_of_its_own_is_not_compared_with_transformers(vla):
    if isinstance(vla.torch_language(), LayeredLanguageModel):
        pytest.skip("it has one")
    with pytest.raises(ModelError, match=f"but {vla.family.model_type} runs by transformers' own"):
        compare(Pipeline(vla), runs=1)


def test_no_engine_is_built_of_a_family_without_graphs(vla, pruner_file, tmp_path):
    from fastdrive_export.build import build_onnx

    if vla.family.has_engines:
        pytest.skip("it has engines")
    with pytest.raises(ModelError, match=f"no engines can be built for '{vla.family.model_type}'"):
        build_onnx(vla.path, pruner_file, tmp_path)


def test_layers_of_a_scene_reach_the_language_model_in_the_order_of_the_kept_tokens(vla, ego_history):
    _, visual, _ = scene_of(vla, ego_history)
    kept = torch.tensor([1, 4, 6])
    for feature, all_of_them in zip(visual.keep(kept).layer_features, visual.layer_features, strict=True):
        assert torch.equal(feature, all_of_them[kept])
