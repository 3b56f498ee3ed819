"""Cameras of different image sizes: the model reads each at its own, and pruning, prompt and plan follow."""

import dataclasses

import numpy as np
import pytest
import torch

from fastdrive_node.cli import main
from fastdrive_node.errors import ModelError
from fastdrive_node.families import MODEL_TYPES, VisualTokens, build_prompt, load_vla
from fastdrive_node.planning.answer_format import example_answer
from fastdrive_node.planning.generator import Generator
from fastdrive_node.planning.pipeline import Pipeline
from fastdrive_node.pruning.catalog import ScoreOptions
from fastdrive_node.pruning.pruner import PruningContext
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.pruning.registry import make_pruner, with_options
from fastdrive_node.pruning.score_pruner import ScorePruner
from fastdrive_node.types import CameraFrame, Command, EgoHistory, EgoState, FrameSet
from tests.families.checks import answer, by_masking, some_kept
from tests.families.tiny_vlas import build_family_vla, with_sizes
from tests.generation import answer_with

MIXED = ("qwen2_5_vl", "qwen3_vl")  # the others read one size


@pytest.fixture(scope="module", params=MIXED)
def vla(request, tmp_path_factory):
    path = build_family_vla(tmp_path_factory.mktemp("vla"), request.param)
    side = load_vla(path, parts=frozenset()).pixels_per_token
    return load_vla(with_sizes(path, {"CAM_FRONT_LEFT": (2 * side, 4 * side)}))  # the others: 3 x 5 tokens


@pytest.fixture(scope="module")
def images(vla):
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in vla.spec.sizes]


@pytest.fixture(scope="module")
def scene(vla, images, ego_history):
    vision = vla.torch_vision()
    with torch.inference_mode():
        return vision.encode(vision.preprocess(images)), build_prompt(vla, ego_history, Command.LEFT)


def test_each_camera_has_its_own_grid(vla, scene):
    visual, prompt = scene
    assert vla.grids == ((3, 5), (4, 2), (3, 5)) and visual.image_grids == vla.grids
    assert vla.tokens == vla.set_tokens == visual.total == len(prompt.visual) == 38


def test_the_answer_is_that_of_transformers_generate(vla, images, scene):
    visual, prompt = scene
    patches, merge = [], vla.config.vision_config.spatial_merge_size
    for image, size in zip(images, vla.spec.sizes, strict=True):
        spec = dataclasses.replace(vla.spec, image_size=size, image_sizes={}, cameras=("CAM_FRONT",))
        patches.append(dataclasses.replace(vla, spec=spec).torch_vision().preprocess([image])[0])
    ids = prompt.input_ids[None]
    out = vla.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=torch.cat(patches),
        image_grid_thw=torch.tensor([[1, merge * rows, merge * columns] for rows, columns in vla.grids]),
        mm_token_type_ids=(ids == vla.image_token_id).int(),
        max_new_tokens=vla.spec.answer.max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(Generator(vla).answer.stop_ids),
    )
    expected = tuple(out[0, len(prompt) :].tolist())
    assert len(set(expected)) > 4 and answer(vla, visual, prompt) == expected


def test_dropped_tokens_are_as_masked_ones(vla, scene):
    visual, prompt = scene
    kept = some_kept(vla, 12)
    ours = answer(vla, visual, prompt, kept)
    assert ours == by_masking(vla, visual, prompt, kept, len(ours))


def test_a_cameras_tokens_are_those_it_has_alone(vla, images, scene):
    visual, _ = scene
    spec = dataclasses.replace(vla.spec, image_size=vla.spec.sizes[1], image_sizes={}, cameras=("CAM_FRONT_LEFT",))
    vision = dataclasses.replace(vla, spec=spec).torch_vision()
    with torch.inference_mode():
        alone = vision.encode(vision.preprocess(images[1:2]))
    assert torch.allclose(visual.rows[visual.spans[1]], alone.rows, atol=1e-5)


@pytest.mark.parametrize("name", ["random", "uniform", "divprune", "cdpruner", "prune2drive-input"])
def test_pruners_that_need_tokens_only_choose_over_all_sizes(vla, scene, name):
    visual, prompt = scene
    pruner = make_pruner(name, vla)
    context = Generator(vla).context(pruner, visual, prompt)
    chosen = pruner.choose(context, 10).indices
    assert len(set(chosen.tolist())) == 10 and int(chosen.min()) >= 0 and int(chosen.max()) < visual.total


def test_a_pruners_scores_of_an_image_do_not_depend_on_the_sizes_of_others(vla, scene):
    visual, _ = scene
    torch.manual_seed(0)
    module = ReconPruner(vla.family, vla.config.text_config).eval()
    with torch.inference_mode():
        scores = ScorePruner(module).score(PruningContext(visual))
        for span, grid in zip(visual.spans, visual.image_grids, strict=True):
            alone = module(visual.rows[span][None], grid)
            assert torch.allclose(scores[:, span], alone, atol=1e-5)
    assert scores.shape == (1, visual.total)


def test_options_that_remember_or_calibrate_need_one_size(vla):
    with pytest.raises(ModelError, match=r"vla\.json: image_sizes: calibrated_scores, .* needs one image size"):
        with_options(ScorePruner(None), ScoreOptions(keep_threshold=0.5), vla, None)


def test_what_needs_one_grid_says_so(vla):
    with pytest.raises(ModelError, match=r"vla\.json: image_sizes: .* needs one image size for all cameras"):
        _ = vla.grid


def test_a_plan_holds_the_kept_tokens_of_each_camera(vla, images, monkeypatch):
    answer_with(monkeypatch, example_answer(vla.spec.answer))
    pipeline = Pipeline(vla, make_pruner("divprune", vla), 0.5)
    pipeline.warm_up()
    pairs = zip(vla.spec.cameras, images, strict=True)
    frames = tuple(CameraFrame(name, 10**9, 10**9, lambda i=image: i) for name, image in pairs)
    at_rest = EgoHistory((EgoState(0, 0.0, 0.0, 0.0, 0.0),), 0.5)
    kept = pipeline.plan(FrameSet(frames, 10**9), at_rest).kept
    assert kept is not None and [mask.shape for mask in kept.masks()] == [(3, 5), (4, 2), (3, 5)]
    assert sum(int(mask.sum()) for mask in kept.masks()) == kept.kept == 19
    without = pipeline.plan(FrameSet(frames, 2 * 10**9, ("CAM_FRONT_LEFT",)), at_rest).kept
    assert without is not None and not without.masks()[1].any() and 0 < without.kept < 19


def test_past_images_keep_the_sizes_of_their_cameras(vla, scene, ego_history):
    visual, _ = scene
    past = VisualTokens.of_images([(visual, 1), (visual, 1), (visual, 0)])
    assert past.image_grids == ((4, 2), (4, 2), (3, 5)) and past.total == 31
    assert torch.equal(past.rows[:8], past.rows[8:16])
    same = VisualTokens.of_images([(visual, 1), (visual, 1)])
    assert same.grid == (2, 4, 2) and same.grids is None
    for one, other in zip(past.layer_features, visual.layer_features, strict=True):
        assert torch.equal(one[:8], other[visual.spans[1]])


@pytest.mark.parametrize("model_type", sorted(set(MODEL_TYPES) - set(MIXED)))
def test_families_of_one_size_refuse_another_with_the_reason(tmp_path, model_type):
    path = with_sizes(build_family_vla(tmp_path, model_type), {"CAM_FRONT": (140, 112)})
    with pytest.raises(ModelError, match=r"vla\.json: image_sizes\.CAM_FRONT: 140 x 112, but the vision tower reads"):
        load_vla(path)


@pytest.mark.parametrize(
    "sizes,reason",
    [
        ({"CAM_FRONT": (141, 84)}, r"image_sizes\.CAM_FRONT\.width: 141 is not a multiple of 28"),
        ({"CAM_TOP": (140, 84)}, r"image_sizes\.CAM_TOP: is no camera of this VLA"),
        ({name: (84, 84) for name in ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT")}, "cameras have one size"),
        ({"CAM_FRONT": (0, 84)}, r"image_sizes\.CAM_FRONT.*greater than or equal to 1"),
    ],
)
def test_sizes_that_cannot_be_are_named(tmp_path, sizes, reason):
    with pytest.raises(ModelError, match=reason):
        load_vla(with_sizes(build_family_vla(tmp_path, "qwen2_5_vl"), sizes))


def test_check_tells_the_sizes(vla, capsys):
    assert main(["vla", "check", str(vla.path)]) == 0
    assert "of CAM_FRONT_LEFT " in capsys.readouterr().out
