"""The Fast DDS profile and its segments, and the domain of a replay."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")

from sensor_msgs.msg import Image

from fastdrive_node.errors import FastDriveError, InputError
from fastdrive_node.ros import transport
from fastdrive_node.ros.distribution import UnsupportedEventTypeError
from fastdrive_node.ros.domain import DOMAINS, own_domain
from fastdrive_node.ros.qos import SENSOR, QosLog, subscribe
from fastdrive_node.ros.transport import (
    LARGE_BYTES,
    TUNABLES,
    VARIABLES,
    loss_expected,
    memory_environment,
    profile_environment,
)

CHILD = """
import rclpy, os
from rclpy.context import Context
context = Context()
rclpy.init(args=[], context=context)
node = rclpy.create_node("child", context=context)
print("middleware", rclpy.get_rmw_implementation_identifier())
print("segment", max((os.stat("/dev/shm/" + f).st_size for f in os.listdir("/dev/shm") if "fast" in f), default=0))
"""


@pytest.fixture
def bare(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(transport, "has_shared_memory", lambda: True)


def test_the_shipped_profile_is_set_for_old_and_new_fast_dds(bare):
    variables = profile_environment()
    assert set(variables) == {"FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"}
    assert all(Path(value).name == "fastdds.xml" and Path(value).is_file() for value in variables.values())


def test_a_profile_that_is_set_already_stays(bare, monkeypatch):
    monkeypatch.setenv(VARIABLES[0], "/etc/ours.xml")
    assert profile_environment() == {}


def test_it_can_be_turned_off_or_be_another(bare, tmp_path):
    assert profile_environment("") == {}
    (tmp_path / "own.xml").write_text("<dds/>")
    assert set(profile_environment(str(tmp_path / "own.xml")).values()) == {str(tmp_path / "own.xml")}
    with pytest.raises(InputError, match="no such Fast DDS profile"):
        profile_environment(str(tmp_path / "absent.xml"))


def test_little_shared_memory_keeps_the_default_transport(bare, monkeypatch):
    monkeypatch.setattr(transport, "has_shared_memory", lambda: False)
    assert profile_environment() == {}


def test_malloc_is_told_to_keep_the_memory_of_large_messages(monkeypatch):
    monkeypatch.delenv(TUNABLES, raising=False)
    (name, value), *others = memory_environment().items()
    told = dict(each.removeprefix("glibc.malloc.").split("=") for each in value.split(":"))
    assert name == "GLIBC_TUNABLES" and not others
    assert set(told) == {"hugetlb", "mmap_threshold", "trim_threshold", "top_pad"}
    assert IMAGE < int(told["mmap_threshold"]) <= 32 << 20  # glibc takes no larger one
    assert int(told["trim_threshold"]) > 6 * IMAGE


def test_tunables_that_are_set_already_stay(monkeypatch):
    monkeypatch.setenv(TUNABLES, "glibc.malloc.hugetlb=0")
    assert memory_environment() == {}
    monkeypatch.setenv(TUNABLES, "")
    assert set(memory_environment()) == {TUNABLES}


def test_glibc_takes_the_tunables(monkeypatch):
    """A name or a value that it does not know is ignored without a message, so the list of glibc itself is asked."""
    monkeypatch.delenv(TUNABLES, raising=False)
    loader = next(iter(sorted(Path("/").glob("lib*/**/ld-linux-*.so.*"))), None)
    if loader is None:
        pytest.skip("no loader of glibc")
    environment = {**os.environ, **memory_environment()}
    done = subprocess.run([str(loader), "--list-tunables"], env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        pytest.skip("this glibc does not list its tunables")
    listed = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    for each in memory_environment()[TUNABLES].split(":"):
        name, value = each.split("=")
        assert int(listed[name].split()[0], 16) == int(value), (name, listed.get(name))


FAST, CYCLONE = "rmw_fastrtps_cpp", "rmw_cyclonedds_cpp"
IMAGE = 4_320_000


@pytest.mark.parametrize("size", [IMAGE, None])
def test_loss_is_expected_of_large_messages_without_a_profile(bare, size):
    text = loss_expected(FAST, size)
    assert text.startswith("large messages without shared memory: expect loss of")
    assert ("images of 4.3 MB" if size else "raw images") in text
    assert loss_expected("rmw_zenoh_cpp", size) == ""


def test_no_loss_is_expected_of_small_messages_or_with_a_profile(bare, monkeypatch):
    assert loss_expected(FAST, LARGE_BYTES) == "" and loss_expected(FAST, LARGE_BYTES + 1)
    monkeypatch.setenv(VARIABLES[1], "/etc/ours.xml")
    assert loss_expected(FAST, IMAGE) == loss_expected(FAST, None) == ""


def test_a_small_shared_memory_is_named(bare, monkeypatch):
    monkeypatch.setattr(transport, "has_shared_memory", lambda: False)
    assert "/dev/shm is too small" in loss_expected(FAST, IMAGE)


def test_cyclone_dds_needs_large_buffers_of_the_kernel(monkeypatch, tmp_path):
    limit = tmp_path / "rmem_max"
    monkeypatch.setattr(transport, "_RECEIVE_LIMIT", limit)
    assert loss_expected(CYCLONE, IMAGE) == ""  # not known
    limit.write_text("212992\n")
    assert "net.core.rmem_max is 212992" in loss_expected(CYCLONE, IMAGE)
    limit.write_text("33554432\n")
    assert loss_expected(CYCLONE, IMAGE) == ""


class Middleware:
    """A node that keeps the callbacks of its subscription, and refuses the first ``failing`` ones."""

    def __init__(self, failing: int = 0):
        self.failing = failing
        self.events = None

    def resolve_topic_name(self, topic: str) -> str:
        return topic

    def create_subscription(self, *_, event_callbacks=None, **__):
        if self.failing:
            self.failing -= 1
            raise UnsupportedEventTypeError
        self.events = event_callbacks


def subscribed(middleware: Middleware) -> QosLog:
    log = QosLog(middleware)
    subscribe(middleware, log, Image, "/image", lambda _: None, SENSOR)
    return log


def test_messages_that_the_middleware_tells_as_lost_are_counted():
    middleware = Middleware()
    log = subscribed(middleware)
    for change in (1, 3):
        middleware.events.message_lost(SimpleNamespace(total_count=9, total_count_change=change))
    assert log.lost == {"/image": 4}


def test_a_middleware_without_these_events_still_tells_an_incompatible_qos_or_nothing():
    middleware = Middleware(failing=1)
    subscribed(middleware)
    assert middleware.events.message_lost is None and middleware.events.incompatible_qos is not None
    middleware = Middleware(failing=2)
    subscribed(middleware)
    assert middleware.events is None


def test_segments_of_killed_processes_are_removed_and_no_others(tmp_path):
    def make(name: str, age_s: float = 100.0) -> Path:
        segment, lock = tmp_path / name, tmp_path / f"{name}_el"
        segment.write_bytes(bytes(1000))
        lock.touch()
        os.utime(segment, (time.time() - age_s,) * 2)
        return segment

    dead, of_kilted = make("fastrtps_0123456789abcdef"), make("fastdds_0123456789abcdef")
    living, young, port = (
        make("fastrtps_00000000000000aa"),
        make("fastrtps_00000000000000bb", 0.0),
        make("fastrtps_port7400"),
    )
    other = tmp_path / "something_el"
    other.touch()
    with open(f"{living}_el") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert transport.remove_dead_segments(tmp_path) == (2, 2000)
    assert not any(file.exists() for each in (dead, of_kilted) for file in (each, Path(f"{each}_el")))
    assert all(each.exists() for each in (living, young, port, other))
    assert transport.remove_dead_segments(tmp_path / "absent") == (0, 0)


def test_fast_dds_takes_the_profile_without_an_error(bare):
    if not transport._SHM.is_dir():
        pytest.skip("no shared memory on this machine")
    with own_domain() as domain:
        variables = {
            **profile_environment(),
            "ROS_DOMAIN_ID": str(domain),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        }
        environment = {**os.environ, **profile_environment(), **variables}
        command = [sys.executable, "-c", CHILD]
        child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stderr
    said = dict(line.split() for line in child.stdout.splitlines())
    if "fastrtps" not in said["middleware"]:
        pytest.skip(f"the middleware is {said['middleware']}")
    assert "XML" not in child.stderr and "rror" not in child.stderr
    assert int(said["segment"]) >= 134_217_728


def test_another_tmpdir_claims_no_domain_that_is_in_use(monkeypatch, tmp_path) -> None:
    with own_domain() as domain:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        monkeypatch.setattr("fastdrive_node.ros.domain.DOMAINS", range(domain, domain + 1))
        with pytest.raises(FastDriveError, match="all ROS domains are claimed"), own_domain():
            pass


def test_two_replays_have_two_domains():
    with own_domain() as first, own_domain() as second:
        assert first != second and {first, second} <= set(DOMAINS)


def test_a_domain_is_free_again_after_its_use(monkeypatch):
    monkeypatch.setattr("fastdrive_node.ros.domain.DOMAINS", range(201, 202))  # one that nobody else claims
    for _ in range(2):
        with own_domain() as domain:
            assert domain == 201
            with pytest.raises(FastDriveError, match="all ROS domains are claimed"), own_domain():
                pass
