import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fastdrive_node.errors import ModelError
from fastdrive_node.families import VisualTokens, load_vla
from fastdrive_node.pruning.checkpoint import load_pruner, save_pruner
from fastdrive_node.pruning.pruner import PruningContext
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.pruning.score_pruner import ScorePruner
from fastdrive_training.vla.tiny_model import TinySize, build_tiny_vla


@pytest.fixture(scope="module")
def pruner(tiny_vla):
    torch.manual_seed(0)
    return ReconPruner(tiny_vla.family, tiny_vla.config.text_config).eval()


@pytest.fixture
def file(tmp_path, tiny_vla, pruner):
    path = tmp_path / "reconpruner.safetensors"
    save_pruner(path, pruner, tiny_vla.encoder_fingerprint)
    return path


def rewrite(file, change_metadata=None, change_tensors=None):
    """Write the file again with other content."""
    with safe_open(file, framework="pt") as stored:
        metadata, tensors = dict(stored.metadata()), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    if change_metadata:
        change_metadata(metadata)
    if change_tensors:
        change_tensors(tensors)
    save_file(tensors, file, metadata)


def set_config(**values):
    def change(metadata):
        metadata["config"] = json.dumps({**json.loads(metadata["config"]), **values})

    return change


def test_a_saved_pruner_scores_as_before(file, tiny_vla, pruner):
    tokens = torch.randn(6, 32, 128)
    loaded = load_pruner(file, tiny_vla)
    with torch.inference_mode():
        assert torch.equal(loaded(tokens, (4, 8)), pruner(tokens, (4, 8)))
    assert not loaded.training and loaded.normalise
    assert list(file.parent.iterdir()) == [file]


def test_the_flag_for_the_paper_s_product_is_kept(tmp_path, tiny_vla):
    raw = ReconPruner(tiny_vla.family, tiny_vla.config.text_config, normalise=False)
    save_pruner(tmp_path / "raw.safetensors", raw, tiny_vla.encoder_fingerprint)
    assert load_pruner(tmp_path / "raw.safetensors", tiny_vla).normalise is False


def test_it_follows_the_vla_s_dtype(file, tiny_dir):
    assert load_pruner(file, load_vla(tiny_dir, dtype=torch.bfloat16)).query.dtype == torch.bfloat16


def test_another_width_is_refused_with_both_widths(file, tmp_path):
    other = load_vla(build_tiny_vla(tmp_path / "wide", 0, TinySize(width=64, heads=2)))
    with pytest.raises(ModelError, match=r"hidden_size: .*width 128, but .*wide gives tokens of width 64"):
        load_pruner(file, other)


def test_another_encoder_is_refused(file, tmp_path):
    other = load_vla(build_tiny_vla(tmp_path / "other", seed=1))
    with pytest.raises(ModelError, match=r"encoder: trained on the vision encoder .* train the pruner on this encoder"):
        load_pruner(file, other)


def test_another_language_half_with_the_same_encoder_is_served(file, tiny_vla):
    torch.manual_seed(1)
    other = dataclasses.replace(tiny_vla, template=tiny_vla.template + "\n")
    assert load_pruner(file, other).width == other.width


def test_a_missing_file_is_named(tmp_path, tiny_vla):
    with pytest.raises(ModelError, match=r"none\.safetensors: no such pruner file"):
        load_pruner(tmp_path / "none.safetensors", tiny_vla)


@pytest.mark.parametrize("size", [0, 4, 100, -500])
def test_a_cut_off_file_is_named(file, tiny_vla, size):
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ModelError, match=r"reconpruner\.safetensors: not a readable safetensors file"):
        load_pruner(file, tiny_vla)


def test_a_header_that_claims_to_be_huge_is_refused(file, tiny_vla):
    file.write_bytes((2**62).to_bytes(8, "little") + file.read_bytes()[8:])
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load_pruner(file, tiny_vla)


def test_weights_that_are_no_pruner_are_refused(tiny_dir, tiny_vla):
    with pytest.raises(ModelError, match="format: not a pruner file"):
        load_pruner(tiny_dir / "model.safetensors", tiny_vla)


@pytest.mark.parametrize(
    "change,reason",
    [
        (lambda m: m.update(version="3"), "version: '3' is not '1' or '2'; update this package"),
        (lambda m: m.pop("config"), "config: not readable as JSON"),
        (lambda m: m.update(config="[" * 10**5), "config: not readable as JSON"),
        (lambda m: m.update(config="[]"), "config: normalise: missing"),
        (lambda m: m.pop("encoder"), "encoder: trained on"),
        (set_config(hidden_size=10**12), "config: .*hidden_size"),
        (set_config(intermediate_size=1 << 17), r"tensor .*mlp.*expected \[.*131072"),
        (set_config(intermediate_size=True), "config: .*intermediate_size"),
        (set_config(num_attention_heads=0), "num_attention_heads"),
        (set_config(num_attention_heads=3), "do not fit each other"),
        (set_config(num_key_value_heads=3), "do not fit each other"),
        (set_config(mrope_section=[1, 2, 3]), "mrope_section does not fit"),
        (set_config(rope_theta=float("nan")), "config: not readable as JSON"),
        (set_config(hidden_act="exec"), "hidden_act"),
        (set_config(extra=1), "extra"),
    ],
)
def test_hostile_metadata_is_refused(file, tiny_vla, change, reason):
    rewrite(file, change)
    with pytest.raises(ModelError, match=reason):
        load_pruner(file, tiny_vla)


@pytest.mark.parametrize(
    "change,reason",
    [
        (lambda t: t.pop("query"), "tensor 'query' is missing"),
        (lambda t: t.update(other=torch.zeros(1)), "tensor 'other' is not a pruner tensor"),
        (lambda t: t.update(query=torch.zeros(2, 128)), r"tensor 'query' has shape \[2, 128\], expected \[1, 128\]"),
        (lambda t: t["query"].fill_(float("nan")), "tensor 'query' holds values that are not finite"),
    ],
)
def test_wrong_tensors_are_refused(file, tiny_vla, change, reason):
    rewrite(file, change_tensors=change)
    with pytest.raises(ModelError, match=reason):
        load_pruner(file, tiny_vla)


def test_a_failed_write_leaves_the_old_file(file, pruner, tiny_vla, monkeypatch):
    before = file.read_bytes()

    def full(path, content):
        with path.open("wb") as half:
            half.write(content[: len(content) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError):
        save_pruner(file, pruner, tiny_vla.encoder_fingerprint)
    assert file.read_bytes() == before


def test_a_written_file_is_as_readable_as_any_other(file, tmp_path):
    (tmp_path / "other").write_text("")
    assert file.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.fixture
def biased(tmp_path, tiny_vla):
    """A pruner file with a bias for each camera, written in another order than the VLA's."""
    torch.manual_seed(0)
    cameras = tuple(reversed(tiny_vla.spec.cameras))
    pruner = ReconPruner(tiny_vla.family, tiny_vla.config.text_config, cameras=cameras).eval()
    pruner.camera_bias.data = torch.arange(6.0)
    save_pruner(tmp_path / "biased.safetensors", pruner, tiny_vla.encoder_fingerprint)
    return tmp_path / "biased.safetensors"


def test_the_bias_of_a_camera_follows_its_name(biased, tiny_vla):
    pruner, tokens = load_pruner(biased, tiny_vla), torch.randn(12, 32, 128)
    added = (pruner(tokens, (4, 8)) - pruner.image_scores(tokens, (4, 8))).mean(1)
    torch.testing.assert_close(added, torch.tensor([5.0, 4, 3, 2, 1, 0] * 2), atol=1e-4, rtol=0)
    few = dataclasses.replace(tiny_vla.spec, cameras=("CAM_BACK", "CAM_FRONT"))
    pruner = load_pruner(biased, dataclasses.replace(tiny_vla, spec=few))
    assert pruner.cameras == ("CAM_BACK", "CAM_FRONT") and pruner.camera_bias.tolist() == [2.0, 5.0]
    with pytest.raises(ValueError, match="3 images are no whole sets of 2 cameras"):
        pruner(tokens[:3], (4, 8))


def test_a_camera_without_a_bias_is_refused(biased, tiny_vla):
    other = dataclasses.replace(tiny_vla.spec, cameras=("CAM_FRONT", "CAM_ROOF"))
    with pytest.raises(ModelError, match=r"has a bias for CAM_.* reads CAM_ROOF; distil a pruner for these cameras"):
        load_pruner(biased, dataclasses.replace(tiny_vla, spec=other))


@pytest.mark.parametrize("cameras", ["CAM_FRONT", ["a", "a"], [1, 2], [["a"]], ["a"] * 65])
def test_hostile_camera_names_are_refused(biased, tiny_vla, cameras):
    rewrite(biased, set_config(cameras=cameras))
    with pytest.raises(ModelError, match="config: cameras: must be a list of different names"):
        load_pruner(biased, tiny_vla)


def test_images_of_different_sizes_get_the_bias_of_their_camera(biased, tiny_vla):
    pruner = ScorePruner(load_pruner(biased, tiny_vla))
    images = [(VisualTokens.from_raster(torch.randn(1, rows * 2, 128), (rows, 2)), 0) for rows in (1, 2, 3, 1, 1, 2)]
    context = PruningContext(VisualTokens.of_images(images))
    added = pruner.score(context) - context.by_image(pruner.module.image_scores)
    expected = torch.tensor([5.0, 4, 3, 2, 1, 0]).repeat_interleave(torch.tensor([2, 4, 6, 2, 2, 4]))
    torch.testing.assert_close(added[0], expected, atol=1e-4, rtol=0)
