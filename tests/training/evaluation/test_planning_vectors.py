"""Scenario files of ``fastdrive metrics``: data from outside, refused with the field's name."""

from __future__ import annotations

import copy
import json

import pytest

from fastdrive_node.cli import main

PATH = [[2.5 * step, 0.0] for step in range(1, 7)]
GOOD = {
    "name": "one",
    "pred_xy_fwd_left": PATH,
    "gt_xy_fwd_left": PATH,
    "obstacles": [{"at": [[9.0, 0.0, 0.0, 4.0, 2.0]] * 3 + [None] * 3}],
    "boundary": [[[-5.0, 3.0], [40.0, 3.0]]],
}


def _metrics(tmp_path, content) -> tuple[int, dict]:
    source, target = tmp_path / "scenarios.json", tmp_path / "figures.json"
    source.write_text(content if isinstance(content, str) else json.dumps(content))
    code = main(["metrics", str(source), "--json", str(target)])
    return code, json.loads(target.read_text()) if code == 0 else {}


def _changed(**fields) -> dict:
    return {"scenarios": [{**copy.deepcopy(GOOD), **fields}]}


def test_objects_that_are_gone_hit_nobody(tmp_path):
    stays = [{"at": [[9.0, 0.0, 0.0, 4.0, 2.0]] * 6}]
    truth = [[x, -8.0] for x, _ in PATH]
    _, figures = _metrics(tmp_path, _changed(gt_xy_fwd_left=truth))
    gone = figures["one"]["SparseDrive_ImpromptuVLA"]["obj_box_col_per_step"]
    _, figures = _metrics(tmp_path, _changed(gt_xy_fwd_left=truth, obstacles=stays))
    assert gone == [0, 1, 1, 0, 0, 0]
    assert figures["one"]["SparseDrive_ImpromptuVLA"]["obj_box_col_per_step"] == [0, 1, 1, 1, 1, 0]


def test_scenario_without_boundary_has_no_boundary_figures(tmp_path):
    _, figures = _metrics(tmp_path, _changed(boundary=None))
    assert "boundary_intersection_any" not in figures["one"]["BEV-Planner"]["3s"]
    _, figures = _metrics(tmp_path, _changed())
    assert figures["one"]["BEV-Planner"]["3s"]["boundary_intersection_any"] == 0


def test_refused_prediction_has_no_figures(tmp_path):
    assert _metrics(tmp_path, _changed(pred_xy_fwd_left=None)) == (0, {"one": {"refused": True}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Invalid JSON"),
        ("[1]", "must be an object"),
        ({"scenarios": []}, "scenarios: []: must have at least 1 item"),
        ({"scenarios": [3]}, "scenarios.0: 3: must be an object"),
        ({"scenarios": [GOOD, GOOD]}, "name 'one' is there twice"),
        (_changed(pred_xy_fwd_left=PATH[:5]), "must have at least 6 items"),
        (_changed(gt_xy_fwd_left=None), "scenarios.0.gt_xy_fwd_left: None: must be a valid"),
        (_changed(pred_xy_fwd_left=[[float("nan"), 0.0]] * 6), "pred_xy_fwd_left.0.0: nan: must be"),
        (_changed(pred_xy_fwd_left=[[1e30, 0.0]] * 6), "pred_xy_fwd_left.0.0: 1e+30: must be less than"),
        (_changed(pred_xy_fwd_left=[["far", 0.0]] * 6), "pred_xy_fwd_left.0.0: 'far': must be a valid number"),
        (_changed(obstacles=None), "obstacles: None: must be a valid"),
        (_changed(obstacles=[[1, 2]]), "obstacles.0: [1, 2]: must be an object"),
        (_changed(obstacles=[{"at": [None] * 5}]), "obstacles.0.at: "),
        (_changed(obstacles=[{"at": [[1, 2, 3, 4]] * 6}]), "obstacles.0.at.0.4: is missing"),
        (_changed(obstacles=[{"at": [[1, 2, 0, 0, 1]] * 6}]), "obstacles.0.at.0.3: 0: must be greater than 0"),
        (_changed(boundary={}), "boundary: {}: must be a valid"),
        (_changed(boundary=[[[1, 2]]]), "boundary.0: [[1, 2]]: must have at least 2 items"),
    ],
)
def test_broken_file_is_refused_with_the_field(tmp_path, capsys, content, message):
    assert _metrics(tmp_path, content)[0] == 1
    assert message in capsys.readouterr().err


def test_missing_file_is_refused(tmp_path, capsys):
    assert main(["metrics", str(tmp_path / "none.json")]) == 1
    assert "none.json" in capsys.readouterr().err
