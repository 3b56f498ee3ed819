"""The plan record is whole again after it was written, and a damaged one is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from fastdrive_node.errors import InputError
from fastdrive_node.record import PlanRecord
from fastdrive_node.sync.outcomes import Outcome
from fastdrive_node.types import (
    SUPERSEDED,
    CameraFrame,
    Command,
    DeadlineChoice,
    EgoHistory,
    EgoState,
    FrameSet,
    KeptTokens,
    Plan,
    Refusal,
)

T0 = 1_533_151_603_999_999_999
WAYPOINTS = [[2.0 * k, 0.1 * k] for k in range(1, 7)]
KEPT = KeptTokens(np.array([0, 3]), np.array([0.1, 0.2, 0.3, 0.4]), (1, 2, 2), "used")
PLAN = Plan(T0, np.array(WAYPOINTS), 0.5, "an answer", "nominal", KEPT, {"encode": 4.0, "total": 9.5})
FRAMES = FrameSet(tuple(CameraFrame(name, T0 + ns, T0, lambda: None) for name, ns in (("a", 0), ("b", 8_000_000))), T0)
OUTCOME = Outcome(PLAN, FRAMES, EgoHistory((EgoState(T0, 0, 0, 0, 4.5),)), Command.LEFT, 1.5, 10.25)


def written(record: PlanRecord) -> dict:
    return json.loads(json.dumps(record.to_dict()))


def test_a_plans_record_is_whole_again_without_its_scores():
    values = written(PlanRecord.of_outcome(OUTCOME, 33.0))
    assert values["kind"] == "plan" and values["waypoints"] == WAYPOINTS and values["command"] == "left"
    assert (values["speed_mps"], values["spread_s"], values["latency_ms"]) == (4.5, 0.008, 33.0)
    assert values["tokens"] == {"grid": [1, 2, 2], "kept": [0, 3], "temporal": "used"}
    again = PlanRecord.from_dict(values)
    assert written(again) == values
    (mask,) = again.result.kept.masks()
    assert again.result.kept.scores is None and mask.tolist() == [[True, False], [False, True]]
    assert again.reason == ""


def test_grids_of_images_of_different_sizes_are_in_the_record():
    kept = KeptTokens(np.array([0, 3, 6]), None, (1, 1, 8), grids=((1, 2), (2, 3)))
    values = written(PlanRecord(replace(PLAN, kept=kept)))
    assert values["tokens"]["grids"] == [[1, 2], [2, 3]]
    masks = PlanRecord.from_dict(values).result.kept.masks()
    assert [mask.tolist() for mask in masks] == [[[True, False]], [[False, True, False], [False, True, False]]]
    with pytest.raises(InputError, match=r"tokens\.grids: expected grids of 8 tokens together"):
        PlanRecord.from_dict({**values, "tokens": {**values["tokens"], "grids": [[1, 2], [2, 2]]}})


def test_the_line_of_a_plan_has_the_fields_that_scripts_read():
    assert PlanRecord(PLAN).line() == {
        "t0_ns": T0,
        "waypoints": WAYPOINTS,
        "dt_s": 0.5,
        "mode": "nominal",
        "text": "an answer",
    }


def test_a_plan_tells_why_it_keeps_so_many_tokens():
    timed = replace(PLAN, deadline=DeadlineChoice(100.0, 42.5, 51.25, 64, 96, 1.5))
    values = written(PlanRecord(timed))
    assert values["deadline"]["reason"] == "deadline" and values["deadline"]["keep"] == 64
    assert PlanRecord.from_dict(values).result.deadline == timed.deadline


@pytest.mark.parametrize(("stage", "kind"), [("image", "refused"), (SUPERSEDED, SUPERSEDED)])
def test_a_refusal_has_its_stage_and_reason(stage, kind):
    record = PlanRecord(Refusal(T0, "CAM_BACK: cut", stage), waited_ms=1.0)
    assert record.line() == {"t0_ns": T0, "kind": kind, "stage": stage, "reason": "CAM_BACK: cut"}
    assert PlanRecord.from_dict(written(record)) == record
    assert "speed_mps" not in written(record)


def test_a_refusal_has_the_code_of_its_error_or_else_its_stage():
    coded = Refusal(T0, "plan: too fast", "answer", "plan.speed")
    assert written(PlanRecord(coded))["code"] == "plan.speed"
    assert PlanRecord.from_dict(written(PlanRecord(coded))).result == coded
    assert written(PlanRecord(Refusal(T0, "answer: no tag", "answer")))["code"] == "answer"


def test_the_warnings_of_a_plan_are_in_its_record():
    warned = replace(PLAN, warnings=("plan.speed: 36 m/s at waypoint 6",))
    values = written(PlanRecord(warned))
    assert values["warnings"] == list(warned.warnings)
    assert PlanRecord.from_dict(values).result.warnings == warned.warnings
    assert "warnings" not in written(PlanRecord(PLAN))


def test_the_number_of_cameras_that_were_not_encoded_again_is_in_the_record():
    values = written(PlanRecord(replace(PLAN, reused_cameras=2)))
    assert values["reused_cameras"] == 2 and PlanRecord.from_dict(values).plan.reused_cameras == 2
    assert "reused_cameras" not in written(PlanRecord(PLAN))


def test_a_reason_names_its_stage_once():
    assert PlanRecord(Refusal(T0, "answer: no tag", "answer")).reason == "answer: no tag"
    assert PlanRecord(Refusal(T0, "CAM_BACK: cut", "image")).reason == "image: CAM_BACK: cut"


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("t0_ns", None, "int()"),
        ("t0_ns", float("inf"), "plan record: not readable"),
        ("tokens", {"grid": [1, 2, 2], "kept": [2**70], "temporal": "off"}, "plan record: not readable"),
        ("waypoints", [[1.0, 2.0], [3.0]], "plan record: not readable"),
        ("waypoints", [[1.0, float("nan")]], "waypoints: expected a list of finite"),
        ("command", "fly", "'fly' is not a valid Command"),
        ("stage_ms", [1], "plan record: not readable"),
        ("reused_cameras", "two", "plan record: not readable"),
        ("tokens", {"grid": [1, 2, 2], "kept": [4], "temporal": "off"}, "tokens.kept: expected ascending"),
        ("tokens", {"grid": [1, 2, 2], "kept": [1, 1], "temporal": "off"}, "tokens.kept: expected ascending"),
        ("tokens", {"grid": [10**6, 10**6, 2], "kept": [0], "temporal": "off"}, "tokens.grid"),
        ("tokens", {"grid": [1, 2, 2], "kept": [0]}, "temporal: missing"),
    ],
)
def test_a_damaged_record_is_refused_by_field(field, value, reason):
    with pytest.raises(InputError) as caught:
        PlanRecord.from_dict({**PlanRecord(PLAN).to_dict(), field: value})
    assert reason in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["kind", "t0_ns", "waypoints", "tokens", "waited_ms"])
def test_a_missing_field_is_named(field):
    values = PlanRecord(PLAN).to_dict()
    del values[field]
    with pytest.raises(InputError, match=f"plan record: {field}: missing"):
        PlanRecord.from_dict(values)
