"""The pages of models/tiny_wide hold the committed figures and claim no more than they say."""

from __future__ import annotations

import json
import re
import shutil
from itertools import product
from statistics import mean

import pytest

from benchmarks import RESULTS
from benchmarks.studies import wide_table
from benchmarks.studies.paired_runs import LEAST
from benchmarks.studies.tiny_card import filled
from benchmarks.studies.wide_table import FIGURES, OURS, told_apart
from fastdrive_node.pruning.catalog import NAMES

L2, HITS, OFF = FIGURES
CARD = " ".join(wide_table.CARD.read_text(encoding="utf-8").split())
README = " ".join(wide_table.README.read_text(encoding="utf-8").split())
DECISION = " ".join(wide_table.DECISION.read_text(encoding="utf-8").split())


def rows(name: str = "open_loop_wide") -> list[dict]:
    return json.loads((RESULTS / f"{name}.json").read_text())["rows"]


def figure(pruner: str, drop: float, name: str, table: list[dict] | None = None) -> float:
    found = [row for row in table or rows() if (row["pruner"], row["drop"]) == (pruner, drop)]
    return mean(row[name]["avg"] for row in found)


def better_than_ours(name: str = "open_loop_wide") -> set[tuple[str, float, str]]:
    """The (pruner, ratio, figure) that is below ours, with a paired interval clear of zero."""
    found = json.loads((RESULTS / f"{name}_paired.json").read_text())["comparisons"]
    return {(one["other"], one["drop"], one["figure"]) for one in found if one["interval_95"][0] > LEAST}


def behind_ours(pruner: str, name: str = "open_loop_wide") -> set[tuple[float, str]]:
    """Ratios and figures at which a pruner is worse than ours, clear of zero."""
    apart = told_apart(name=name) - better_than_ours(name)
    return {(drop, figure) for other, drop, figure in apart if other == pruner and figure in FIGURES}


def test_the_tables_are_those_of_the_committed_figures():
    for page, parts in wide_table.pages().items():
        text = page.read_text(encoding="utf-8")
        for part, content in parts.items():
            assert filled(text, part, content, wide_table.WRITER) == text, (page, part)
    with pytest.raises(ValueError, match="not found"):
        filled("# models/tiny_wide", "figures", "", wide_table.WRITER)


def test_the_commands_make_every_row_that_is_shown():
    text = (wide_table.__doc__ or "").replace("\\\n", "")
    (pruners,) = re.findall(r"--pruners (\S+)", text)
    assert (
        {*wide_table.SHOWN, *(row["pruner"] for row in rows())} - {"constant-velocity"}
        <= set(pruners.split(","))
        <= set(NAMES)
    )
    assert re.findall(r"--pruner (\S+)", text) == [OURS]


def test_losses_are_the_mean_of_all_seeds(tmp_path):
    def row(pruner: str, drop: float, seed: int, kept: float, lost: float) -> dict:
        tails = {"loss_90_samples": lost, "worst5_loss": lost, "new_collisions": lost}
        return {"pruner": pruner, "drop": drop, "seed": seed, "relative_performance": {L2: kept}, "tails": tails}

    found = [row("random", drop, seed, 0.8 + 0.1 * seed, 0.1 * seed) for drop in wide_table.DROPS for seed in (0, 1)]
    found += [row("uniform", drop, 0, 0.9, 0.3) for drop in wide_table.DROPS]
    (tmp_path / "x.json").write_text(json.dumps({"rows": found}))
    lines = wide_table.relative_table(("random", "uniform"), tmp_path, "x").splitlines()
    assert lines[2] == "| random |" + " 85.0 / 5 / 0.05 / 5.0 |" * 3
    assert lines[3] == "| uniform |" + " 90.0 / 30 / 0.30 / 30.0 |" * 3
    assert lines[4:] == ["", "`random`: the mean of the figures of 2 seeds."]
    with pytest.raises(ValueError, match=r"no row dart at 0\.25"):
        wide_table.relative_table(["dart"], tmp_path, "x")


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


def test_no_other_choice_is_better_in_l2_or_in_vehicles_hit():
    better = {key for key in better_than_ours() if key[2] in FIGURES}
    assert {key for key in better if key[0] != "none"} == {("ring-view", 0.25, OFF), ("uniform", 0.5, OFF)}
    assert "no other choice is better than `reconpruner-plan-pooled`, clear of zero, at any ratio" in CARD
    assert "Off the road ring-view is better at 0.25 and even spacing (`uniform`) at 0.5, clear of zero" in CARD
    assert len(behind_ours("random")) == 9 and "better than random tokens in all three figures" in CARD
    assert {key for key in better if key[0] == "none"} == {("none", drop, L2) for drop in wide_table.DROPS}
    assert not behind_ours("none") and "In vehicles hit and off the road the two are not told apart" in CARD
    assert "clear of zero, in L2 or in vehicles hit at any ratio" in README


def test_decision_0014_says_what_its_own_figures_do():
    before, apart = "open_loop_wide_before", told_apart(name="open_loop_wide_before")
    for drop in wide_table.DROPS:
        assert ("none", drop, OFF) in apart
        assert figure("none", 0.0, OFF, rows(before)) < figure(wide_table.PLAN, drop, OFF, rows(before))
    assert "They leave the road more often than all tokens, clear of zero at each ratio" in DECISION
    for name in (L2, HITS):
        for even in ("uniform", "coverage"):
            assert (even, 0.75, name) in apart
            assert figure(even, 0.75, name, rows(before)) > figure(wide_table.PLAN, 0.75, name, rows(before))
    assert ("none", 0.75, HITS) not in apart and "hit no more vehicles than all tokens (not told apart)" in DECISION


def test_at_a_quarter_of_the_tokens_it_is_matryoshka():
    assert "At 0.75 all cells are averaged, so the scores decide nothing: it is `matryoshka`" in CARD
    for name in FIGURES:
        assert figure(OURS, 0.75, name) == figure("matryoshka", 0.75, name)


def test_what_is_behind_it():
    assert behind_ours("reconpruner") == {(0.5, L2), (0.5, OFF), (0.75, L2), (0.75, OFF), (0.75, HITS)}
    assert (
        "in L2 and off the road at 0.5 and 0.75, in vehicles hit at 0.75, clear of zero; at 0.25 they are not" in CARD
    )
    assert {(0.5, L2), (0.75, L2)} <= behind_ours("oracle")
    assert "is behind `reconpruner-plan-pooled` in L2 at 0.5 and 0.75, clear of zero: foreground" in CARD
    assert behind_ours(wide_table.PLAN) == {(0.5, L2), (0.75, L2)}
    assert "without pooled cells has a higher L2 at 0.5 and 0.75, clear of zero" in CARD
    assert {drop for drop, _ in behind_ours("prune2drive")} == {0.75}
    assert "Prune2Drive, not told apart from it at 0.25 and 0.5" in CARD


def less_whole(name: str = "open_loop_wide") -> list[float]:
    """Our L2 less that of all tokens, paired, by ratio."""
    found = json.loads((RESULTS / f"{name}_paired.json").read_text())["comparisons"]
    by_drop = {one["drop"]: one["difference"] for one in found if (one["other"], one["figure"]) == ("none", L2)}
    return [by_drop[drop] for drop in wide_table.DROPS]


def kept_of(pruner: str, name: str) -> str:
    kept = [
        next(row for row in rows(name) if (row["pruner"], row["drop"]) == (pruner, drop))["relative_performance"][L2]
        for drop in wide_table.DROPS
    ]
    return "{:.1f}, {:.1f} and {:.1f} %".format(*(100 * each for each in kept))


def test_the_typed_figures():
    assert f"Relative L2 is {kept_of(OURS, 'open_loop_wide')}" in CARD
    assert f"Relative L2 is {kept_of(wide_table.PLAN, 'open_loop_wide_before')}" in DECISION
    assert "by {:.3f}, {:.3f} and {:.3f} m at 0.25, 0.5 and 0.75".format(*less_whole()) in CARD
    unpruned, tiny = figure("none", 0.0, L2), figure("none", 0.0, L2, rows("open_loop_sim"))
    assert f"its L2 is {unpruned:.3f} m unpruned, models/tiny's {tiny:.3f} m" in DECISION
    assert f"({tiny:.3f} m, `benchmarks/results/open_loop_sim.json`)" in CARD
    run = json.loads((RESULTS / "distil_tiny_plan.json").read_text())["divergence"]
    assert f"ended at {run['0.5']:.3f} nats at drop 0.5 and {run['0.75']:.3f} at 0.75" in DECISION


def test_the_night():
    name = "open_loop_wide_night"
    night = rows(name)
    assert len(behind_ours("reconpruner", name)) == 9
    assert all(
        figure("reconpruner", d, f, night) > figure("random", d, f, night) for d in wide_table.DROPS for f in FIGURES
    )
    plan = {(wide_table.PLAN, 0.75, each) for each in FIGURES}
    assert {key for key in better_than_ours(name) if key[2] in FIGURES} == plan
    assert all(figure(wide_table.PLAN, 0.75, f, night) < figure("none", 0.0, f, night) for f in FIGURES)
    assert "is better than with them at 0.75, clear of zero in all three figures, and has fewer errors there" in CARD
    assert set(product(wide_table.DROPS, FIGURES)) - behind_ours("random", name) == {(0.75, HITS)}
    assert "in vehicles hit at 0.75 it is not told apart from random tokens" in CARD


def test_the_rain():
    name = "open_loop_wide_rain"
    better = {key for key in better_than_ours(name) if key[2] in FIGURES and key[0] != "none"}
    assert better == {("prune2drive", 0.25, each) for each in FIGURES} | {(wide_table.PLAN, 0.5, L2)}
    assert "Prune2Drive is better than it at 0.25 in all three figures, and `reconpruner-plan` in L2 at 0.5" in CARD
    assert {("none", drop, L2) for drop in wide_table.DROPS} <= better_than_ours(name)
    assert behind_ours("random", name) == {(0.5, L2), (0.75, L2), (0.75, HITS)}
    assert "apart from random tokens in L2 at 0.5 and 0.75 and in vehicles hit at 0.75 alone" in CARD
    less = less_whole(name)
    assert f"clear of zero, by {min(less):.3f} to {max(less):.3f} m" in CARD
