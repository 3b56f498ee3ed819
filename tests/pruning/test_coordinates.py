"""Pruners that read coordinates alone (coverage, ring-view) and those that merge (matryoshka, prumerge), by hand."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest
import torch

from fastdrive_node.cli import main
from fastdrive_node.errors import ModelError
from fastdrive_node.families import VisualTokens, load_vla
from fastdrive_node.pruning.baselines.coverage import CoveragePruner
from fastdrive_node.pruning.baselines.merging import Matryoshka, PruMerge
from fastdrive_node.pruning.baselines.ring_view import GEOMETRY_FILE, RingView, duplicates
from fastdrive_node.pruning.pruner import PruningContext
from fastdrive_node.pruning.registry import make_pruner
from tests.generation import choose, level_camera, write_geometry
from tests.training.evaluation.planning_scenes import edit_table
from tests.training.tiny_nuscenes import write_dataset


def context_of(cameras=6, grid=(4, 8), **fields):
    return PruningContext.of(torch.zeros(cameras, grid[0] * grid[1], 4), grid, **fields)


def picture(kept, grid):
    rows, columns = grid
    cells = ["#" if place in set(kept) else "." for place in range(rows * columns)]
    return ["".join(cells[row * columns : (row + 1) * columns]) for row in range(rows)]


def test_coverage_spreads_its_tokens_over_rows_and_columns():
    half = picture(choose(CoveragePruner(), context_of(1), 16).tolist(), (4, 8))
    assert half == ["#..##..#", ".##..##.", "#..##..#", ".##..##."]
    quarter = choose(CoveragePruner(), context_of(1), 8).tolist()
    assert picture(quarter, (4, 8)) == ["#...#...", "..#...#.", "#...#...", "..#...#."]


@pytest.mark.parametrize("keep", [1, 6, 48, 97, 191, 192])
def test_coverage_divides_any_budget_evenly_over_the_cameras(keep):
    kept = choose(CoveragePruner(), context_of(), keep)
    counts = torch.bincount(kept // 32, minlength=6)
    assert len(set(kept.tolist())) == keep and int(counts.max() - counts.min()) <= 1


def test_coverage_of_a_small_budget_is_a_part_of_that_of_a_larger_one():
    sets = [set(choose(CoveragePruner(), context_of(1, (7, 9)), keep).tolist()) for keep in range(1, 64)]
    assert all(small < large for small, large in itertools.pairwise(sets))


def test_of_two_cameras_each_gives_up_what_the_other_has_nearer_to_its_axis():
    # 90 degrees wide, 60 apart: the left half of the right one's image is the right half of the left one's
    views = [level_camera(30.0, 90.0, (800.0, 100.0)), level_camera(-30.0, 90.0, (800.0, 100.0))]
    found = duplicates(views, [(1, 8)] * 2)
    # centers of the cells at atan of 7/8, 5/8, 3/8, 1/8: 41, 32, 21 and 7 degrees; the other axis is 60 degrees away
    assert found.tolist() == [False] * 6 + [True] * 2 + [True] * 2 + [False] * 6


def test_past_images_are_no_duplicates_of_the_present_ones():
    views = [level_camera(30.0, 90.0), level_camera(-30.0, 90.0)]
    assert int(duplicates(views, [(1, 8)] * 2, (0, 1)).sum()) == 0 < int(duplicates(views, [(1, 8)] * 2, (1, 1)).sum())


def test_ring_view_gives_up_duplicates_first_and_keeps_as_many_as_asked():
    views = (level_camera(30.0, 90.0), level_camera(-30.0, 90.0))
    twice = set(duplicates(views, [(4, 8)] * 2).nonzero().flatten().tolist())
    pruner, single = RingView(views, (0, 0)), 64 - len(twice)
    assert 0 < len(twice) < 32
    for keep in (1, 20, single, single + 3, 64):
        kept = choose(pruner, context_of(2), keep).tolist()
        assert len(set(kept)) == keep and len(twice & set(kept)) == max(0, keep - single)


def test_ring_view_says_that_the_geometry_is_missing(tiny_dir, tmp_path):
    shutil.copytree(tiny_dir, tmp_path / "vla")
    assert make_pruner("ring-view", load_vla(tmp_path / "vla")).views is not None
    (tmp_path / "vla" / GEOMETRY_FILE).unlink()
    with pytest.raises(ModelError, match=rf"{GEOMETRY_FILE}: missing.*`fastdrive camera-geometry "):
        make_pruner("ring-view", load_vla(tmp_path / "vla"))
    with pytest.raises(ModelError, match=f"{GEOMETRY_FILE} is missing"):
        choose(make_pruner("ring-view"), context_of(), 4)


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda cameras: cameras.pop("CAM_BACK"), "CAM_BACK is missing"),
        (lambda cameras: cameras["CAM_BACK"].pop("rotation"), "CAM_BACK.rotation"),
        (lambda cameras: cameras["CAM_BACK"].update(size=[0, 5]), "CAM_BACK.size"),
        (lambda cameras: cameras["CAM_BACK"].update(intrinsic=[[0, 0, 0]] * 3), "intrinsic: is singular"),
    ],
)
def test_a_geometry_that_cannot_serve_is_refused_by_name(tiny_dir, tmp_path, change, message):
    shutil.copytree(tiny_dir, tmp_path / "vla")
    file = tmp_path / "vla" / GEOMETRY_FILE
    content = json.loads(file.read_text())
    change(content["cameras"])
    file.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=message):
        make_pruner("ring-view", load_vla(tmp_path / "vla"))


def test_ring_view_is_refused_where_past_images_are_missing():
    with pytest.raises(ValueError, match="past images are missing"):
        choose(RingView((level_camera(0.0, 70.0),) * 3, (0, 0, 0)), context_of(2), 4)


def test_the_command_writes_the_geometry_of_a_dataset(tiny_dir, tmp_path, capsys):
    root = write_dataset(tmp_path / "data", scenes=1, keyframes=1)
    arguments = [str(root), "--vla", str(tmp_path / "vla"), "--json", str(tmp_path / "figures.json")]
    shutil.copytree(tiny_dir, tmp_path / "vla")
    write_geometry(tmp_path / "vla", ["CAM_FRONT"])  # of too few cameras
    assert main(["camera-geometry", *arguments]) == 1
    assert "no calibration of CAM_FRONT" in capsys.readouterr().err
    intrinsic = [[150.0, 0, 112.0], [0, 150.0, 56.0], [0, 0, 1.0]]
    edit_table(root, "calibrated_sensor", lambda rows: [row.update(camera_intrinsic=intrinsic) for row in rows])
    assert main(["camera-geometry", *arguments]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["tokens"] == 192 and 0 <= figures["seen_twice"] < 192
    assert len(make_pruner("ring-view", load_vla(tmp_path / "vla")).views) == 6


def test_pooled_tokens_are_the_means_of_their_cells_at_the_place_of_the_first():
    tokens = torch.arange(16.0).reshape(1, 8, 2)  # 2 x 4 cells
    visual = VisualTokens.from_raster(tokens, (2, 4), layer_features=(10 * tokens[0],))
    kept = choose(Matryoshka(), PruningContext(visual), 2)
    assert kept.tolist() == [0, 2]
    pooled = Matryoshka().tokens(visual, kept)
    assert pooled.rows[:, 0].tolist() == [(0 + 2 + 8 + 10) / 4, (4 + 6 + 12 + 14) / 4]
    assert torch.equal(pooled.layer_features[0], 10 * pooled.rows) and pooled.indices.tolist() == [0, 2]


def test_the_smallest_cells_that_fit_are_pooled_and_those_at_the_edge_may_be_smaller():
    visual = VisualTokens.from_raster(torch.ones(1, 15, 2) * torch.arange(15.0)[None, :, None], (3, 5))
    for keep, count in ((15, 15), (14, 6), (6, 6), (5, 2), (2, 2), (1, 1)):
        kept = choose(Matryoshka(), PruningContext(visual), keep)
        rows = Matryoshka().tokens(visual, kept).rows
        assert len(kept) == len(rows) == count
    quarter = choose(Matryoshka(), PruningContext(visual), 6)
    assert Matryoshka().tokens(visual, quarter).rows[-1, 0] == 14 and quarter.tolist() == [0, 2, 4, 10, 12, 14]
    with pytest.raises(ValueError, match="fewer than the 2 images"):
        choose(Matryoshka(), context_of(2), 1)


@pytest.mark.parametrize("keep", [64, 16, 4, 2])
def test_pooled_tokens_of_the_other_cameras_are_the_same_where_one_is_missing(keep):
    rows = torch.randn(2, 32, 3, generator=torch.Generator().manual_seed(0))
    visual = VisualTokens.from_raster(rows, (4, 8))
    kept = choose(Matryoshka(), PruningContext(visual), keep)
    left = Matryoshka().tokens(visual, kept[kept >= 32])
    assert torch.equal(left.rows, Matryoshka().tokens(visual, kept).rows[keep // 2 :]) and len(left.rows) == keep // 2


def test_every_token_of_equal_ones_stays_as_it_is_when_merged():
    attention = torch.rand(2, 32, generator=torch.Generator().manual_seed(0))
    visual = VisualTokens.from_raster(torch.ones(2, 32, 4), (4, 8), attention)
    kept = choose(PruMerge(), context_of(2, tower_attention=attention), 8)
    torch.testing.assert_close(PruMerge().tokens(visual, kept).rows, torch.ones(8, 4))
