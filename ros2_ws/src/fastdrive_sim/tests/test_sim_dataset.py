"""The dataset writer: the schema as nuscenes-devkit reads it, splits, bytes, resuming, futures, masks."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import sim_fakes
from sim_tables import chain, ego_pose, in_frame, read

from fastdrive_node.errors import SimError, UsageError
from fastdrive_sim.dataset import DatasetSpec, plan_scenes, write_dataset
from fastdrive_sim.nuscenes_schema import VERSION
from fastdrive_sim.rig import DEFAULT_RIG, RIGS
from fastdrive_sim.types import Label

RIG = RIGS[DEFAULT_RIG]
WIDTH, HEIGHT = 64, 36
TOY = DatasetSpec(keyframes=9, seed=5, width=WIDTH, height=HEIGHT, scene_keyframes=4)


def write(out: Path, spec: DatasetSpec = TOY, workers: int = 0, factory=sim_fakes.fake_sources) -> dict:
    return write_dataset(out, spec, workers, factory, progress=False)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toy") / "dataset"
    write(out)
    return out


@pytest.fixture(scope="module")
def devkit(toy: Path):
    nuscenes = pytest.importorskip("nuscenes", reason="nuscenes-devkit is not installed")
    return nuscenes.NuScenes(version=VERSION, dataroot=str(toy), verbose=False)


def test_dataset_without_its_maps_is_read_and_knows_no_road(tmp_path):
    keyframes = pytest.importorskip("fastdrive_training.data.nuscenes.keyframes", reason="needs the training package")
    write(tmp_path / "toy")
    whole = keyframes.KeyframeDataset(tmp_path / "toy")
    frame, area = whole[0].find_drivable()
    assert not whole.missing_maps and area.contains(frame.to_map(np.zeros((1, 2)))).all()
    maps = sorted((tmp_path / "toy" / "maps").iterdir())
    for file in maps:
        file.unlink()
    bare = keyframes.KeyframeDataset(tmp_path / "toy")
    assert sorted(bare.missing_maps) == [f"maps/{file.name}" for file in maps] and bare[0].find_drivable() is None
    assert bare.names == whole.names and bare[0].known_history == whole[0].known_history


def test_devkit_walks_every_sample_of_every_scene(devkit):
    assert [scene["nbr_samples"] for scene in devkit.scene] == [4, 4, 1]
    for scene in devkit.scene:
        samples = chain(devkit, scene)
        assert len(samples) == scene["nbr_samples"] and samples[-1]["token"] == scene["last_sample_token"]
        assert [sample["prev"] for sample in samples] == ["", *(sample["token"] for sample in samples[:-1])]
        assert np.allclose(np.diff([sample["timestamp"] for sample in samples]), 500_000)


def test_every_sample_has_six_images_of_the_size_with_one_pose(devkit, toy):
    for sample in devkit.sample:
        assert set(sample["data"]) == {camera.name for camera in RIG}
        rows = [devkit.get("sample_data", token) for token in sample["data"].values()]
        assert len({row["ego_pose_token"] for row in rows}) == 1
        assert {row["timestamp"] for row in rows} == {sample["timestamp"]}
        for row in rows:
            assert cv2.imread(str(toy / row["filename"])).shape == (HEIGHT, WIDTH, 3)


def test_sample_data_of_a_camera_are_linked_in_time(devkit):
    for scene in devkit.scene:
        samples = chain(devkit, scene)
        for camera in RIG:
            rows = [devkit.get("sample_data", sample["data"][camera.name]) for sample in samples]
            assert [row["next"] for row in rows] == [*(row["token"] for row in rows[1:]), ""]


def test_calibration_is_the_rig_scaled_to_the_image(devkit):
    quaternion = pytest.importorskip("pyquaternion").Quaternion
    for camera in RIG:
        token = devkit.sample[0]["data"][camera.name]
        row = devkit.get("calibrated_sensor", devkit.get("sample_data", token)["calibrated_sensor_token"])
        assert np.allclose(row["camera_intrinsic"], camera.scaled(WIDTH, HEIGHT), atol=1e-5)
        assert np.allclose(quaternion(row["rotation"]).rotation_matrix, camera.rotation, atol=1e-5)
        assert np.allclose(row["translation"], camera.translation, atol=1e-5)


def test_vehicles_and_pedestrians_within_range_are_annotated(devkit):
    annotations = [devkit.get("sample_annotation", token) for token in devkit.sample[0]["anns"]]
    found = {(row["category_name"], devkit.get("attribute", row["attribute_tokens"][0])["name"]) for row in annotations}
    assert found == {
        ("vehicle.car", "vehicle.parked"),
        ("vehicle.truck", "vehicle.moving"),
        ("human.pedestrian.adult", "pedestrian.standing"),
    }


def test_a_box_lies_where_the_thing_was(devkit):
    for sample in devkit.sample:
        (truck,) = [
            devkit.get_box(token)
            for token in sample["anns"]
            if devkit.get("sample_annotation", token)["category_name"] == "vehicle.truck"
        ]
        x, y, _ = ego_pose(devkit, sample)
        assert np.allclose(truck.center, (x + 15, y, 1.5), atol=1e-4)
        assert np.allclose(truck.wlh, (2.5, 8.0, 3.0))


def test_instances_link_their_annotations(devkit):
    for instance in devkit.instance:
        tokens, token = [], instance["first_annotation_token"]
        while token:
            tokens.append(token)
            assert len(tokens) <= instance["nbr_annotations"], "the links run in a circle"
            row = devkit.get("sample_annotation", token)
            assert row["instance_token"] == instance["token"]
            token = row["next"]
        assert len(tokens) == instance["nbr_annotations"] and tokens[-1] == instance["last_annotation_token"]


def test_map_mask_holds_the_road_where_devkit_looks_for_it(devkit, toy):
    scenes = read(toy, "sim.json")["scenes"]
    for scene in devkit.scene:
        mask = devkit.get("map", devkit.get("log", scene["log_token"])["map_token"])["mask"]
        origin_y = scenes[scene["name"]]["origin_in_world_m"][1]
        lowest, highest = sim_fakes.ROAD[:, 1].min() - origin_y, sim_fakes.ROAD[:, 1].max() - origin_y
        for sample in chain(devkit, scene):
            x, y, _ = ego_pose(devkit, sample)
            assert mask.is_on_mask([x, x, x], [y, lowest + 0.2, highest - 0.2]).all()
            assert not mask.is_on_mask([x, x], [lowest - 0.2, highest + 0.2]).any()


def test_futures_are_the_later_ego_poses(devkit, toy):
    extras = read(toy, "extras.json")
    compared = 0
    for scene in devkit.scene:
        samples = chain(devkit, scene)
        for index, sample in enumerate(samples):
            future = extras[sample["token"]]["future_xy"]
            assert len(future) == 6
            for point, later in zip(future, samples[index + 1 :], strict=False):
                x, y, _ = ego_pose(devkit, later)
                assert np.allclose(point, in_frame(ego_pose(devkit, sample), x, y), atol=1e-3)
                compared += 1
    assert compared == 12


def test_histories_are_the_earlier_ego_poses(devkit, toy):
    extras = read(toy, "extras.json")
    for scene in devkit.scene:
        samples = chain(devkit, scene)
        for index, sample in enumerate(samples):
            history = extras[sample["token"]]["history"]
            assert [row[0] for row in history] == [-0.5, -1.0, -1.5, -2.0, -2.5, -3.0]
            now = ego_pose(devkit, sample)
            for row, earlier in zip(history, samples[:index][::-1], strict=False):
                x, y, yaw = ego_pose(devkit, earlier)
                assert np.allclose(row[1:4], (*in_frame(now, x, y), yaw - now[2]), atol=1e-3)
                assert row[4] == extras[earlier["token"]]["speed_mps"]


def test_extras_tell_the_state_and_the_command(devkit, toy):
    extras = read(toy, "extras.json")
    assert set(extras) == {sample["token"] for sample in devkit.sample}
    first = extras[chain(devkit, devkit.scene[0])[0]["token"]]
    seed = read(toy, "sim.json")["scenes"][devkit.scene[0]["name"]]["world_seed"]
    ego = sim_fakes.FakeSimulation(seed, 1.0).pose(3.0)
    assert first["command"] == "straight"
    assert first["speed_mps"] == pytest.approx(ego.speed, abs=1e-4)
    assert first["yaw_rate_radps"] == ego.yaw_rate


def test_masks_are_labels_of_the_image_size(devkit, toy):
    labels = {int(label) for label in Label}
    for sample in devkit.sample:
        for camera in RIG:
            mask = cv2.imread(str(toy / "masks" / camera.name / f"{sample['token']}.png"), cv2.IMREAD_UNCHANGED)
            assert mask.dtype == np.uint8 and mask.shape == (HEIGHT, WIDTH)
            assert set(np.unique(mask)) <= labels
            assert (int(Label.VEHICLE) in mask) == (camera.name == "CAM_FRONT")


def test_images_are_the_rendered_pixels(devkit, toy):
    sample = chain(devkit, devkit.scene[0])[0]
    simulation = sim_fakes.FakeSimulation(read(toy, "sim.json")["scenes"][devkit.scene[0]["name"]]["world_seed"], 1.0)
    renderer = sim_fakes.FakeRenderer(WIDTH, HEIGHT, RIG)
    renderer.load(simulation.world)
    rendered = renderer.render(simulation.snapshot(3.0)).rgb[0]
    options = [cv2.IMWRITE_JPEG_QUALITY, 92]
    expected = cv2.imencode(".jpg", cv2.cvtColor(rendered, cv2.COLOR_RGB2BGR), options)[1]
    path = toy / devkit.get("sample_data", sample["data"]["CAM_FRONT"])["filename"]
    assert path.read_bytes() == expected.tobytes()


def test_counts_match_the_tables(tmp_path):
    counts = write(tmp_path / "dataset")
    names = ("scene", "sample", "sample_data", "sample_annotation")
    tables = {name: read(tmp_path / "dataset", f"{VERSION}/{name}.json") for name in names}
    assert counts["scenes"] == len(tables["scene"]) == 3
    assert counts["keyframes"] == len(tables["sample"]) == 9
    assert counts["images"] == len(tables["sample_data"]) == 54
    assert counts["annotations"] == len(tables["sample_annotation"]) == sum(counts["classes"].values())
    assert counts["keyframes_per_s"] > 0


def test_sim_json_tells_seed_size_labels_and_groups(toy):
    sim = read(toy, "sim.json")
    assert sim["seed"] == 5 and sim["size"] == {"width": WIDTH, "height": HEIGHT}
    assert sim["labels"]["pedestrian"] == Label.PEDESTRIAN
    assert sim["foreground_groups"]["traffic_sign"] == [Label.TRAFFIC_LIGHT, Label.TRAFFIC_SIGN]


@pytest.mark.parametrize(
    ("scenes", "held_out"), [(1, (0, 0)), (2, (0, 0)), (3, (1, 1)), (4, (1, 1)), (20, (3, 3)), (100, (15, 15))]
)
def test_scenes_are_dealt_70_15_15(scenes, held_out):
    splits = [plan.split for plan in plan_scenes(DatasetSpec(keyframes=scenes, seed=0, scene_keyframes=1))]
    assert (splits.count("val"), splits.count("test")) == held_out
    assert splits.count("train") == scenes - sum(held_out)


def test_splits_share_no_scene_and_no_world(toy):
    splits, sim = read(toy, "splits.json"), read(toy, "sim.json")
    names = [name for split in ("train", "val", "test") for name in splits[split]]
    assert len(names) == len(set(names)) == 3 and set(names) == set(sim["scenes"])
    seeds = [scene["world_seed"] for scene in sim["scenes"].values()]
    assert len(set(seeds)) == 3


def test_worlds_of_datasets_of_other_splits_or_seeds_are_disjoint():
    specs = [DatasetSpec(400, split, seed=seed) for seed in (1, 2) for split in (None, "train", "val", "test")]
    plans = [plan for spec in specs for plan in plan_scenes(spec)]
    names = {plan.name for plan in plans}
    by_seed = {plan.world_seed: plan.name for plan in plans}
    assert len(by_seed) == len(names)
    assert all(by_seed[plan.world_seed] == plan.name for plan in plans)


def test_one_split_takes_all_scenes(tmp_path):
    write(tmp_path / "dataset", DatasetSpec(9, "val", seed=5, width=WIDTH, height=HEIGHT, scene_keyframes=4))
    splits = read(tmp_path / "dataset", "splits.json")
    assert [len(splits[name]) for name in ("train", "val", "test")] == [0, 3, 0]


def test_same_arguments_give_the_same_bytes_whatever_the_workers(toy, tmp_path):
    write(tmp_path / "dataset", workers=2)
    assert contents(tmp_path / "dataset") == contents(toy)


def test_another_seed_gives_other_pictures(toy, tmp_path):
    write(tmp_path / "dataset", DatasetSpec(9, None, seed=6, width=WIDTH, height=HEIGHT, scene_keyframes=4))
    images = [
        {name: value for name, value in contents(out).items() if name.endswith(".jpg")}
        for out in (toy, tmp_path / "dataset")
    ]
    assert images[0].keys().isdisjoint(images[1]) and set(images[0].values()).isdisjoint(images[1].values())


def test_a_run_goes_on_where_a_killed_one_stopped(toy, tmp_path):
    out = tmp_path / "dataset"
    with pytest.raises(SimError, match="repeat the command"):
        write(out, workers=1, factory=sim_fakes.dying_sources)
    assert not (out / "sim.json").exists()
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*-0000__*.jpg")}
    assert len(written) == 24
    write(out)
    assert contents(out) == contents(toy)
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_an_interrupt_ends_the_workers_at_once(toy, tmp_path):
    script = (
        # a suite that runs in the background has the signal ignored, and so would this process
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys; from pathlib import Path; import sim_fakes\n"
        "from fastdrive_sim.dataset import DatasetSpec, write_dataset\n"
        f"spec = DatasetSpec(9, seed=5, width={WIDTH}, height={HEIGHT}, scene_keyframes=4)\n"
        "write_dataset(Path(sys.argv[1]), spec, 2, sim_fakes.blocking_sources, progress=False)\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "dataset")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert [run.stdout.readline(), run.stdout.readline()] == ["rendering\n"] * 2
    os.killpg(run.pid, signal.SIGINT)
    try:
        _, err = run.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        raise
    assert err.count("Traceback") == 1 and "KeyboardInterrupt" in err.splitlines()[-1]
    write(tmp_path / "dataset")
    assert contents(tmp_path / "dataset") == contents(toy)


def test_a_merge_that_was_stopped_is_done_again(toy, tmp_path, monkeypatch):
    out = tmp_path / "dataset"
    with monkeypatch.context() as patch:
        patch.setattr("fastdrive_sim.dataset._sim_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write(out)
    assert (out / VERSION).exists()
    counts = write(out)
    assert contents(out) == contents(toy) and counts["keyframes_per_s"] is None


def test_a_complete_dataset_is_left_as_it_is(tmp_path):
    counts = write(tmp_path / "dataset")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "dataset").rglob("*")}
    assert write(tmp_path / "dataset") == {**counts, "keyframes_per_s": None}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "dataset").rglob("*")} == before


def test_other_arguments_on_the_same_folder_are_refused(toy):
    with pytest.raises(SimError, match=r"was begun with keyframes 9 \(now 10\)"):
        write(toy, DatasetSpec(10, None, seed=5, width=WIDTH, height=HEIGHT, scene_keyframes=4))


def test_other_arguments_on_an_unfinished_folder_are_refused(tmp_path):
    with pytest.raises(SimError):
        write(tmp_path / "dataset", factory=sim_fakes.ending_sources)
    with pytest.raises(SimError, match=r"seed 5 \(now 7\)"):
        write(tmp_path / "dataset", DatasetSpec(9, None, seed=7, width=WIDTH, height=HEIGHT, scene_keyframes=4))


def test_a_folder_that_is_no_dataset_is_refused_untouched(tmp_path):
    (tmp_path / "thesis.txt").write_text("words")
    with pytest.raises(SimError, match=r"thesis\.txt"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_and_a_broken_record_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SimError, match="is a file"):
        write(tmp_path / "file")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sim.json").write_text("[]")
    with pytest.raises(SimError, match=r"sim\.json"):
        write(tmp_path / "broken")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_world_that_ends_early_is_named(tmp_path, workers):
    with pytest.raises(SimError, match=r"ends after 41 of 151 steps"):
        write(tmp_path / "dataset", workers=workers, factory=sim_fakes.ending_sources)


def test_workers_keep_opengl_to_one_thread(tmp_path):
    write(tmp_path / "dataset", workers=1, factory=sim_fakes.single_thread_sources)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"keyframes": 0}, "--keyframes"),
        ({"seed": -1}, "--seed"),
        ({"split": "dev"}, "--split"),
        ({"hz": 3}, "--hz"),
        ({"hz": 0}, "--hz"),
        ({"width": 1}, "--size"),
        ({"scene_keyframes": 0}, "--scene-keyframes"),
        ({"jpeg_quality": 101}, "--jpeg-quality"),
    ],
)
def test_impossible_arguments_are_named(change, name):
    with pytest.raises(UsageError, match=name):
        DatasetSpec(**{"keyframes": 1, "seed": 1, **change})
