"""Maps over items in this process; addresses of clusters. What a cluster does is in test_cluster_ray.py."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from fastdrive_node.cli import main
from fastdrive_node.cluster import map_items, open_cluster
from fastdrive_node.errors import ClusterError, UsageError


def test_without_a_cluster_one_worker_has_all_items_as_a_stream():
    made, asked = [], []

    def make():
        made.append(1)
        return lambda items: (item * 10 for item in items)

    results = map_items(make, (asked.append(item) or item for item in range(3)), None, chunk=2)
    assert next(results) == 0 and asked == [0]  # items are read as they are needed
    assert list(results) == [10, 20] and made == [1]


def test_without_an_address_there_is_no_cluster():
    with open_cluster(None) as cluster:
        assert cluster is None


@pytest.mark.parametrize("address", ["", "local:0", "local:x", "somewhere", "ray://host"])
def test_other_addresses_are_wrong_usage(address):
    with pytest.raises(UsageError, match=r"--ray .*: use auto, local, local:2"), open_cluster(address):
        pass


def test_a_gpu_is_not_chosen_by_its_index():
    with pytest.raises(UsageError, match="--device cuda:1: with --ray, use auto, cpu or cuda"):
        open_cluster("local", "cuda:1").__enter__()


def test_missing_ray_is_said_with_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["evaluate", str(tmp_path), "--ray", "local:2"]) == 1
    text = capsys.readouterr().err
    assert text == (
        "fastdrive evaluate: the Python package 'ray' is missing; install it with: "
        "pip install -c constraints.txt -e '.[cluster]'\n"
    )


@pytest.mark.parametrize(("address", "more"), [("ray://host:10001", "asks for a token"), ("host:6379", "")])
def test_a_cluster_that_does_not_answer_is_told_with_what_to_do(monkeypatch, address, more):
    def refuse(**_):
        raise ConnectionError("ray client connection timeout")

    stand_in = SimpleNamespace(init=refuse, is_initialized=lambda: False)
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    with pytest.raises(ClusterError, match=r"no Ray cluster answers \(ray client .*\); start one") as told:
        open_cluster(address).__enter__()
    assert more in str(told.value) and ("token" in str(told.value)) == bool(more)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["train", "recon_tiny", "--ray", "auto"], "use it with --cache-only"),
        (["train", "tiny_language", "--cache-only"], "kind vla_language has no cache"),
    ],
)
def test_training_itself_needs_no_cluster(arguments, reason, capsys):
    assert main(arguments) == 2 and reason in capsys.readouterr().err
