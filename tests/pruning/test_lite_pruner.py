"""The lite pruner: a narrow layer behind a projection; its cost, its file, and its name."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import ROOT
from benchmarks.studies.pruner_memory import SIZES
from fastdrive_node.errors import ModelError
from fastdrive_node.families import VISION, load_vla
from fastdrive_node.families.fingerprint import pruner_fingerprint
from fastdrive_node.families.spec import default_vla_dir
from fastdrive_node.planning.identity import Identity
from fastdrive_node.planning.loading import open_pipeline
from fastdrive_node.pruning.calibration import Calibration, CameraScale, FitRecord
from fastdrive_node.pruning.catalog import FILES, ScoreOptions
from fastdrive_node.pruning.checkpoint import load_calibration, load_pruner, save_calibration, save_pruner
from fastdrive_node.pruning.lite import narrow_sizes
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.pruning.registry import make_pruner
from fastdrive_training.data.image_sets import BagSets
from fastdrive_training.distil.trainer import overlap
from fastdrive_training.scoring.score import score_sets
from tests.generation import QWEN, lite_pruner
from tests.pruning.test_pruner_files import rewrite, set_config

NAME = "reconpruner-lite"
GRID = (4, 8)


@pytest.fixture(scope="module")
def lite(tiny_vla) -> ReconPruner:
    torch.manual_seed(0)
    return lite_pruner(tiny_vla).eval()


@pytest.fixture
def file(tmp_path, tiny_vla, lite):
    path = tmp_path / "lite.safetensors"
    save_pruner(path, lite, tiny_vla.encoder_fingerprint)
    return path


@pytest.fixture(scope="module")
def with_file(tiny_dir, tiny_vla, lite, tmp_path_factory):
    """A VLA directory with both pruners, which score differently."""
    folder = shutil.copytree(tiny_dir, tmp_path_factory.mktemp("lite") / "vla")
    save_pruner(folder / FILES[NAME], lite, tiny_vla.encoder_fingerprint)
    save_pruner(
        folder / "reconpruner.safetensors",
        ReconPruner(tiny_vla.family, tiny_vla.config.text_config),
        tiny_vla.encoder_fingerprint,
    )
    return folder


def _flops(pruner: ReconPruner) -> int:
    """Of the scores of one image of 3249 tokens, as the paper's."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        pruner(torch.zeros(1, 57 * 57, pruner.width, device="meta"), (57, 57))
    return counter.get_total_flops()


@pytest.mark.parametrize("size,layers", [("3B", 36), ("7B", 28)])
def test_the_width_of_the_recipes_costs_less_than_0_7_percent_of_an_unpruned_prefill(size, layers):
    text = SIZES[size].config().text_config
    with torch.device("meta"):
        full = ReconPruner(QWEN, text)
        narrow = ReconPruner(QWEN, narrow_sizes(QWEN, text, 512), token_width=text.hidden_size)
    prefill = layers * _flops(full)  # the pruner's layer is one of the language model's
    assert _flops(narrow) < 0.003 * prefill < 0.2 * _flops(full)


def test_heads_keep_their_size_and_the_rest_shrinks_with_the_width():
    text = SIZES["3B"].config().text_config
    assert {
        "hidden_size": 512,
        "intermediate_size": 2752,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "mrope_section": [16, 24, 24],
    }.items() <= narrow_sizes(QWEN, text, 512).items()
    assert narrow_sizes(QWEN, text, 128 * 3)["num_key_value_heads"] == 1  # it divides the number of heads


@pytest.mark.parametrize("width", [0, -32, 48, 128, 160])
def test_a_width_that_no_layer_can_have_is_refused(tiny_vla, width):
    with pytest.raises(ValueError, match=f"{width} is not a multiple of the head size 32 below .* tokens, 128"):
        narrow_sizes(tiny_vla.family, tiny_vla.config.text_config, width)


def test_a_stored_lite_pruner_scores_as_before(file, tiny_vla, lite):
    tokens, loaded = torch.randn(6, 32, 128), load_pruner(file, tiny_vla)
    with torch.inference_mode():
        assert torch.equal(loaded(tokens, GRID), lite(tokens, GRID))
    assert loaded.width == 128 and loaded.layer.width == 32


def test_a_reader_that_knows_version_1_alone_refuses_its_file_and_reads_a_full_one(file, tiny_vla, tmp_path):
    """Readers before it compare the version with "1"."""
    full = tmp_path / "full.safetensors"
    save_pruner(full, ReconPruner(tiny_vla.family, tiny_vla.config.text_config), tiny_vla.encoder_fingerprint)
    for path, version in ((full, "1"), (file, "2")):
        with safe_open(path, framework="pt") as stored:
            assert stored.metadata()["version"] == version


@pytest.mark.parametrize("width", [None, 0, -1, True, 128.0, "128", [128], 1 << 18])
def test_a_token_width_that_is_none_is_refused(file, tiny_vla, width):
    rewrite(file, set_config(token_width=width))
    with pytest.raises(ModelError, match="config: token_width: must be a whole number from 1 to 131072"):
        load_pruner(file, tiny_vla)


def test_another_token_width_is_refused_with_both_widths(file, tiny_vla):
    rewrite(file, set_config(token_width=64))
    with pytest.raises(ModelError, match=r"scores tokens of width 64, but .* gives tokens of width 128"):
        load_pruner(file, tiny_vla)


def test_a_full_pruner_s_file_has_no_token_width(tmp_path, tiny_vla):
    full = tmp_path / "full.safetensors"
    save_pruner(full, ReconPruner(tiny_vla.family, tiny_vla.config.text_config), tiny_vla.encoder_fingerprint)
    rewrite(full, set_config(token_width=128))
    with pytest.raises(ModelError, match="config: token_width"):
        load_pruner(full, tiny_vla)


def test_a_calibration_and_the_bias_of_each_camera_are_kept(tmp_path, tiny_vla):
    cameras = tuple(reversed(tiny_vla.spec.cameras))
    pruner, path = lite_pruner(tiny_vla, cameras), tmp_path / "biased.safetensors"
    pruner.camera_bias.data = torch.arange(6.0)
    save_pruner(path, pruner, tiny_vla.encoder_fingerprint)
    scales = dict.fromkeys(cameras, CameraScale(2.0, 1.0))
    save_calibration(path, Calibration(scales, FitRecord("toy", "val", 1, 0.1, 0.1)))
    loaded, tokens = load_pruner(path, tiny_vla), torch.randn(6, 32, 128)
    with torch.inference_mode():
        added = (loaded(tokens, GRID) - loaded.image_scores(tokens, GRID)).mean(1)
    torch.testing.assert_close(added, torch.tensor([5.0, 4, 3, 2, 1, 0]), atol=1e-4, rtol=0)
    assert load_calibration(path).cameras == scales


def test_its_name_stands_for_its_file_in_the_vla_directory(with_file):
    vla = load_vla(with_file)
    pruner = make_pruner(NAME, vla)
    assert pruner.name == NAME and pruner.module.layer.width == 32
    (with_file / FILES[NAME]).rename(with_file / "moved")
    try:
        with pytest.raises(ModelError, match=r"reconpruner_lite\.safetensors: no such pruner file"):
            make_pruner(NAME, vla)
    finally:
        (with_file / "moved").rename(with_file / FILES[NAME])


def test_the_name_alone_lacks_a_vla():
    with pytest.raises(ModelError, match="reconpruner-lite: a VLA is needed"):
        make_pruner(NAME)


def test_a_pipeline_takes_its_name_with_its_fingerprint_and_options(with_file):
    pipeline = open_pipeline(with_file, NAME, 0.5, scores=ScoreOptions(even_spacing=0.25))
    assert pipeline.pruner.base.module.layer.width == 32
    values = Identity(pipeline, NAME)()
    assert values["pruner"] == "reconpruner reconpruner-lite"
    assert values["pruner_fingerprint"] == pruner_fingerprint(with_file / FILES[NAME])[:12]


def test_the_shipped_lite_pruner_chooses_nearly_what_the_full_one_does():
    vla = load_vla(default_vla_dir(), parts=frozenset({VISION}))
    sets = BagSets.open(ROOT / "samples" / "city", None, vla.spec.cameras)
    full, lite = (load_pruner(vla.path / name, vla) for name in ("reconpruner.safetensors", FILES[NAME]))
    scores = [torch.from_numpy(score_sets(sets, range(0, len(sets), 8), vla, each)) for each in (full, lite)]
    assert min(overlap(*scores).values()) > 0.95
    assert float((scores[0] - scores[1]).square().mean()) < 0.02 * float(scores[0].var())
    assert load_calibration(vla.path / FILES[NAME]).cameras.keys() == set(vla.spec.cameras)
