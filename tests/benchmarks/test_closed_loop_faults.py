"""The closed loop's rows under faults: what is committed of a call, its table and its picture."""

from __future__ import annotations

import json

import pytest

from benchmarks import ROOT
from benchmarks.studies import closed_loop, closed_loop_faults


def _row(pruner: str, fault: str | None, score: float, failed: int = 0) -> dict:
    drop = 0.0 if pruner in ("none", "expert") else 0.5
    name = pruner.rsplit("/", 1)[-1].removesuffix(".safetensors") + ("@0.5" if drop else "")
    return {
        **{"row": name + (f"+{fault}" if fault else ""), "pruner": pruner, "drop": drop, "fault": fault},
        **{"runs": 28, "failed": failed, "epdms_style": score, "collision_rate": 0.25, "route_completion": 0.9},
        **{"refused": 0.0, "comfort": 1.0, "ci95": {"epdms_style": [score - 0.1, score + 0.1]} | _others()},
    }


def _others() -> dict:
    return {key: [0.0, 1.0] for key in ("collision_rate", "route_completion", "refused", "comfort")}


def _comparison(row: dict, against: dict) -> dict:
    change = row["epdms_style"] - against["epdms_style"]
    found = {"difference": change, "ci95": [change - 0.1, change + 0.1]}
    differences = dict.fromkeys(("epdms_style", "collision_rate", "route_completion", "refused", "comfort"), found)
    return {"row": row["row"], "against": against["row"], "differences": differences, "families": {}}


def _call(pruner: str = "/home/me/own.safetensors", failed: int = 0) -> dict:
    full, pruned = _row("none", None, 0.8), _row(pruner, None, 0.75)
    black, pruned_black = _row("none", "black:0.5", 0.5), _row(pruner, "black:0.5", 0.3, failed)
    pairs = ((pruned, full), (black, full), (pruned_black, black), (pruned_black, pruned))
    return {
        "rows": [_row("expert", None, 1.0), full, pruned, black, pruned_black],
        "comparisons": [_comparison(*pair) for pair in pairs],
        "deterministic_hash": "hash",
        "runs": [],
    }


def test_the_table_marks_what_a_fault_costs_and_what_the_pruner_changes():
    lines = closed_loop_faults.table(closed_loop_faults.figures_of(_call())).splitlines()
    assert lines[0] == "| fault | severity | all tokens | own@0.5 | difference |"
    assert lines[2] == "| none |  | 0.80 / 0.25 | 0.75 / 0.25 | -0.05 (-0.15 to +0.05) |"
    cells = "0.50* / 0.25 | 0.30* / 0.25 | **-0.20** (-0.30 to -0.10)"
    assert lines[3] == f"| `black` | 0.5 fraction of the cameras | {cells} |"


def test_what_is_committed_names_its_call_and_nothing_of_the_machine():
    found = closed_loop_faults.figures_of(_call())
    assert found["command"] == (
        "fastdrive sim drive --runs 2 --pruners none,own --drop 0.5 --fault black:0.5 --workers 2 --out DIR --json F"
    )
    assert [row["row"] for row in found["rows"]] == ["none", "own@0.5", "none+black:0.5", "own@0.5+black:0.5"]
    assert "/home" not in json.dumps(found) and "comfort" not in json.dumps(found)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda call: call["rows"].append(_row("random", None, 0.4)), "--pruners none,PRUNER"),
        (lambda call: call.update(rows=[each for each in call["rows"] if each["pruner"] != "none"]), "none,PRUNER"),
        (lambda call: call.update(rows=call["rows"][:3]), "no row has a fault"),
        (lambda call: call["rows"][-1].update(failed=1), r"runs of own@0\.5\+black:0\.5 failed"),
    ],
)
def test_a_call_that_cannot_be_compared_is_refused(change, told):
    call = _call()
    change(call)
    with pytest.raises(ValueError, match=told):
        closed_loop_faults.figures_of(call)


def test_a_file_that_cannot_be_used_is_named(tmp_path, capsys):
    file = tmp_path / "half.json"
    file.write_text(json.dumps({**_call(), "rows": []}))
    with pytest.raises(SystemExit):
        closed_loop_faults.main([str(file)])
    assert "half.json: give a call with" in capsys.readouterr().err


def test_the_picture_has_a_panel_for_each_fault(tmp_path):
    closed_loop_faults.draw(closed_loop_faults.figures_of(_call()), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_the_closed_loops_page_shows_the_committed_faults():
    page = closed_loop.PAGE.read_text()
    assert closed_loop_faults.complete(page) == page
    found = json.loads(closed_loop_faults.FILE.read_text())
    assert found["command"] == closed_loop_faults.command(found["rows"])
    assert f"`{found['command']}`" in " ".join(page.split())
    assert (ROOT / "docs" / "images" / "closed_loop_faults.png").is_file() and "images/closed_loop_faults.png" in page


def test_the_sentences_about_faults_hold_the_committed_figures():
    page = " ".join(closed_loop.PAGE.read_text().split())
    found = json.loads(closed_loop_faults.FILE.read_text())
    rows = {row["row"]: row for row in found["rows"]}
    against = {(each["row"], each["against"]): each["differences"]["epdms_style"] for each in found["comparisons"]}
    full = {
        name.partition("+")[2]: f"{row['epdms_style']:.2f}" for name, row in rows.items() if row["pruner"] == "none"
    }
    assert f"`frozen`, three cameras: {full['frozen:0.5']} of {full['']}" in page
    assert f"(`burst:4`: {full['burst:4']})" in page and f"(`latency:2`: {full['latency:2']})" in page
    assert f"reads 25 % too high ({full['speed-scale:1.25']})" in page
    assert sorted(full.values())[:4] == sorted(
        full[each] for each in ("frozen:0.5", "burst:4", "latency:2", "speed-scale:1.25")
    )
    black = against["reconpruner@0.5+black:0.5", "none+black:0.5"]
    low, high = black["ci95"]
    assert f"lose {-black['difference']:.2f} more than all ({-high:.2f} to {-low:.2f})" in page
    pruned = rows["reconpruner@0.5+black:0.5"]["epdms_style"]
    assert f"the score is {pruned:.2f} where that of all tokens is {full['black:0.5']}" in page
    faults = [each for each in full if each]
    pairs = {each: against[f"reconpruner@0.5+{each}", f"none+{each}"] for each in faults}
    assert {each for each, pair in pairs.items() if closed_loop.is_clear(pair)} == {
        "black:0.5",
        "burst:2",
        "dropped:0.5",
    }
    assert f"{pairs['burst:2']['ci95'][1]:.2f}" == "-0.00" and f"{pairs['dropped:0.5']['ci95'][0]:.2f}" == "0.00"
    assert len(faults) == 13 and 0.4 < rows["none+dropped:0.5"]["refused"] < 0.5
    assert rows["none+position-noise:2"]["epdms_style"] == rows["none"]["epdms_style"]
    suite = next(row for row in json.loads(closed_loop.FILE.read_text())["rows"] if row["row"] == "none")
    assert f"has {full['']} here and {suite['epdms_style']:.2f} in the standard suite" in page
