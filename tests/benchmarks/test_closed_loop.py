"""The pruner rows of the closed loop, merged from several calls."""

from __future__ import annotations

import pytest

from benchmarks.studies import closed_loop
from fastdrive_sim.drive.summary import FIGURES

FAMILY = "bend"


def _call(row: str, scores: list[float], full: list[float]) -> dict:
    """The JSON of a drive of one family with two rows; the score of each run is given, all else is the same."""
    values = {row: scores, "none": full}

    def figures(name: str) -> dict:
        mean = sum(values[name]) / len(values[name])
        return {
            **dict.fromkeys(FIGURES, mean),
            "runs": len(values[name]),
            "ci95": {key: [mean - 0.1, mean + 0.1] for key in FIGURES},
            "kept": 0.5,
        }

    change = figures(row)["epdms_style"] - figures("none")["epdms_style"]
    found = {"difference": change, "ci95": [change - 0.1, change + 0.1]}
    runs = [
        {"row": name, "family": FAMILY, "seed": seed, "ending": "completed", "epdms_style": score, "events": []}
        for name, of in values.items()
        for seed, score in enumerate(of)
    ]
    for run in runs:
        run["events"] = [
            {"time_s": 1.0, "kind": "close", "detail": "car"},
            {"time_s": 2.0, "kind": "off_road", "detail": ""},
        ]
    return {
        "rows": [{"row": name, "pruner": f"/home/me/{name[:-4]}.safetensors", **figures(name)} for name in values],
        "families": [{"row": name, "family": FAMILY, **figures(name)} for name in values],
        "comparisons": [
            {
                "row": row,
                "against": "none",
                "runs": len(scores),
                "differences": dict.fromkeys(FIGURES, found),
                "families": {FAMILY: dict.fromkeys(FIGURES, found)},
                "loss": {"share_of_worst5": 0.5, "unharmed": 0.25},
            }
        ],
        "runs": runs,
        "deterministic_hash": f"hash of {row}",
    }


@pytest.fixture
def figures() -> dict:
    calls = [
        _call("reconpruner@0.5", [0.9, 0.2, 0.9], [0.9, 0.9, 0.0]),
        _call("random@0.5", [0.9, 0.1, 0.0], [0.9, 0.9, 0.0]),
    ]
    return {**calls[0], "pruners": closed_loop.pruner_part(calls)}


def test_rows_of_several_calls_stand_together(figures):
    part = figures["pruners"]
    names = ["reconpruner@0.5", "random@0.5"]
    assert [row["row"] for row in part["rows"]] == list(part["families"]) == names
    assert [row["pruner"] for row in part["rows"]] == ["reconpruner", "random"], "not where a file lies"
    assert part["deterministic_hashes"] == {
        "reconpruner@0.5": "hash of reconpruner@0.5",
        "random@0.5": "hash of random@0.5",
    }
    assert [row["scenarios"] for row in (*part["rows"], *part["comparisons"])] == [3] * 4


def test_the_call_without_a_pruner_may_stand_before_the_others(figures):
    calls = [_call(row, [0.9, 0.2, 0.9], [0.9, 0.9, 0.0]) for row in ("reconpruner@0.5", "random@0.5")]
    alone = {**calls[0], "comparisons": [], "rows": [row for row in calls[0]["rows"] if row["row"] == "none"]}
    part = closed_loop.pruner_part([alone, *calls])
    assert list(part["deterministic_hashes"]) == ["reconpruner@0.5", "random@0.5"]


def test_runs_are_listed_that_our_pruner_changed_much(figures):
    changed = figures["pruners"]["changed"]
    assert [(run["row"], run["seed"], run["unpruned_epdms_style"]) for run in changed] == [
        ("reconpruner@0.5", 1, 0.9),
        ("reconpruner@0.5", 2, 0.0),
    ]
    assert changed[0]["events"] == ["off_road"], "a close vehicle does not explain a lost run"
    text = closed_loop.changed_table(figures)
    assert "runs that lose more than 0.5: 1, that gain more: 1." in text
    assert f"| reconpruner@0.5 | `{FAMILY}-1` | 0.90 | 0.20 | off road |" in text
    assert (
        "- random@0.5: 25 % of the scenarios lose nothing, and the worst 5 % of them have 50 % of what is lost." in text
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (-0.2, "worse in NeuroNCAP; better in collision rate"),
        (0.2, "worse in collision rate; better in NeuroNCAP"),
        (0.05, "not told apart in collision rate, NeuroNCAP"),
    ],
)
def test_a_difference_is_told_with_its_direction_or_not_at_all(monkeypatch, figures, change, told):
    monkeypatch.setattr(closed_loop, "SCORES", {"collision_rate": "collision rate", "neuroncap": "NeuroNCAP"})
    comparison = figures["pruners"]["comparisons"][0]
    found = {"difference": change, "ci95": [change - 0.1, change + 0.1]}
    comparison["differences"] = dict.fromkeys(("collision_rate", "neuroncap"), found)
    assert f"- reconpruner@0.5 against all tokens: {told}." in closed_loop.difference_table(figures)


def test_calls_of_two_drives_are_not_merged():
    with pytest.raises(ValueError, match="file 2: its row `none` is not that of file 1"):
        closed_loop.pruner_part([_call("reconpruner@0.5", [0.5], [0.9]), _call("random@0.5", [0.5], [0.8])])


def test_the_rows_without_a_pruner_stand_apart_with_their_families():
    call = _call("reconpruner@0.5", [0.5, 0.6], [0.9, 0.8])
    for part in ("rows", "families"):
        full = next(each for each in call[part] if each["row"] == "none")
        call[part] += [{**full, "row": "expert", "epdms_style": 1.0}, {**full, "row": "constant-velocity"}]
    with pytest.raises(ValueError, match=r"file 1: it has the row reconpruner@0\.5; give the call with"):
        closed_loop.suite_part(call)
    for part in ("rows", "families"):
        call[part] = [each for each in call[part] if each["row"] != "reconpruner@0.5"]
    found = closed_loop.suite_part(call)
    assert found["deterministic_hash"] == call["deterministic_hash"]
    assert [row["scenarios"] for row in found["rows"]] == [2, 2, 2]
    assert {row["row"] for row in found["rows"]} == {"none", "expert", "constant-velocity"}
    assert found["command"] == closed_loop.SUITE_COMMAND
    lines = closed_loop.suite_table(found).splitlines()
    assert [line[:9] for line in lines[2:]] == ["| all | 0", "| `bend` "]
    assert lines[2] == "| all | 0.85 / 0.85 / 1.00 | 0.85 / 0.85 / 0.85 | 0.85 / 0.85 / 0.85 |"
