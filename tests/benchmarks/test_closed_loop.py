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
        return {**dict.fromkeys(FIGURES, mean), "ci95": {key: [mean - 0.1, mean + 0.1] for key in FIGURES}, "kept": 0.5}

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
        "rows": [{"row": name, **figures(name)} for name in values],
        "families": [{"row": name, "family": FAMILY, **figures(name)} for name in values],
        "comparisons": [
            {
                "row": row,
                "against": "none",
                "differences": dict.fromkeys(FIGURES, found),
                "families": {FAMILY: dict.fromkeys(FIGURES, found)},
                "loss": {"share_of_worst5": 0.5, "unharmed": 0.25},
            }
        ],
        "worst": [{"row": name, "family": FAMILY, "seed": 0} for name in values],
        "runs": runs,
        "deterministic_hash": f"hash of {row}",
    }


@pytest.fixture
def figures() -> dict:
    calls = [_call("a@0.5", [0.9, 0.2, 0.9], [0.9, 0.9, 0.0]), _call("b@0.5", [0.9, 0.9, 0.0], [0.9, 0.9, 0.0])]
    return {**calls[0], "pruners": closed_loop.pruner_part(calls)}


def test_rows_of_several_calls_stand_together(figures):
    part = figures["pruners"]
    assert [row["row"] for row in part["rows"]] == ["a@0.5", "b@0.5"]
    assert part["deterministic_hashes"] == {"a@0.5": "hash of a@0.5", "b@0.5": "hash of b@0.5"}
    assert {row["row"] for row in part["worst"]} == {"a@0.5", "b@0.5"}, "all tokens have their own part of the file"


def test_runs_are_listed_that_a_pruner_changed_much(figures):
    changed = figures["pruners"]["changed"]
    assert [(run["row"], run["seed"], run["unpruned_epdms_style"]) for run in changed] == [
        ("a@0.5", 1, 0.9),
        ("a@0.5", 2, 0.0),
    ]
    assert changed[0]["events"] == ["off_road"], "a close vehicle does not explain a lost run"
    text = closed_loop.changed_table(figures)
    assert "runs that lose more than 0.5: 1, that gain more: 1." in text
    assert f"| a@0.5 | `{FAMILY}-1` | 0.90 | 0.20 | off road |" in text


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
    assert f"- a@0.5 against all tokens: {told}." in closed_loop.difference_table(figures)


def test_calls_of_two_drives_are_not_merged():
    with pytest.raises(ValueError, match="file 2: its row `none` is not that of file 1"):
        closed_loop.pruner_part([_call("a@0.5", [0.5], [0.9]), _call("b@0.5", [0.5], [0.8])])
