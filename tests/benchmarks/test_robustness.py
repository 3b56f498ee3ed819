"""Fuzzed messages and random calls to a live node, fewer than the scripts send; and how a soak is judged."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")

from benchmarks.robustness import fuzz, fuzz_atheris, random_calls, soak
from benchmarks.robustness.live_node import DirectPlanner, live_node
from fastdrive_node.errors import InputError

MESSAGES = 4_000  # of each type with sizes, times or numbers to check; of the others a quarter


@pytest.mark.parametrize(
    ("types", "messages"),
    [
        (("Image", "Odometry"), MESSAGES),
        (("CompressedImage",), MESSAGES),
        (("String", "Float64", "AccelWithCovarianceStamped"), MESSAGES // 4),
    ],
)
def test_fuzzed_messages_of_every_input_raise_nothing_and_the_node_plans_on(types, messages):
    for result in fuzz.fuzz(messages, seed=1, types=types):
        assert (result.sent, result.defects, result.planned_after) == (messages, 0, True), result
        assert 0 < result.ignored < messages and result.plans > 0, result  # both kinds are in the mixture


def test_a_defect_of_a_callback_is_found(monkeypatch):
    monkeypatch.setattr("fastdrive_node.ros.inputs.driving_command", lambda text: 1 / 0)
    (result,) = fuzz.fuzz(20, types=("String",))
    assert result.defects > 0


def test_mutations_are_the_same_for_the_same_seed_and_change_the_message():
    samples = fuzz.samples_of("Image", 10**18)
    first, second = ([fuzz.mutated(random.Random(seed), samples) for seed in range(50)] for _ in range(2))
    assert first == second
    assert sum(each in samples for each in first) < 5


def test_inputs_of_the_guided_fuzzer_are_read_and_mutations_of_them_raise_nothing(tmp_path):
    count = fuzz_atheris.write_samples(tmp_path)
    samples = [path.read_bytes() for path in tmp_path.iterdir()]
    assert len(samples) == count and {sample[0] for sample in samples} == {0, 1, 2}
    valid, readers = [], list(fuzz_atheris.parsers().values())
    for sample in samples:
        try:
            readers[sample[0]](sample[1:])
            valid.append(sample[0])
        except InputError:
            pass
    assert {place: valid.count(place) for place in (1, 2)} == {1: 5, 2: 2} and valid.count(0) >= 4
    rng = random.Random(3)
    for _ in range(500):
        place = rng.randrange(3)
        of = [sample[1:] for sample in samples if sample[0] == place]
        fuzz_atheris.check(bytes([place]) + fuzz.mutated(rng, of))


def test_a_defect_of_a_parser_ends_the_guided_fuzzer(tmp_path, monkeypatch):
    monkeypatch.setattr("fastdrive_node.ros.cdr.parse_camera_info", lambda message: 1 // 0)
    (tmp_path / "found").write_bytes(b"\x02\x00\x01")
    with pytest.raises(ZeroDivisionError):
        fuzz_atheris.main(["--again", str(tmp_path / "found")])


def test_the_guided_fuzzer_says_that_atheris_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "atheris", None)
    with pytest.raises(SystemExit, match="atheris is not installed: pip install atheris"):
        fuzz_atheris.main([])


def test_random_lifecycle_and_parameter_calls_leave_a_node_that_plans():
    result = random_calls.random_calls(500, seed=3)
    assert result.problems == []
    assert result.calls == 500 and result.accepted["transition"] > 5 and result.plans > 0


def test_a_call_that_raises_and_a_state_that_differs_are_problems():
    planner, result = DirectPlanner(), random_calls.Called()
    with live_node(planner) as node:
        caller = random_calls.Caller(node, planner, random.Random(0), result)
        caller.call("diagnostics")
        assert result.problems == []
        node.publish_diagnostics, node._label = None, "inactive"
        caller.call("diagnostics")
    raised, differs = result.problems
    assert raised == "call 2: diagnostics: TypeError: 'NoneType' object is not callable"
    assert differs == "call 2: the state machine is active, the node says inactive"


def looks(process: str, memory: list[float], threads: int = 5, pid: int = 7) -> list[soak.Look]:
    return [soak.Look(float(at), process, pid, mb, 10.0, 20, threads) for at, mb in enumerate(memory)]


def test_a_soak_fails_for_memory_that_grows_after_the_warm_up_and_for_latency_that_rises():
    steady, growing = [50.0, 80.0, *[100.0] * 18], [50.0, *[100.0 + 0.1 * step for step in range(19)]]
    passes = [[10.0, 12.0]] * 10
    judged = soak.judge(looks("node", steady) + looks("planner", growing), passes)
    assert {each.name for each in judged if not each.passed} == {"planner private_mb"}
    slow = [*passes[:8], [30.0, 40.0], [30.0, 40.0]]
    judged = soak.judge(looks("node", steady) + looks("planner", steady), slow)
    assert {each.name for each in judged if not each.passed} == {"latency p99 ms"}
    restarted = looks("planner", steady[:10]) + looks("planner", steady[10:], pid=8)
    judged = soak.judge(looks("node", steady) + restarted, passes)
    assert {each.name for each in judged if not each.passed} == {"planner restarts"}
    with pytest.raises(ValueError, match="soak longer"):
        soak.judge(looks("node", steady[:3]), passes)


def test_a_child_process_is_found_and_looked_at():
    code = "print('up', flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"up\n"
        assert child.pid in soak.children_of(os.getpid())
        seen = soak.look(1.0, "node", child.pid)
        assert seen.private_mb > 0.1 and seen.descriptors >= 3 and seen.threads == 1
    finally:
        child.communicate(b"\n")
    assert soak.look(2.0, "node", child.pid) is None
