"""Shards of ``fastdrive evaluate``: merged they give the figures of one run, and shards that do not fit are named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from fastdrive_node.cli import main
from fastdrive_training.evaluation import efficiency
from fastdrive_training.evaluation import run as evaluation
from tests.generation import SHALLOW, untrained_vla
from tests.training.evaluation.open_loop_runs import edit_json
from tests.training.tiny_nuscenes import write_dataset

TIMES = ("pruner_ms", "prefill_ms", "decode_ms_per_token")


@pytest.fixture(scope="module")
def vla_dir(tmp_path_factory):
    return untrained_vla(tmp_path_factory.mktemp("vla") / "tiny", replace(SHALLOW, layers=1))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "d", scenes=2, keyframes=9)  # six samples


@pytest.fixture(scope="module", autouse=True)
def short():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "SEGMENT", 2)
        patch.setattr("fastdrive_training.reports.open_loop.source.SEGMENT", 2)
        patch.setattr(efficiency, "TIMED_SAMPLES", 1)
        patch.setattr(efficiency, "COUNTED_SAMPLES", 1)
        yield


@pytest.fixture(scope="module")
def call(root, vla_dir, tmp_path_factory):
    """``fastdrive evaluate`` with two pruners and what a test adds; returns its figures."""
    file = tmp_path_factory.mktemp("figures") / "figures.json"

    def run(*more) -> dict:
        arguments = ("evaluate", root, "--vla", vla_dir, "--pruners", "none,random", "--drop", "0.5", *more)
        assert main([*map(str, arguments), "--json", str(file)]) == 0
        return json.loads(file.read_text())

    return run


@pytest.fixture(scope="module")
def both(call, tmp_path_factory):
    """The folder with both shards of the evaluation, and their figures; tests must not change it."""
    out = tmp_path_factory.mktemp("shards") / "run"
    return out, [call("--shard", f"{index}/2", "--out", out, "--no-timing") for index in range(2)]


@pytest.fixture
def shards(both, tmp_path):
    """Both shards beside each other, in ``tmp_path / "run"``."""
    folder = shutil.copytree(both[0], tmp_path / "run")
    return [folder / f"shard-{index}-of-2" for index in range(2)]


def _report(capsys, vla_dir, *arguments) -> str:
    """Returns what was written to stderr."""
    capsys.readouterr()
    assert main(["evaluate-report", *map(str, arguments), "--vla", str(vla_dir)]) in (1, 2)
    return capsys.readouterr().err


def test_merged_shards_give_the_rows_of_one_run(call, shards, vla_dir, tmp_path):
    whole = call("--no-timing")
    file = tmp_path / "merged.json"
    assert main(["evaluate-report", str(tmp_path / "run"), "--vla", str(vla_dir), "--json", str(file)]) == 0
    merged = json.loads(file.read_text())
    assert merged["rows"] == whole["rows"] and merged["comparisons"] == whole["comparisons"]
    assert merged["samples"] == whole["samples"] == 6
    several = [*map(str, reversed(shards)), "--merged", str(tmp_path / "other"), "--vla", str(vla_dir)]
    assert main(["evaluate-report", *several, "--json", str(file)]) == 0
    assert json.loads(file.read_text())["rows"] == whole["rows"]
    assert (tmp_path / "other" / "report.html").exists()


def test_a_shard_has_the_figures_of_its_own_samples(both):
    first, second = both[1]
    assert (first["shard"], second["shard"]) == ("0-of-2", "1-of-2")
    assert [first["samples"], second["samples"]] == [2, 4]
    assert first["rows"][0]["flops"] > 0 and second["rows"][0]["flops"] is None


def test_without_timing_costs_are_counted_and_nothing_is_timed(call, monkeypatch, tmp_path):
    timed = []
    clock = efficiency._times
    monkeypatch.setattr(efficiency, "_times", lambda *arguments: timed.append(1) or clock(*arguments))
    rows = call("--no-timing", "--out", tmp_path / "run")["rows"]
    assert not timed and all(row[name] is None for row in rows for name in TIMES)
    assert rows[0]["flops"] > rows[1]["flops"] > 0 and rows[0]["peak_memory_mb"] > 0
    later = call("--out", tmp_path / "run")["rows"]  # the same folder, timed after all
    assert len(timed) == 2 and later[1]["prefill_ms"] > 0


def test_shards_that_do_not_fit_are_named(shards, vla_dir, tmp_path, capsys):
    assert "shard 1/2 is missing beside" in _report(capsys, vla_dir, shards[0])
    copy = shutil.copytree(shards[0], tmp_path / "copy")
    assert "shard 0/2 is there twice" in _report(capsys, vla_dir, *shards, copy)
    edit_json(shards[1] / "run.json", lambda content: content.update(dtype="torch.bfloat16"))
    text = _report(capsys, vla_dir, *shards)
    assert "shard-1-of-2: dtype differs" in text and "shard-0-of-2" in text
    (shards[1] / "samples.parquet").unlink()
    assert "has not finished" in _report(capsys, vla_dir, *shards)


def test_shards_with_other_rows_are_refused(call, shards, vla_dir, tmp_path, capsys):
    call("--shard", "1/2", "--out", tmp_path / "run", "--no-timing", "--drop", "0.5,0.75")
    assert "row random-0.75-0 differs" in _report(capsys, vla_dir, tmp_path / "run")


def test_more_shards_than_segments_are_refused(root, vla_dir, capsys):
    assert main(["evaluate", str(root), "--vla", str(vla_dir), "--pruners", "none", "--shard", "0/4"]) == 2
    assert "at most 3 shards, not 4" in capsys.readouterr().err
