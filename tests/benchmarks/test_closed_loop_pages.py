"""The pages of the closed loop hold the committed figures."""

from __future__ import annotations

import json
from statistics import mean

import pytest

from benchmarks import RESULTS, ROOT
from benchmarks.studies import closed_loop


def test_the_page_of_the_closed_loop_shows_the_committed_figures_of_copying():
    page = (ROOT / "docs" / "closed_loop.md").read_text()
    found = json.loads((RESULTS / "closed_loop_copying.json").read_text())
    rows = {row["row"]: row for row in found["rows"]} | {name: vla["row"] for name, vla in found["vlas"].items()}
    for name, row in rows.items():
        cells = (f"{row[figure]:.2f}" for figure in ("collision_rate", "route_completion", "epdms_style"))
        assert f"| {name} | {' | '.join(cells)} |" in page
    for prompt, column in (("the true past", "past"), ("a past at constant speed", "steady"), ("no past", "hidden")):
        lengths = (mean(plan[f"{column}{ending}"] for plan in found["plans"]) for ending in ("_m", "_without_m"))
        assert f"| {prompt} | {' | '.join(f'{length:.1f}' for length in lengths)} |" in page


def test_the_page_of_the_closed_loop_shows_the_committed_figures_of_the_standard_suite():
    page = (ROOT / "docs" / "closed_loop.md").read_text()
    found = json.loads((RESULTS / "closed_loop_standard.json").read_text())
    rows = {row["row"]: row for row in found["rows"]}
    expert, other, planner = (rows[name] for name in ("expert", "constant-velocity", "none"))
    assert expert["collision_rate"] < 0.01 < other["collision_rate"], "else the scenarios are not fair"
    assert f"95 % interval: 0 to {100 * expert['ci95']['collision_rate'][1]:.1f} %" in page
    assert planner["collision_rate"] < other["collision_rate"] / 4 and planner["route_completion"] >= 0.9, "it drives"
    shown = " ".join(page.split())
    for figure, text in (
        ("collision_rate", "models/tiny_drive collides in {}"),
        ("route_completion", "comes {} of its"),
    ):
        low, high = (round(100 * each) for each in planner["ci95"][figure])
        assert text.format(f"{100 * planner[figure]:.0f} % ({low} to {high} %)") in shown
    collisions = {
        each["family"]: round(16 * each["collision_rate"]) for each in found["families"] if each["row"] == "none"
    }
    assert len(collisions) == 14
    people = collisions["crossing-pedestrian"] + collisions["hidden-pedestrian"]
    red = round(224 * planner["red_light_rate"])  # lights are in one family
    for text in ((ROOT / "models/tiny_drive/README.md").read_text(), page):
        words = " ".join(text.split())
        assert f"{collisions['road-works']} of 16 runs" in words and f"in {red} of 16" in words
        assert f"in {people} of the 32 runs with pedestrians" in words


def test_the_card_of_the_driving_vla_shows_the_committed_figures():
    card = (ROOT / "models/tiny_drive/README.md").read_text()
    found = json.loads((RESULTS / "closed_loop_standard.json").read_text())
    assert f"`{found['command']}`" in card
    names = {"expert": "expert", "constant-velocity": "constant velocity", "none": "models/tiny_drive, all tokens"}
    for row in found["rows"]:
        low, high = row["ci95"]["collision_rate"]
        cells = [f"{row['collision_rate']:.2f} ({low:.2f} to {high:.2f})"]
        cells += [f"{row[name]:.2f}" for name in ("route_completion", "epdms_style", "hd_score", "neuroncap")]
        assert f"| {names[row['row']]} | {' | '.join(cells)} |" in card


def test_the_closed_loops_page_shows_the_committed_tables_of_pruners():
    page = closed_loop.PAGE.read_text()
    assert closed_loop.complete(page) == page
    assert f"`{closed_loop.COMMAND}`" in " ".join(page.split())
    found = json.loads(closed_loop.FILE.read_text())["pruners"]
    assert found["command"] == closed_loop.COMMAND
    assert {(row["late"], row["failed_rate"]) for row in found["rows"]} == {(0, 0)}, "the page says so"
    assert "HD-Score" in closed_loop.SCORES.values() and {len(each) for each in found["families"].values()} == {14}


def test_the_sentences_about_half_and_a_quarter_of_the_tokens_hold_the_committed_figures():
    found = json.loads(closed_loop.FILE.read_text())
    page = " ".join(closed_loop.PAGE.read_text().split())
    half, quarter = (
        {key: _difference(found, row, "none", key) for key in closed_loop.SCORES}
        for row in ("reconpruner@0.5", "reconpruner@0.75")
    )
    assert not any(closed_loop.is_clear(each) for each in half.values()), "no score is told apart"
    assert half["collision_rate"]["ci95"][1] == pytest.approx(0.04, abs=0.005), "four more in a hundred"
    clear = {key for key, each in quarter.items() if closed_loop.is_clear(each)}
    assert clear == {"lk", "ec", "plan_deviation_m", "hc"}
    assert quarter["hc"]["difference"] > 0 > max(quarter["lk"]["difference"], quarter["ec"]["difference"])
    assert quarter["plan_deviation_m"]["difference"] > 0
    for row, ratio in ((half, "0.5"), (quarter, "0.75")):
        for key in ("collision_rate", "epdms_style"):
            assert _told(row[key]) in page, ratio
    most = {key: _difference(found, "reconpruner@0.25", "none", key) for key in closed_loop.SCORES}
    clear = {key: each["difference"] > 0 for key, each in most.items() if closed_loop.is_clear(each)}
    assert clear == {"lk": False, "hc": True, "ec": True}
    assert f"(collisions {_paired(most['collision_rate'])})" in page
    full = {each["family"]: each for each in found["families"] if each["row"] == "none"}
    junctions = [found["pruners"]["families"]["reconpruner@0.75"]["junction"], full["junction"]]
    many, few = (round(16 * each["collision_rate"]) for each in junctions)
    compared = {(each["row"], each["against"]): each for each in found["pruners"]["comparisons"]}
    families = compared["reconpruner@0.75", "none"]["families"]
    change = families["junction"]["collision_rate"]
    assert f"{many} of 16 collide, with all tokens {few} ({_paired(change)})" in page
    assert [name for name, each in families.items() if closed_loop.is_clear(each["collision_rate"])] == ["junction"]
    card = " ".join((ROOT / "models/tiny_drive/README.md").read_text().split())
    rows = [
        next(row for row in rows if row["row"] == name)
        for rows, name in ((found["pruners"]["rows"], "reconpruner@0.5"), (found["rows"], "none"))
    ]
    cells = (f"{each[name]:.2f}" for name in ("collision_rate", "epdms_style") for each in rows)
    assert "collisions {} and {}, EPDMS-style {} and {}".format(*cells) in card


def _told(difference: dict) -> str:
    return "{:+.3f} ({:+.3f} to {:+.3f})".format(difference["difference"], *difference["ci95"])


def test_the_decision_on_kept_tokens_holds_the_committed_figures():
    text = " ".join((ROOT / "docs/decisions/0015-a-planner-that-drives-on-kept-tokens.md").read_text().split())
    before = json.loads((RESULTS / "closed_loop_before.json").read_text())
    now = json.loads(closed_loop.FILE.read_text())
    old = {row["row"]: row for row in before["rows"]}
    new = {row["row"]: row for row in (*now["rows"], *now["pruners"]["rows"])}
    for figure, title in (("collision_rate", "collisions"), ("epdms_style", "EPDMS-style")):
        cells = (f"{of[row][figure]:.2f}" for row in ("none", "reconpruner@0.5") for of in (old, new))
        assert f"| {title} | {' | '.join(cells)} |" in text
    change = _difference(now, "reconpruner@0.5", "none", "epdms_style")
    row = old["reconpruner@0.5"]
    of_before = {"difference": row["epdms_style_difference"], "ci95": row["epdms_style_difference_ci95"]}
    assert f"| {_told(of_before)} | {_told(change)} |" in text
    paired = before["against_this"]["rows"]
    assert _paired(paired["none"]["epdms_style"]) in text
    assert _paired(paired["reconpruner@0.5"]["collision_rate"]) in text
    tried = before["pruner_trained_on_own_drives"]["standard"]
    assert f"{100 * tried['collision_rate']:.0f} %, {-tried['epdms_style_difference']:.3f} lower" in text
    looks = json.loads((RESULTS / "closed_loop_looking.json").read_text())["summary"][-1]
    assert f"are {looks['with_m']:.1f} m long where the expert's are {looks['expert_m']:.1f} m" in text


def _paired(difference: dict) -> str:
    return "{:+.3f}, {:+.3f} to {:+.3f}".format(difference["difference"], *difference["ci95"])


def _difference(found: dict, row: str, against: str, figure: str) -> dict:
    compared = {(each["row"], each["against"]): each["differences"] for each in found["pruners"]["comparisons"]}
    return compared[row, against][figure]


def _lower(difference: dict) -> tuple[str, str]:
    """How much lower, and from where to where."""
    low, high = difference["ci95"]
    return f"{-difference['difference']:.2f}", f"{-high + 0.0:.2f} to {-low:.2f}"


def test_the_sentences_about_random_tokens_hold_the_committed_figures():
    page = " ".join(closed_loop.PAGE.read_text().split())
    found = json.loads(closed_loop.FILE.read_text())
    random = next(row for row in found["pruners"]["rows"] if row["row"] == "random@0.5")
    rates = (f"{100 * random[name]:.0f} %" for name in ("collision_rate", "off_road_rate"))
    assert "{} of the runs collide and {} leave the road".format(*rates) in page
    value, interval = _lower(_difference(found, "random@0.5", "none", "epdms_style"))
    assert f"the EPDMS-style score is {value} lower ({interval})" in page
    above = _difference(found, "reconpruner@0.5", "random@0.5", "epdms_style")
    low, high = above["ci95"]
    assert f"ReconPruner's is {above['difference']:.2f} above theirs ({low:.2f} to {high:.2f})" in page


def test_the_sentences_about_other_pruners_hold_the_committed_figures():
    page = " ".join(closed_loop.PAGE.read_text().split())
    found = json.loads(closed_loop.FILE.read_text())
    plan, diverse, views = (
        {key: _difference(found, f"{name}@0.5", "none", key) for key in closed_loop.SCORES}
        for name in ("reconpruner-plan", "divprune", "prune2drive")
    )
    assert {key for key, each in plan.items() if closed_loop.is_clear(each)} == {"lk"} and plan["lk"]["difference"] < 0
    told = (_paired(plan[key]) for key in ("collision_rate", "epdms_style"))
    assert "(collisions {}; EPDMS-style {})".format(*told) in page
    assert f"DivPrune collides more often ({_paired(diverse['collision_rate'])})" in page
    assert diverse["off_road_rate"]["ci95"][0] > 0, "it leaves the road more often"
    assert f"does both too (collisions {_paired(views['collision_rate'])})" in page
    assert views["off_road_rate"]["ci95"][0] > 0, "it leaves the road more often too"
    for each, of in ((diverse, "its"), (views, "whose")):
        value, interval = _lower(each["epdms_style"])
        assert f"{of} EPDMS-style score is {value} lower ({interval})" in page
    junction = found["pruners"]["families"]["prune2drive@0.5"]["junction"]
    assert f"in `junction` {round(16 * junction['collision_rate'])} of 16 runs collide" in page


def test_the_closed_loops_page_shows_whether_planners_look():
    page = (ROOT / "docs" / "closed_loop.md").read_text()
    for row in json.loads((RESULTS / "closed_loop_looking.json").read_text())["summary"]:
        cells = (f"{row[name]:.1f}" for name in ("with_m", "without_m", "expert_m"))
        assert f"| {row['vla']} | {' | '.join(cells)} |" in page


def test_the_closed_loops_page_shows_its_ticks_a_second():
    page = " ".join((ROOT / "docs" / "closed_loop.md").read_text().split())
    found = json.loads((RESULTS / "closed_loop_ticks.json").read_text())
    suite, few = found["standard"], found["two_seeds"]
    assert f"{suite['ticks']:,} ticks in {suite['driven']} runs, took {suite['seconds']:.0f} s" in page
    assert f"({suite['ticks_per_s']:.1f} a second, `driven`" in page and suite["ticks_per_s"] >= 10
    rates = " and ".join(f"{each['ticks_per_s']:.1f}" for each in found["standard_beside_tests"])
    assert f"had {rates} a second" in page
    before, after = (few["first_to_last_run_seconds"][name] for name in ("before", "after"))
    assert (
        f"({few['ticks']:,} ticks) took {after:.0f} s from first to last ({few['ticks'] / after:.1f} a second)" in page
    )
    assert f"exchange with the node, {before:.0f} s" in page
    assert f"on another day they took {few['first_to_last_run_seconds']['after_on_another_day']:.0f} s" in page
    for command in (found["command"], few["command"]):
        assert f"`{command}`" in page
