"""The pages of models/tiny_wide hold the committed figures and claim no more than they say."""

from __future__ import annotations

import json
import shutil
from statistics import mean

import pytest

from benchmarks import RESULTS
from benchmarks.studies import wide_table
from benchmarks.studies.tiny_card import filled
from benchmarks.studies.wide_table import FIGURES, OURS, told_apart

L2, HITS, OFF = FIGURES
CARD = " ".join(wide_table.CARD.read_text(encoding="utf-8").split())
DECISION = " ".join(wide_table.DECISION.read_text(encoding="utf-8").split())


def rows(name: str = "open_loop_wide") -> list[dict]:
    return json.loads((RESULTS / f"{name}.json").read_text())["rows"]


def figure(pruner: str, drop: float, name: str, table: list[dict] | None = None) -> float:
    found = [row for row in table or rows() if (row["pruner"], row["drop"]) == (pruner, drop)]
    return mean(row[name]["avg"] for row in found)


OTHERS = {row["pruner"] for row in rows()} - {OURS, "none", "constant-velocity"}
CHOOSING = OTHERS - {"matryoshka"}


def test_the_tables_are_those_of_the_committed_figures():
    for page, parts in wide_table.pages().items():
        text = page.read_text(encoding="utf-8")
        for part, content in parts.items():
            assert filled(text, part, content, wide_table.WRITER) == text, (page, part)
    with pytest.raises(ValueError, match="not found"):
        filled("# models/tiny_wide", "figures", "", wide_table.WRITER)


def test_a_domain_is_in_the_card_as_soon_as_its_figures_are_there(tmp_path):
    for file in RESULTS.glob("open_loop_wide*.json"):
        shutil.copy(file, tmp_path)
    for end in ("", "_paired"):
        shutil.copy(RESULTS / f"open_loop_wide_night{end}.json", tmp_path / f"open_loop_wide_rain{end}.json")
    parts = wide_table.pages(tmp_path)[wide_table.CARD]
    assert parts["rain"] == parts["night"] != parts["figures"]
    for file in tmp_path.glob("open_loop_wide_rain*"):
        file.unlink()
    assert "rain" not in wide_table.pages(tmp_path)[wide_table.CARD]


def test_fewest_vehicles_are_hit_with_a_quarter_of_the_tokens():
    apart = told_apart()
    for drop in (0.5, 0.75):
        assert all(figure(other, drop, HITS) > figure(OURS, drop, HITS) for other in OTHERS)
    assert all((other, 0.75, HITS) in apart for other in OTHERS) and ("none", 0.75, HITS) not in apart
    assert "fewer vehicles than every other choice, clear of zero, and is not told apart from all tokens" in CARD
    assert (sum((other, 0.5, HITS) in apart for other in OTHERS), len(OTHERS)) == (7, 14)
    assert "At drop 0.5 it hits the fewest vehicles too, clear of seven of the fourteen others" in CARD
    refused = [row["refused"] for row in rows() if row["pruner"] in (OURS, "none") and row["drop"] in (0.0, 0.75)]
    assert refused == [3, 3] and "no more refused answers than all tokens" in CARD


def test_who_is_lowest_in_l2():
    apart = told_apart()
    assert all(figure(other, 0.75, L2) > figure(OURS, 0.75, L2) for other in CHOOSING)
    level = {other for other in OTHERS if (other, 0.75, L2) not in apart}
    assert level == {"prune2drive", "ring-view", "matryoshka"}
    assert "(Prune2Drive and ring-view are not told apart from it)" in CARD
    for drop in (0.25, 0.5):
        assert min(CHOOSING | {OURS}, key=lambda one: figure(one, drop, L2)) == "prune2drive"
        assert ("prune2drive", drop, L2) not in apart
    assert min(OTHERS | {OURS}, key=lambda one: figure(one, 0.75, L2)) == "matryoshka"
    assert {(drop, L2) for drop in (0.5, 0.75)} == {key[1:] for key in apart if key[0] == "none" and key[2] == L2}
    assert "Its L2 is behind that of all tokens at 0.5 and 0.75, clear of zero" in CARD


def test_what_is_behind_and_what_leaves_the_road_more_often():
    apart = told_apart()
    behind = {key[1:] for key in apart if key[0] == "reconpruner" and key[2] in FIGURES}
    assert behind == {(0.5, L2), (0.5, OFF), (0.75, L2), (0.75, OFF), (0.75, HITS)}
    assert all(figure("reconpruner", drop, name) > figure(OURS, drop, name) for drop, name in behind)
    for other, drops in {"none": (0.25, 0.5, 0.75), "prune2drive": (0.25, 0.5), "uniform": (0.5, 0.75)}.items():
        for drop in drops:
            assert (other, drop, OFF) in apart
            assert figure(other, 0.0 if other == "none" else drop, OFF) < figure(OURS, drop, OFF)
    assert "than Prune2Drive at 0.25 and 0.5 and even spacing (`uniform`) at 0.5 and 0.75" in CARD
    assert "They leave the road more often than all tokens, clear of zero at each ratio" in DECISION
    for name in (L2, HITS):
        assert all((even, 0.75, name) in apart for even in ("uniform", "coverage"))


def test_the_typed_figures():
    kept = [
        next(row for row in rows() if (row["pruner"], row["drop"]) == (OURS, drop))["relative_performance"][L2]
        for drop in wide_table.DROPS
    ]
    shown = "{:.1f}, {:.1f} and {:.1f} %".format(*(100 * each for each in kept))
    assert f"Relative L2 is {shown}" in CARD and f"Relative L2 is {shown}" in DECISION
    unpruned, tiny = figure("none", 0.0, L2), figure("none", 0.0, L2, rows("open_loop_sim"))
    assert f"its L2 is {unpruned:.3f} m unpruned, models/tiny's {tiny:.3f} m" in DECISION
    assert f"({tiny:.3f} m, `benchmarks/results/open_loop_sim.json`)" in CARD
    run = json.loads((RESULTS / "distil_tiny_plan.json").read_text())["divergence"]
    assert f"ended at {run['0.5']:.3f} nats at drop 0.5 and {run['0.75']:.3f} at 0.75" in DECISION


def test_the_night():
    night, apart = rows("open_loop_wide_night"), told_apart(name="open_loop_wide_night")
    for drop in wide_table.DROPS:
        for name in FIGURES:
            assert ("reconpruner", drop, name) in apart
            assert figure("reconpruner", drop, name, night) > figure(OURS, drop, name, night)
        assert figure("reconpruner", drop, L2, night) > figure("random", drop, L2, night)
    assert {("none", 0.75, L2), ("none", 0.75, OFF)} <= apart
    assert all(figure("none", 0.0, name, night) > figure(OURS, 0.75, name, night) for name in FIGURES)
    assert "in L2 and off the road that is clear of zero" in CARD
