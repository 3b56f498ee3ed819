"""TokenPacker: its cells and its rule by hand, its file, and the pruner that reads it."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastdrive_node.cli import main
from fastdrive_node.errors import ModelError
from fastdrive_node.families import VisualTokens, load_vla
from fastdrive_node.families.fingerprint import directory_fingerprint, pruner_fingerprint
from fastdrive_node.families.loading import read_vla
from fastdrive_node.files import TOKEN_PACKER_FILE
from fastdrive_node.planning.identity import Identity
from fastdrive_node.planning.loading import check_pruner, open_pipeline, own_file
from fastdrive_node.pruning.baselines.merging import Matryoshka, PackedTokens
from fastdrive_node.pruning.pruner import PruningContext
from fastdrive_node.pruning.registry import make_pruner
from fastdrive_node.pruning.token_packer import TokenPacker, load_packer, members_of, save_packer
from fastdrive_training.vla.tiny_model import TinySize, build_tiny_vla
from tests.generation import choose, random_packer
from tests.pruning.test_pruner_files import rewrite, set_config

NAME = "tokenpacker"


def visual_of(images: int = 2, grid: tuple[int, int] = (4, 8), width: int = 16) -> VisualTokens:
    return VisualTokens.from_raster(torch.randn(images, grid[0] * grid[1], width), grid)


@pytest.fixture
def folder(tiny_dir, tmp_path):
    """A VLA directory with a packer, to change."""
    return shutil.copytree(tiny_dir, tmp_path / "vla")


def test_the_cells_of_images_of_two_sizes() -> None:
    members, present = members_of([(2, 4), (3, 3)])
    expected = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 11, 12], [10, 10, 13, 10], [14, 15, 14, 14], [16, 16, 16, 16]]
    assert members.tolist() == expected
    assert present.sum(1).tolist() == [4, 4, 4, 2, 2, 1] and present[3].tolist() == [True, False, True, False]


def test_an_untrained_packer_gives_the_means_that_matryoshka_gives() -> None:
    visual = VisualTokens.of_images([(visual_of(1), 0), (visual_of(1, (3, 5)), 0)])
    kept = choose(Matryoshka(), PruningContext(visual), 14)
    with torch.no_grad():
        ours = PackedTokens(TokenPacker(16, 2)).tokens(visual, kept)
    theirs = Matryoshka().tokens(visual, kept)
    torch.testing.assert_close(ours.rows, theirs.rows)
    assert torch.equal(ours.indices, theirs.indices)


def test_the_features_of_later_layers_are_the_means_of_their_cells() -> None:
    tokens, features = torch.randn(2, 15, 16), (torch.randn(30, 16), torch.randn(30, 16))
    visual = VisualTokens.from_raster(tokens, (3, 5), layer_features=features)
    pruner = PackedTokens(random_packer(16))
    kept = choose(pruner, PruningContext(visual), 12)
    ours, theirs = (each.tokens(visual, kept).layer_features for each in (pruner, Matryoshka()))
    assert len(ours) == 2 and all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
    assert torch.equal(ours[1][3], features[1][[10, 11]].mean(0))


def by_torch(packer: TokenPacker, cell: torch.Tensor) -> torch.Tensor:
    """The packed token of one cell [n, D] with torch's own attention."""
    width = cell.shape[-1]
    attention = nn.MultiheadAttention(width, packer.sizes.heads, batch_first=True)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.eye(width).repeat(3, 1))
        attention.in_proj_bias.zero_()
        attention.out_proj.weight.copy_(packer.attended.weight)
        attention.out_proj.bias.copy_(packer.attended.bias)
    coarse = cell.mean(0, keepdim=True)
    query = packer.query_norm(packer.query(coarse))
    key, value = packer.key_norm(packer.key(cell)), packer.value_norm(packer.value(cell))
    found = attention(query[None], key[None], value[None], need_weights=False)[0][0]
    return (coarse + packer.mlp(coarse + found))[0]


@torch.no_grad()
def test_a_packed_token_is_what_its_mean_finds_in_its_cell() -> None:
    packer, visual = random_packer(16), visual_of(2, (3, 4))
    pruner = PackedTokens(packer)
    kept = choose(pruner, PruningContext(visual), 24)
    packed = pruner.tokens(visual, kept).rows
    for row, (members, present) in enumerate(zip(*members_of([(3, 4)] * 2), strict=True)):
        torch.testing.assert_close(packed[row], by_torch(packer, visual.rows[members[present]]), atol=1e-5, rtol=1e-5)
    assert float((packed - Matryoshka().tokens(visual, kept).rows).abs().max()) > 0.5


@torch.no_grad()
def test_a_token_changes_the_packed_token_of_its_own_cell_alone() -> None:
    pruner, visual = PackedTokens(random_packer(16)), visual_of()
    kept = choose(pruner, PruningContext(visual), 16)
    rows = visual.rows.clone()
    rows[32 + 8 + 3] += 1  # second image, row 1, column 3: its cell is the second one of the image
    changed = pruner.tokens(replace(visual, rows=rows), kept).rows != pruner.tokens(visual, kept).rows
    assert changed.any(1).nonzero().flatten().tolist() == [8 + 1]


def test_it_gives_the_same_quarter_at_every_ratio_and_refuses_a_larger_one(tiny_vla) -> None:
    pruner = make_pruner(NAME, tiny_vla)
    context = PruningContext(visual_of(6, width=128))
    quarter = choose(Matryoshka(), context, 48)
    assert all(torch.equal(choose(pruner, context, keep), quarter) for keep in (48, 96, 144, 192))
    with pytest.raises(ModelError, match="tokenpacker: 47 tokens are to be kept, but it always gives 48 of 192; use a"):
        choose(pruner, context, 47)


def test_packed_tokens_do_not_depend_on_the_order_in_which_an_encoder_gives_them() -> None:
    pruner, visual = PackedTokens(random_packer(16)), visual_of()
    order = torch.randperm(64)
    other = VisualTokens(visual.rows[order], order, visual.grid)
    kept = choose(pruner, PruningContext(visual), 16)
    assert torch.equal(pruner.tokens(visual, kept).rows, pruner.tokens(other, kept).rows)
    fewer = VisualTokens(visual.rows[:40], torch.arange(40), visual.grid)
    with pytest.raises(ModelError, match="gives 40 of 64; this pruner reads all"):
        pruner.tokens(fewer, kept)


def test_a_vla_without_the_file_is_refused(folder) -> None:
    assert own_file(folder, NAME) == folder / TOKEN_PACKER_FILE
    check_pruner(read_vla(folder), NAME)
    assert open_pipeline(folder, NAME, 0.75).pruner.name == NAME
    (folder / TOKEN_PACKER_FILE).unlink()
    missing = r"tokenpacker\.safetensors: missing, and the pruner tokenpacker needs it; use a VLA that was trained with"
    with pytest.raises(ModelError, match=missing):
        make_pruner(NAME, load_vla(folder))
    with pytest.raises(ModelError, match=missing):
        check_pruner(read_vla(folder), NAME)
    with pytest.raises(ModelError, match=r"tokenpacker\.safetensors is missing; use a VLA that has it"):
        choose(make_pruner(NAME), PruningContext(visual_of()), 16)


def test_the_pruner_is_named_with_its_file_s_fingerprint(folder) -> None:
    before = Identity(open_pipeline(folder, NAME, 0.75), NAME)()
    assert before["pruner"] == NAME
    assert before["pruner_fingerprint"] == pruner_fingerprint(folder / TOKEN_PACKER_FILE)[:12]
    save_packer(folder, TokenPacker(128, 4))
    assert Identity(open_pipeline(folder, NAME, 0.75), NAME)()["pruner_fingerprint"] != before["pruner_fingerprint"]


def test_a_stored_packer_gives_the_same_tokens_and_follows_the_dtype(tiny_dir, tiny_vla) -> None:
    packer, loaded = random_packer(128), load_packer(tiny_vla)
    members, present = members_of([(4, 8)])
    cells = torch.randn(2, 32, 128)[:, members]
    assert torch.equal(packer(cells, present), loaded(cells, present))
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    half = load_packer(load_vla(tiny_dir, dtype=torch.bfloat16))
    assert half(cells.bfloat16(), present).dtype == torch.bfloat16


def test_a_packer_of_another_encoder_or_width_is_refused(folder, tmp_path) -> None:
    other = build_tiny_vla(tmp_path / "other", seed=1)
    shutil.copy(folder / TOKEN_PACKER_FILE, other)
    with pytest.raises(ModelError, match=r"encoder: trained on the vision encoder .* train the token packer on"):
        load_packer(load_vla(other))
    narrow = build_tiny_vla(tmp_path / "narrow", 0, TinySize(width=64, heads=2))
    shutil.copy(folder / TOKEN_PACKER_FILE, narrow)
    with pytest.raises(ModelError, match=r"config: width: 128, but .*narrow gives tokens of width 64"):
        load_packer(load_vla(narrow))


def test_a_packer_of_another_language_model_on_the_same_tower_is_refused(folder, tmp_path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    rewrite(other / "model.safetensors", change_tensors=lambda t: t["model.embed_tokens.weight"].add_(0.01))
    assert read_vla(other).encoder_fingerprint == read_vla(folder).encoder_fingerprint
    for look in (lambda: load_packer(load_vla(other)), lambda: check_pruner(read_vla(other), NAME)):
        with pytest.raises(
            ModelError, match=r"language: trained with the .*, or use the VLA directory that it was made"
        ):
            look()
    save_packer(other, random_packer(128))
    assert load_packer(load_vla(other)).sizes.width == 128


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.update(format="fastdrive-reconpruner"), "format: not a token packer file"),
        (lambda m: m.update(version="2"), "version: '2' is not '1'; update this package"),
        (lambda m: m.pop("config"), "config: not readable as JSON"),
        (set_config(heads=0), "config: heads"),
        (set_config(heads=3), "config: heads: 3 do not divide the width 128"),
        (set_config(width=1 << 30), "config: width"),
        (set_config(depth=2), "config: depth"),
        (
            lambda m: m.pop("language"),
            r"language: missing, .* \(a file of an earlier version\); train VLA and packer again",
        ),
        (
            lambda m: m.update(language="0" * 64),
            r"tokenpacker\.safetensors: language: trained with the language model '0{12}', but .*vla has '\w{12}'; ",
        ),
    ],
)
def test_wrong_metadata_is_refused_with_and_without_weights(folder, change, reason) -> None:
    rewrite(folder / TOKEN_PACKER_FILE, change)
    for look in (lambda: load_packer(load_vla(folder)), lambda: check_pruner(read_vla(folder), NAME)):
        with pytest.raises(ModelError, match=reason):
            look()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop("query.weight"), "tensor 'query.weight' is missing"),
        (lambda t: t.update(other=torch.zeros(1)), "tensor 'other' is not a token packer tensor"),
        (lambda t: t.update({"mlp.0.bias": torch.zeros(2)}), r"tensor 'mlp.0.bias' has shape \[2\], expected \[128\]"),
        (lambda t: t["mlp.0.bias"].fill_(float("inf")), "tensor 'mlp.0.bias' holds values that are not finite"),
    ],
)
def test_wrong_tensors_are_refused_and_told_by_the_check_of_the_directory(folder, change, reason, capsys) -> None:
    rewrite(folder / TOKEN_PACKER_FILE, change_tensors=change)
    with pytest.raises(ModelError, match=reason):
        load_packer(load_vla(folder))
    assert main(["vla", "check", str(folder)]) == 1
    told = "".join(capsys.readouterr())
    assert TOKEN_PACKER_FILE in told and "tensor '" in told


def test_the_packer_file_is_no_part_of_the_vlas_fingerprint(folder) -> None:
    """Answers without the packer do not depend on it."""
    before = directory_fingerprint(folder)
    save_packer(folder, TokenPacker(128, 4))
    assert directory_fingerprint(folder) == before
