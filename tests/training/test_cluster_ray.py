"""Annotation, encoding and evaluation by two workers of a local Ray: the files of one process, byte for byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fastdrive_node.cli import main
from fastdrive_node.cluster import map_items, open_cluster
from fastdrive_node.errors import ClusterError, InputError
from fastdrive_node.families import load_vla
from fastdrive_training.annotate.run import Annotation
from fastdrive_training.annotate.store import MaskStore
from fastdrive_training.data import token_cache
from fastdrive_training.data.adapters import open_source
from fastdrive_training.data.sampling import Shard
from fastdrive_training.evaluation import run as evaluation
from tests.generation import untrained_vla
from tests.training.annotate.annotate_fixtures import BrightModels, settings
from tests.training.tiny_nuscenes import write_dataset

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e .[cluster]")


@pytest.fixture(scope="module")
def cluster():
    # by default its workers yield to everything else on the machine
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    with open_cluster("local:2", "cpu") as joined:  # commands of these tests join it too
        yield joined


@pytest.fixture(scope="module")
def vla_dir(tmp_path_factory):
    return untrained_vla(tmp_path_factory.mktemp("vla") / "tiny")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "d", scenes=2, keyframes=9)


@pytest.fixture(scope="module")
def source(root):
    return open_source(root, "train")


def _files(folder: Path, *without: str) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    named = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    return {name: content for name, content in named.items() if not name.startswith(without or "\0")}


def test_results_of_all_items_come_from_both_workers(cluster):
    assert (cluster.device, cluster.workers) == ("cpu", 2)

    def make():
        return lambda items: ((item, part, os.getpid()) for item in items for part in "ab")

    results = list(map_items(make, range(40), cluster, chunk=3))
    assert sorted((item, part) for item, part, _ in results) == [(item, part) for item in range(40) for part in "ab"]
    pids = {pid for *_, pid in results}
    assert len(pids) == 2 and os.getpid() not in pids


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("1 / 0", "^two: a Ray worker failed .ZeroDivisionError: division by zero"),
        ("os._exit(1)", "^two: a Ray worker died .*run again and it goes on$"),
    ],
)
def test_a_worker_that_fails_is_told_with_its_item(cluster, fault, text):
    def make():
        def work(items):
            for item in items:
                if item == "two":
                    exec(fault, {"os": os})
                yield item

        return work

    got = []
    with pytest.raises(ClusterError, match=text):
        got.extend(map_items(make, ["one", "two"], replace(cluster, workers=1)))
    assert got == ["one"]


def _annotate(source, out, cluster=None):
    annotation = Annotation(source, out, settings(), Shard(), BrightModels, batch=2, cluster=cluster)
    outcome = annotation.run()
    return outcome, annotation.finish(outcome, samples=0)


def test_masks_are_those_of_one_process_and_an_interrupted_run_goes_on(source, cluster, tmp_path, monkeypatch):
    _annotate(source, tmp_path / "one")
    written, write = [], MaskStore.write

    def interrupted(store, image):
        if len(written) == 7:
            raise KeyboardInterrupt
        written.append(image.key)
        write(store, image)

    with monkeypatch.context() as patch:
        patch.setattr(MaskStore, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _annotate(source, tmp_path / "two", cluster)
    outcome, figures = _annotate(source, tmp_path / "two", cluster)
    assert (outcome.skipped, outcome.found, figures["complete"]) == (7, len(source) * 6 - 7, True)
    assert _files(tmp_path / "two", "journal") == _files(tmp_path / "one", "journal")


def test_tokens_are_those_of_one_process_and_a_finished_prefix_is_kept(
    root, source, cluster, vla_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr(token_cache, "CHUNK", 1)
    monkeypatch.setattr(token_cache, "CHUNKS_AT_ONCE", 2)
    vla = load_vla(vla_dir)
    whole = token_cache.build_token_cache(source, vla, tmp_path / "one")
    image = root / "samples" / "CAM_FRONT_LEFT" / "s0k4.jpg"
    content, state = image.read_bytes(), image.stat()
    image.unlink()
    load = partial(load_vla, vla_dir)
    with pytest.raises(InputError, match=r"^item 4 \(s0k4\) to item 5 \(s0k5\): image .*s0k4\.jpg is missing"):
        token_cache.build_token_cache(source, vla, tmp_path / "two", cluster, load)
    image.write_bytes(content)  # the cache's key has its size and time
    (progress,) = tmp_path.glob("two/*/progress.json")
    assert json.loads(progress.read_text())["done"] <= 4
    os.utime(image, ns=(state.st_atime_ns, state.st_mtime_ns))
    again = token_cache.build_token_cache(source, vla, tmp_path / "two", cluster, load)
    np.testing.assert_array_equal(again, whole)


def test_evaluation_writes_the_files_of_one_process(root, vla_dir, cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "SEGMENT", 2)

    def call(name: str, *more: str) -> dict:
        arguments = ["evaluate", str(root), "--vla", str(vla_dir), "--pruners", "none,random", "--drop", "0.5"]
        arguments += ["--no-timing", "--device", "cpu", "--batch", "1", "--out", str(tmp_path / name), *more]
        assert main([*arguments, "--json", str(tmp_path / f"{name}.json")]) == 0
        return json.loads((tmp_path / f"{name}.json").read_text())

    assert call("one") == call("two", "--ray", "local:2")
    assert _files(tmp_path / "two") == _files(tmp_path / "one")
    part = tmp_path / "two" / "parts" / "random-0.5-0" / "00001.parquet"
    part.unlink()
    call("two", "--ray", "local:2")
    assert _files(tmp_path / "two") == _files(tmp_path / "one")


def test_ctrl_c_ends_a_run_within_seconds_and_it_goes_on(root, vla_dir, tmp_path):
    arguments = ["evaluate", str(root), "--vla", str(vla_dir), "--pruners", "none,random", "--seeds", "8"]
    arguments += ["--drop", "0.1,0.2,0.3,0.4,0.5,0.6", "--no-timing", "--device", "cpu", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "fastdrive_node.cli", *arguments, "--ray", "local:2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("run/parts/*/*.parquet")):
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to every process of the command
        _, text = run.communicate(timeout=20)
    assert run.returncode == 1
    assert text.splitlines()[-1] == (
        "fastdrive evaluate: interrupted: finished segments are kept; give the same command again, and it goes on"
    )
    assert list(tmp_path.glob("run/parts/*/*.parquet"))
