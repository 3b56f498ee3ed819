"""benchmarks/studies/pruner_ablation.py on a small written dataset and an untrained VLA; runs go in this process."""

import json

import pytest

from benchmarks.studies import ablation_runs
from benchmarks.studies import pruner_ablation as ablation
from tests.training.tiny_nuscenes import write_dataset

SMALL = ("--steps", "3", "--warmup", "1", "--batch", "4", "--seeds", "1", "--decoder-layers", "1", "--pictures", "1")
ARMS = ("foreground_only", "adversary_mask")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = write_dataset(tmp_path_factory.mktemp("data") / "d", scenes=3, keyframes=2)
    splits = {name: [f"scene-{index}"] for index, name in enumerate(("train", "val", "test"))}
    (root / "splits.json").write_text(json.dumps(splits))
    return root


@pytest.fixture
def arguments(tmp_path, data, tiny_dir):
    sets = [part for name in ("train", "val", "test") for part in (f"--{name}", str(data))]
    places = ("--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--json", str(tmp_path / "a.json"))
    return [*SMALL, "--vla", str(tiny_dir), *sets, *places, "--arms", ",".join(ARMS), "--device", "cpu", "--jobs", "1"]


@pytest.fixture
def started(monkeypatch):
    """Names of the runs that were started; each runs in this process."""
    names = []

    def start(job, threads):
        names.append(job.folder.name)
        ablation_runs.run_job(job)

    monkeypatch.setattr(ablation, "_start", start)
    return names


def test_it_records_every_arm_and_seed_and_does_nothing_twice(arguments, started, tmp_path):
    assert ablation.main(arguments) == 0
    assert started == ["foreground_only_seed0", "adversary_mask_seed0", "oracle_mask_seed0", "random_mask_seed0"]
    report = json.loads((tmp_path / "a.json").read_text())
    assert [(run["arm"], run["seed"]) for run in report["runs"][:2]] == [(arm, 0) for arm in ARMS]
    for run in report["runs"]:
        assert run["images_per_s"] > 0 and run["peak_memory_mib"] > 100 and run["parameters"]["pruner"] > 0
        if run["arm"] in ARMS:
            assert set(run["recall"]) == {"0.75", "0.5", "0.25"} and 0 <= run["auroc"] <= 1
            assert all(0 <= fraction <= 1 for _, fraction in run["positive_share_over_time"])
            assert run["keyframes"] == 2 and "collapsed" in run
    by_arm = {run["arm"]: run["reconstruction"] for run in report["runs"]}
    assert by_arm["adversary_mask"] is None
    assert {"psnr_fore", "ssim_back", "psnr_back_region"} <= set(by_arm["oracle_mask"])
    assert report["summary"]["foreground_only"]["seeds"] == 1
    table = (tmp_path / "a.md").read_text()
    assert "| foreground branch alone |" in table and "| decoder with the true mask |" in table

    (tmp_path / "out" / "adversary_mask_seed0" / "result.json").unlink()
    started.clear()
    assert ablation.main(arguments) == 0  # that run is complete but for its figures, and goes on from its checkpoint
    assert started == ["adversary_mask_seed0"]
    again = json.loads((tmp_path / "a.json").read_text())
    assert again["summary"]["adversary_mask"]["auroc"] == report["summary"]["adversary_mask"]["auroc"]
    others = ablation.plan(ablation.parse_arguments([*arguments, "--steps", "4"]))
    assert [job.result() for job in others] == [None] * 4  # other settings are another ablation


def test_a_run_that_fails_is_named_and_the_others_are_kept(arguments, monkeypatch, tmp_path, capsys):
    def start(job, threads):
        if job.arm == "foreground_only":
            return "no memory (run.log)"
        ablation_runs.run_job(job)

    monkeypatch.setattr(ablation, "_start", start)
    assert ablation.main([*arguments, "--reference-seeds", "0"]) == 1
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["failed"] == {"foreground_only_seed0": "no memory (run.log)"}
    assert list(report["summary"]) == ["adversary_mask"]
    assert "failed: foreground_only_seed0: no memory" in capsys.readouterr().err


def test_the_arms_differ_in_what_they_say(arguments):
    from fastdrive_training.engine.config import parse_recipe
    from fastdrive_training.pruner.config import ReconRecipe

    args = ablation.parse_arguments([*arguments, "--arms", ",".join(ablation.ARMS), "--seeds", "1"])
    recipes = {job.arm: parse_recipe(ReconRecipe, job.recipe) for job in ablation.plan(args)}
    method = recipes["adversary_pixels"]
    assert method.loss.adversary and method.loss.targets == "pixels" and method.health.on_collapse == "record"
    assert not recipes["foreground_only"].loss.adversary
    assert recipes["foreground_only"].schedule.total == method.schedule.total
    assert recipes["foreground_only"].schedule.rehearsal == 0
    assert recipes["foreground_only_aided"].schedule == method.schedule
    assert recipes["adversary_mask"].loss.targets == "mask" and recipes["adversary_both"].loss.targets == "both"
    assert recipes["oracle_mask"].mask == "oracle" and recipes["random_mask"].mask == "random"


@pytest.mark.parametrize("wrong", [("--arms", "none"), ("--steps", "0")])
def test_wrong_arguments_are_named(arguments, wrong, capsys):
    with pytest.raises(SystemExit):
        ablation.parse_arguments([*arguments, *wrong])
    assert wrong[0] in capsys.readouterr().err
