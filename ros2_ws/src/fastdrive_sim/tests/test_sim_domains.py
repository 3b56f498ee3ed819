"""Night and rain: other images of the same worlds, with the same labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sim_fakes
from sim_scenes import street, traffic

from fastdrive_node.errors import SimError, UsageError
from fastdrive_sim.bag import BagSpec
from fastdrive_sim.dataset import DatasetSpec, write_dataset
from fastdrive_sim.domains import DEFAULT_DOMAIN, DOMAINS, look_of
from fastdrive_sim.drive.run_dataset import RunDatasetSpec, RunFile
from fastdrive_sim.render import Renderer
from fastdrive_sim.rig import DEFAULT_RIG, RIGS
from fastdrive_sim.types import Label, Thing, Views

SPEC = DatasetSpec(keyframes=2, seed=3, split="test", width=112, height=64, scene_keyframes=2)
OTHERS = [name for name in DOMAINS if name != DEFAULT_DOMAIN]
FRONT, BACK = ([camera.name for camera in RIGS[DEFAULT_RIG]].index(name) for name in ("CAM_FRONT", "CAM_BACK"))


@pytest.fixture(scope="module")
def renderer():
    try:
        made = Renderer(224, 128)
    except SimError as error:
        pytest.skip(str(error))
    yield made
    made.close()


@pytest.fixture(scope="module")
def datasets(tmp_path_factory, renderer) -> dict[str, Path]:
    """One small dataset of each domain, all of the same seed."""
    out = tmp_path_factory.mktemp("domains")
    for name in DOMAINS:
        write_dataset(out / name, replace(SPEC, domain=name), workers=0, progress=False)
    return {name: out / name for name in DOMAINS}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def views(renderer: Renderer, domain: str, *more: Thing, **states: str) -> Views:
    snapshot = traffic(**states)
    renderer.load(replace(street(), domain=domain))
    return renderer.render(replace(snapshot, things=(*snapshot.things, *more)))


def light(seen: Views, camera: int, chosen: np.ndarray) -> float:
    return float(seen.rgb[camera][chosen].mean())


@pytest.mark.parametrize("domain", OTHERS)
def test_only_the_images_differ_from_those_by_day(datasets, domain):
    day, other = contents(datasets[DEFAULT_DOMAIN]), contents(datasets[domain])
    assert day.keys() == other.keys()
    different = {name for name in day if day[name] != other[name]}
    images = {name for name in day if name.endswith(".jpg")}
    assert len(images) == 12 and different == images | {"sim.json"}


def test_sim_json_tells_the_domain_where_it_is_not_the_default(datasets):
    told = {name: json.loads((folder / "sim.json").read_text())["arguments"] for name, folder in datasets.items()}
    assert "domain" not in told[DEFAULT_DOMAIN]
    assert [told[name] for name in OTHERS] == [{**told[DEFAULT_DOMAIN], "domain": name} for name in OTHERS]


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_snapshot_gives_the_same_image_again_in_another_renderer(renderer, domain):
    first = views(renderer, domain)
    other = Renderer(224, 128)
    try:
        np.testing.assert_array_equal(views(other, domain).rgb, first.rgb)
    finally:
        other.close()


@pytest.mark.parametrize("domain", OTHERS)
def test_noise_and_streaks_change_with_time_and_camera(renderer, domain):
    image = np.full((2, 64, 112, 3), 90, np.uint8)
    world = replace(street(), domain=domain)
    first, later = look_of(world, 1.0, image), look_of(world, 1.5, image)
    assert (first != later).any() and (first[0] != first[1]).any()
    assert (first != look_of(replace(world, seed=6), 1.0, image)).any()


def test_headlights_light_what_is_ahead_and_not_what_is_behind(renderer):
    seen, day = views(renderer, "night"), views(renderer, DEFAULT_DOMAIN)
    near = (seen.depth > 6) & (seen.depth < 15) & (seen.label == Label.ROAD)
    ahead, behind = (light(seen, camera, near[camera]) for camera in (FRONT, BACK))
    assert ahead > 2.5 * behind
    assert light(day, FRONT, near[FRONT]) < 1.3 * light(day, BACK, near[BACK])


def test_a_vehicle_20_m_ahead_stands_out_at_night_and_one_beside_the_beam_does_not(renderer):
    def car(instance: int, x: float, y: float) -> Thing:
        return Thing(instance, "car", x, y, 0.0, (4.5, 1.8, 1.5), (170, 170, 170))

    seen = views(renderer, "night", car(50, 22.0, -4.5), car(51, -22.0, -4.5))
    lit = {number: light(seen, camera, seen.instance[camera] == number) for camera, number in ((FRONT, 50), (BACK, 51))}
    assert lit[50] > 40 and lit[50] > 2 * lit[51]


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize(("state", "channel"), [("red", 0), ("green", 1)])
def test_a_traffic_light_is_read_in_every_domain(renderer, domain, state, channel):
    lit, dark = (views(renderer, domain, light=each).rgb[FRONT].astype(int) for each in (state, ""))
    assert ((lit - dark)[..., channel] > 90).sum() >= 4


def test_rain_hides_what_is_far_more_than_any_world_by_day(renderer):
    contrast = []
    for world in (replace(street(), haze=0.5), replace(street(), haze=0.5, domain="rain")):
        renderer.load(world)
        seen = renderer.render(traffic())
        far = (seen.depth[FRONT] > 60) & (seen.label[FRONT] != Label.SKY)
        contrast.append(seen.rgb[FRONT][far].mean(axis=1).std())
    assert contrast[1] < 0.8 * contrast[0]


def test_an_unknown_domain_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="--domain snow: give one of day, night, rain"):
        replace(SPEC, domain="snow")
    with pytest.raises(UsageError, match="--domain snow: give one of day, night, rain"):
        BagSpec(1.0, 2.0, seed=3, domain="snow")


def test_a_dataset_begun_by_day_is_not_continued_as_night(tmp_path):
    write_dataset(tmp_path / "d", SPEC, 0, sim_fakes.fake_sources, progress=False)
    with pytest.raises(SimError, match=r"was begun with domain day \(now night\); repeat those arguments"):
        write_dataset(tmp_path / "d", replace(SPEC, domain="night"), 0, sim_fakes.fake_sources, progress=False)


def test_a_dataset_of_runs_tells_its_domain_too():
    spec = RunDatasetSpec(keyframes=1, seed=0, split="train", runs=(RunFile("none/bend-20.jsonl", "0", 3),))
    assert "domain" not in spec.arguments()
    assert replace(spec, domain="rain").arguments() == {**spec.arguments(), "domain": "rain"}
