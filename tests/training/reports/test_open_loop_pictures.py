"""Images on the page of an evaluation, and where its pruners disagree."""

from __future__ import annotations

import base64
import io
import json
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from fastdrive_node.cli import main
from fastdrive_node.types import CAMERAS
from fastdrive_node.visualization.overlay import overlay
from fastdrive_training.reports.open_loop.birds_eye import Path, birds_eye
from fastdrive_training.reports.open_loop.camera_tiles import RoadLine, camera_tiles, tile_width
from fastdrive_training.reports.open_loop.run_folder import read_run
from fastdrive_training.reports.open_loop.scenes import Scenes, token_map
from fastdrive_training.reports.open_loop.source import DatasetSource, Rig, read_rig, shown_samples
from fastdrive_training.reports.open_loop.tables import overlap, overlap_matrix, plan_distances, spread
from fastdrive_training.vla.tiny_model import build_tiny_vla
from tests.generation import SHALLOW
from tests.training.evaluation.open_loop_runs import ROWS, MadeUp, edit_json, write_run
from tests.training.evaluation.planning_scenes import add_object, draw_road, edit_table
from tests.training.reports.report_pages import Page, evaluate_report
from tests.training.tiny_nuscenes import write_dataset

pytestmark = pytest.mark.usefixtures("undrawn")
FORWARD = [0.5, -0.5, 0.5, -0.5]  # camera axes to the ego frame


def calibrate(root):
    def put(rows):
        for row in rows:
            row |= {"rotation": FORWARD, "translation": [1.5, 0.0, 1.5]}
            row["camera_intrinsic"] = [[150.0, 0, 112.0], [0, 150.0, 56.0], [0, 0, 1.0]]

    edit_table(root, "calibrated_sensor", put)


@pytest.fixture(scope="module")
def vla_dir(tmp_path_factory):
    return build_tiny_vla(tmp_path_factory.mktemp("vla") / "tiny", seed=0, size=SHALLOW)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = write_dataset(tmp_path_factory.mktemp("data") / "d", scenes=2, keyframes=14)
    calibrate(root)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory, root, vla_dir):
    return write_run(tmp_path_factory.mktemp("runs") / "seed1", root, vla_dir)


def image(address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))))


def source_of(root, run, shown=None) -> DatasetSource:
    return DatasetSource(root, None, run.samples, shown or range(len(run.samples)))


def photos(page: Page) -> list[dict]:
    return [one for one in page.all("img") if one["src"].startswith("data:image/jpeg")]


def test_the_worst_samples_come_first_with_all_cameras(folder, root, vla_dir):
    page = evaluate_report(folder, vla_dir, "--worst", 3, "--json", folder / "f.json")
    worst = json.loads((folder / "f.json").read_text())["worst"]
    run = read_run(folder)
    key = next(key for key in run.tables if key.pruner == "reconpruner")
    errors = np.array(run.tables[key].column("errors_m").to_pylist()).mean(axis=1)
    assert [one["sample"] for one in worst] == [run.samples[place] for place in np.argsort(-errors, kind="stable")[:3]]
    assert worst[0]["l2_m"] == pytest.approx(errors.max()) and worst[0]["none_l2_m"] == pytest.approx(0.4)
    assert len(photos(page)) == (3 + 1) * len(CAMERAS)  # and the one of twenty that loses most
    # 48 tokens, the first ones: the VLA's first camera keeps all of its 32, the second 16
    captions = [one["alt"] for one in photos(page)[:6]]
    rig = read_rig(vla_dir)
    kept = {name: max(0, min(32, 48 - 32 * place)) for place, name in enumerate(rig.cameras)}
    for name, count in kept.items():
        title = name.removeprefix("CAM_").replace("_", " ").lower()
        assert f"{title} camera, {count} of 32 tokens kept" in captions


def test_the_tail_is_listed_with_images_of_its_first(tmp_path, root, vla_dir):
    rows = (MadeUp("none", 0.0, 0.4, kept=192), MadeUp("reconpruner", 0.75, 0.5, wobble_m=0.2, hits=1))
    run = write_run(tmp_path / "run", root, vla_dir, rows)
    page = evaluate_report(run, vla_dir, "--worst", 1, "--json", run / "f.json")
    figures = json.loads((run / "f.json").read_text())
    losses, collisions = (figures["tails"][name] for name in ("worst_losses", "worst_collisions"))
    assert losses[0]["sample"] == figures["worst"][0]["sample"]
    assert losses[0]["none_l2_m"] == pytest.approx(0.4) and losses[0]["l2_m"] > 0.6
    assert [one["sample"] for one in collisions] == [read_run(run).samples[0]]
    assert (collisions[0]["collision_any"], collisions[0]["none_collision_any"]) == (1, 0)
    row = next(one for one in figures["rows"] if one["pruner"] == "reconpruner")
    assert row["tails"]["new_collisions"] == pytest.approx(1 / row["samples"])
    assert len(photos(page)) == 3 * len(CAMERAS)  # the worst, the one that loses most, and the one that collides
    assert "The 5 % of the samples that collide more, of ReconPruner" in page.text
    assert "The 5 % that collide more" in (run / "report.md").read_text()


def test_dropped_tokens_are_dim_and_kept_ones_are_as_they_were(folder, root, vla_dir):
    run, rig = read_run(folder), read_rig(vla_dir)
    source = source_of(root, run)
    kept = np.arange(16)  # the upper half of the first camera
    tiles = [tile for row in camera_tiles(source, rig, 0, kept, (), 224) for tile in row]
    by_name = {tile.alt.split(" camera")[0]: image(tile.source) for tile in tiles}
    first = rig.cameras[0].removeprefix("CAM_").replace("_", " ").lower()
    raw, _ = source.image(0, rig.cameras[0])
    mask = np.zeros(rig.grid, bool)
    mask[: rig.grid[0] // 2] = True
    expected = overlay(raw, mask)
    assert np.abs(by_name[first].astype(int) - expected).mean() < 4  # JPEG
    assert np.abs(by_name[first][:40].astype(int) - raw[:40]).mean() < 4


def test_plans_lie_where_the_camera_sees_them(folder, root, vla_dir):
    run, rig = read_run(folder), read_rig(vla_dir)
    source = source_of(root, run)
    ahead = np.stack([np.arange(1, 7) * 4.0, np.zeros(6)], axis=1)

    def front(points):
        road_lines = [RoadLine(points, (255, 0, 0), 4.0)]
        tiles = [tile for row in camera_tiles(source, rig, 0, None, road_lines, 224) for tile in row]
        tile = image(next(tile.source for tile in tiles if tile.title == "front")).astype(int)
        plain = source.image(0, "CAM_FRONT")[0].astype(int)
        changed = np.argwhere(np.abs(tile - plain).max(axis=-1) > 60)
        return changed[:, 1].mean(), changed[:, 0].min()

    middle, top = front(ahead)
    assert middle == pytest.approx(112, abs=3)
    assert top == pytest.approx(56 + 150 * 1.5 / (24 - 1.5), abs=4)  # the last point, on the ground
    assert front(ahead + np.array([0.0, 1.5]))[0] < middle - 10  # left in the world is left in the image


def test_a_camera_without_calibration_has_no_plan_in_it(tmp_path, folder, vla_dir):
    root = write_dataset(tmp_path / "d", scenes=2, keyframes=14)
    run, rig = read_run(folder), read_rig(vla_dir)
    source = source_of(root, run)
    assert source.image(0, "CAM_FRONT")[1] is None
    road_lines = [RoadLine(np.ones((6, 2)), (255, 0, 0), 4.0)]
    assert camera_tiles(source, rig, 0, None, road_lines, 100) == camera_tiles(source, rig, 0, None, (), 100)


def test_more_samples_have_smaller_pictures():
    assert tile_width(1) == tile_width(10) == 400 and tile_width(40) == 200 and tile_width(10_000) == 160


def test_a_page_without_its_data_set_is_written_and_says_so(tmp_path, folder, vla_dir, capsys):
    run = shutil.copytree(folder, tmp_path / "run")
    edit_json(run / "run.json", lambda content: content.update(dataset=str(tmp_path / "gone")))
    page = evaluate_report(run, vla_dir)
    assert not photos(page) and "No images and no ground truth" in page.text and "gone: no such folder" in page.text
    assert "Worst samples of ReconPruner" in page.text
    assert [one for one in page.all("svg") if one.get("class") == "above"]
    assert "without images" in capsys.readouterr().err


@pytest.mark.parametrize("name", [None, 7, "", "x" * 5000, "a\x00b"])
def test_an_unusable_name_of_a_data_set_is_no_obstacle(tmp_path, folder, vla_dir, name):
    run = shutil.copytree(folder, tmp_path / "run")
    edit_json(run / "run.json", lambda content: content.update(dataset=name))
    page = evaluate_report(run, vla_dir)
    assert not photos(page) and "--dataset" in page.text


def test_a_data_set_that_moved_can_be_named(tmp_path, folder, root, vla_dir, capsys):
    moved = shutil.copytree(root, tmp_path / "moved")
    run = shutil.copytree(folder, tmp_path / "run")
    edit_json(run / "run.json", lambda content: content.update(dataset=str(tmp_path / "gone")))
    assert photos(evaluate_report(run, vla_dir, "--dataset", moved))
    other = write_dataset(tmp_path / "other", scenes=1, keyframes=8)
    capsys.readouterr()
    assert main(["evaluate-report", str(run), "--vla", str(vla_dir), "--dataset", str(other)]) == 1
    assert "the dataset lacks" in capsys.readouterr().err
    assert main(["evaluate-report", str(run), "--vla", str(vla_dir), "--dataset", str(moved), "--split", "val"]) == 1
    assert "split val lacks" in capsys.readouterr().err


def test_a_missing_picture_is_told_beside_its_sample(tmp_path, folder, root, vla_dir):
    moved = shutil.copytree(root, tmp_path / "moved")
    for image in (moved / "samples" / "CAM_FRONT").glob("s1*.jpg"):
        image.unlink()
    run = shutil.copytree(folder, tmp_path / "run")
    page = evaluate_report(run, vla_dir, "--dataset", moved, "--worst", 16)
    assert "is missing: fetch or write the dataset again" in page.text
    assert len(photos(page)) == (8 + 1) * len(CAMERAS)  # the other scene has its own; one of them loses most


def test_shuffled_pictures_are_those_that_the_model_saw(tmp_path, root, vla_dir):
    run_folder = write_run(tmp_path / "run", root, vla_dir, ROWS, shuffled=True)
    run = read_run(run_folder)
    shown = shown_samples(run, vla_dir)
    assert all(run.scenes[own] != run.scenes[other] for own, other in enumerate(shown))
    source, own = source_of(root, run, shown), source_of(root, run)
    assert np.array_equal(source.image(0, "CAM_BACK")[0], own.image(shown[0], "CAM_BACK")[0])
    assert source.item(0).name == run.samples[0]
    assert "every sample saw the images of another scene" in evaluate_report(run_folder, vla_dir).text


def test_a_collision_and_the_road_are_drawn_from_above(tmp_path, vla_dir):
    root = write_dataset(tmp_path / "d", scenes=2, keyframes=14)
    add_object(root, "car", {f"s0k{index}": (112.0, 53.0, 0.0) for index in range(14)})
    draw_road(root, "scene-0", 45.0, 54.0)
    rows = (MadeUp("none", 0.0, 0.4), MadeUp("reconpruner", 0.75, 0.5, hits=16))
    page = evaluate_report(write_run(tmp_path / "run", root, vla_dir, rows), vla_dir)
    assert "collides at 0.5 s" in page.text
    styles = [one.get("style") or "" for one in page.all("polygon")]
    assert sum("var(--bad)" in style for style in styles) >= 6 and any("fill-opacity:.12" in style for style in styles)
    assert any("opacity:.6" in (one.get("style") or "") for one in page.all("polyline"))


def test_left_is_left_and_ahead_is_up_from_above():
    ahead = np.stack([np.arange(1, 7) * 5.0, np.zeros(6)], axis=1)
    left = ahead + np.array([0.0, 2.0])
    svg = ElementTree.fromstring(
        birds_eye("a", "<b>", [Path("one & all", ahead, "red"), Path("two", left, "blue", dots=True)])
    )
    space = "{http://www.w3.org/2000/svg}" if svg.tag.startswith("{") else ""
    ends = []
    for line in svg.iter(f"{space}polyline"):
        first, last = (
            tuple(map(float, pair.split(","))) for pair in (line.get("points").split()[place] for place in (0, -1))
        )
        assert last[1] < first[1] - 50  # ahead is up
        ends.append(last)
    assert ends[1][0] < ends[0][0] - 10  # left is left
    assert len(list(svg.iter(f"{space}circle"))) == 6 and svg.find(f"{space}title").text == "<b>"


def test_distances_of_plans_are_means_over_points_and_leave_out_refusals():
    plans = np.zeros((3, 2, 6, 2))
    plans[1, :, :, 0] = 3.0
    plans[1, :, :, 1] = 4.0
    plans[2, 0, :3, 0] = 2.0
    plans[2, 1] = np.nan
    distances = plan_distances(plans)
    assert distances[0] == pytest.approx(np.array([[0, 5, 1], [5, 0, distances[0, 1, 2]], [1, distances[0, 2, 1], 0]]))
    assert distances[1, 0, 1] == 5 and np.isnan(distances[1, 0, 2])
    assert spread(distances)[1] == pytest.approx(5) and spread(distances)[0] == pytest.approx(
        (5 + 1 + distances[0, 1, 2]) / 3
    )


def test_overlap_counts_shared_tokens_of_sets_of_different_size():
    values = overlap([np.array([0, 1, 2, 3]), np.array([2, 3]), np.array([7]), None], 8)
    assert values[0, 1] == values[1, 0] == 0.5 and values[0, 2] == 0 and values[0, 0] == 1
    assert np.isnan(values[3]).all() and np.isnan(values[:, 3]).all()
    kept = [[np.array([0]), np.array([1])], [np.array([0]), None]]
    assert overlap_matrix(("a", "b"), kept, 8).values[0, 1] == 1  # over the sample that both tell


def test_samples_with_the_largest_spread_come_first(tmp_path, root, vla_dir):
    rows = (
        MadeUp("none", 0.0, 0.4, kept=192),
        MadeUp("fastv", 0.75, 0.5, wobble_m=0.4),
        MadeUp("reconpruner", 0.75, 0.5),
    )
    run = read_run(write_run(tmp_path / "run", root, vla_dir, rows))
    found = Scenes(run, 0.75, read_rig(vla_dir), None).disagreement(4)
    spreads = [one.spread_m for one in found.samples]
    assert len(spreads) == 4 and spreads == sorted(spreads, reverse=True)
    assert found.distances.names == ("fastv", "reconpruner", "none") and found.overlaps.names == (
        "fastv",
        "reconpruner",
    )
    assert found.distances.values[1, 2] == pytest.approx(0.1) and found.overlaps.values[0, 1] == 1
    whole = next(line for line in found.samples[0].plans if line.pruner == "none")
    assert whole.shared is None and whole.away_m == pytest.approx(0.1)


def test_a_token_map_has_a_pixel_for_each_token():
    rig = Rig(("CAM_FRONT", "CAM_BACK"), (2, 3))
    pixels = image(token_map(rig, np.array([0, 11])))
    assert pixels.shape == (2, 7) and pixels[0, 0] == 255 and pixels[1, 6] == 255
    assert (pixels == 255).sum() == 2 and (pixels[:, 3] == 128).all()
