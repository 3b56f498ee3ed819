"""The pages of the closed loop hold the committed figures."""

from __future__ import annotations

import json
from statistics import mean

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
    names = ("expert", "constant-velocity", "none")
    rows = {row["row"]: row for row in found["rows"]}
    families: dict[str, dict] = {}
    for each in found["families"]:
        families.setdefault(f"`{each['family']}`", {})[each["row"]] = each
    assert len(families) == 14
    for name, by_row in {"all": rows, **families}.items():
        cells = (
            f"{r['collision_rate']:.2f} / {r['route_completion']:.2f} / {r['epdms_style']:.2f}"
            for r in (by_row[row] for row in names)
        )
        assert f"| {name} | {' | '.join(cells)} |" in page
    expert, other, planner = (rows[name] for name in names)
    assert expert["collision_rate"] < 0.01 < other["collision_rate"], "else the scenarios are not fair"
    assert f"95 % interval: 0 to {100 * expert['ci95']['collision_rate'][1]:.1f} %" in page
    assert planner["collision_rate"] < other["collision_rate"] / 4 and planner["route_completion"] >= 0.9, "it drives"
    collisions = {name: round(16 * by_row["none"]["collision_rate"]) for name, by_row in families.items()}
    people = collisions["`crossing-pedestrian`"] + collisions["`hidden-pedestrian`"]
    red = round(224 * planner["red_light_rate"])  # lights are in one family
    for text in ((ROOT / "models/tiny_drive/README.md").read_text(), page):
        words = " ".join(text.split())
        assert f"all {collisions['`road-works`']} runs" in words and f"in {red} of 16" in words
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


def test_the_sentences_about_half_of_the_tokens_hold_the_committed_figures():
    found = json.loads(closed_loop.FILE.read_text())
    page = " ".join(closed_loop.PAGE.read_text().split())
    full, row = (
        next(row for row in rows if row["row"] == name)
        for rows, name in ((found["rows"], "none"), (found["pruners"]["rows"], "reconpruner@0.5"))
    )
    compared = found["pruners"]["comparisons"]
    change = next(each for each in compared if (each["row"], each["against"]) == ("reconpruner@0.5", "none"))
    own = change["differences"]["epdms_style"]
    low, high = own["ci95"]
    rates = [f"{100 * each['collision_rate']:.0f} %" for each in (row, full)]
    assert f"{rates[0]} of its runs collide instead of {rates[1]}" in page
    assert f"EPDMS-style score is {-own['difference']:.2f} lower ({-high:.2f} to {-low:.2f})" in page
    unclear = ("comfort", "route_completion", "lk", "off_road_rate", "red_light_rate")
    assert not any(closed_loop.is_clear(change["differences"][name]) for name in unclear)
    lights = next(each for each in found["families"] if (each["row"], each["family"]) == ("none", "red-light"))
    pruned = found["pruners"]["families"]["reconpruner@0.5"]["red-light"]
    counts = [round(16 * each["collision_rate"]) for each in (pruned, lights)]
    assert counts == [6, 1] and "six runs collide, with all tokens one" in page
    hits = [
        each for each in found["pruners"]["changed"] if (each["row"], each["family"]) == ("reconpruner@0.5", "cyclist")
    ]
    speeds = sorted(float(each["events"][0].split(", ")[2].split()[0]) for each in hits)
    assert (
        f"four runs more than with all tokens end in the back of the cyclist, at {speeds[0]} to {speeds[-1]} m/s"
        in page
    )
    assert len(hits) == 4 == round(16 * change["families"]["cyclist"]["collision_rate"]["difference"])
    card = " ".join((ROOT / "models/tiny_drive/README.md").read_text().split())
    cells = (f"{each[name]:.2f}" for name in ("collision_rate", "epdms_style") for each in (row, full))
    assert "collisions {} instead of {}, EPDMS-style {} instead of {}".format(*cells) in card


def test_the_sentences_about_a_quarter_of_the_tokens_hold_the_committed_figures():
    found = json.loads(closed_loop.FILE.read_text())["pruners"]
    page = " ".join(closed_loop.PAGE.read_text().split())
    row = next(row for row in found["rows"] if row["row"] == "reconpruner@0.75")
    own = next(
        each["differences"]["epdms_style"]
        for each in found["comparisons"]
        if (each["row"], each["against"]) == ("reconpruner@0.75", "none")
    )
    low, high = own["ci95"]
    assert f"{100 * row['collision_rate']:.0f} % of the runs collide, and the EPDMS-style score is" in page
    assert f"is {-own['difference']:.2f} lower than with all tokens ({-high:.2f} to {-low:.2f})" in page
    lost = {
        name: {each["seed"] for each in found["changed"] if (each["row"], each["family"]) == (name, "cyclist")}
        for name in ("reconpruner@0.5", "reconpruner@0.75")
    }
    assert lost["reconpruner@0.5"] < lost["reconpruner@0.75"] and len(lost["reconpruner@0.5"]) == 4
    assert len(lost["reconpruner@0.75"]) == 5 and "the same four cyclists, and one more" in page


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
    above = [
        _difference(found, row, "random@0.5", "epdms_style") for row in ("reconpruner@0.5", "reconpruner-plan@0.5")
    ]
    told = [f"{each['difference']:.2f}{{}} ({each['ci95'][0]:.2f} to {each['ci95'][1]:.2f})" for each in above]
    assert (
        f"ReconPruner's is {told[0].format(' above theirs')}, that of `reconpruner-plan` {told[1].format('')}" in page
    )


def test_the_sentence_about_divprune_holds_the_committed_figures():
    page = " ".join(closed_loop.PAGE.read_text().split())
    found = json.loads(closed_loop.FILE.read_text())
    row = next(row for row in found["pruners"]["rows"] if row["row"] == "divprune@0.5")
    value, interval = _lower(_difference(found, "divprune@0.5", "none", "epdms_style"))
    told = f"{100 * row['collision_rate']:.0f} % of the runs collide, and the EPDMS-style score is {value} lower"
    assert f"{told} than with all tokens ({interval})" in page


def test_the_sentences_about_three_quarters_and_the_pruner_by_the_plan_hold_the_committed_figures():
    page = " ".join(closed_loop.PAGE.read_text().split())
    found = json.loads(closed_loop.FILE.read_text())
    rows = {row["row"]: row for row in found["pruners"]["rows"]}
    much, plan = (
        {key: _difference(found, row, "none", key) for key in closed_loop.SCORES}
        for row in ("reconpruner@0.25", "reconpruner-plan@0.5")
    )
    assert closed_loop.is_clear(much["collision_rate"]) and not closed_loop.is_clear(much["epdms_style"])
    assert (
        f"as few collisions as all: {100 * rows['reconpruner@0.25']['collision_rate']:.0f} % of the runs collide"
        in page
    )
    assert f"EPDMS-style score is {_lower(much['epdms_style'])[0]} lower, and the interval just holds 0" in page
    assert 0 <= much["epdms_style"]["ci95"][1] < 0.001
    assert closed_loop.is_clear(plan["collision_rate"]) and closed_loop.is_clear(plan["epdms_style"])
    assert f"collides in {100 * rows['reconpruner-plan@0.5']['collision_rate']:.0f} % of the runs" in page
    low, high = plan["epdms_style"]["ci95"]
    value = -plan["epdms_style"]["difference"]
    assert f"its EPDMS-style score is {value:.3f} lower than with all tokens ({-high:.3f} to {-low:.3f})" in page
    half = _difference(found, "reconpruner@0.5", "none", "epdms_style")
    assert plan["epdms_style"]["difference"] > half["difference"] / 2, "half as much"
    families = found["pruners"]["families"]["reconpruner-plan@0.5"]
    full = {each["family"]: each for each in found["families"] if each["row"] == "none"}
    assert families["cyclist"]["collision_rate"] == 0 == full["junction"]["collision_rate"]
    assert round(16 * families["junction"]["collision_rate"]) == 4 and "four of the 16 junctions" in page
    card = " ".join((ROOT / "models/tiny_drive/README.md").read_text().split())
    assert f"`reconpruner-plan` in {100 * rows['reconpruner-plan@0.5']['collision_rate']:.0f} %" in card


def test_the_sentences_about_what_is_not_shipped_hold_the_committed_figures():
    page = " ".join(closed_loop.PAGE.read_text().split())
    found = json.loads(closed_loop.FILE.read_text())["not_shipped"]
    turns, suite = found["turns"], found["standard"]
    other, shipped = (f"{-turns[name]['epdms_style_difference']:.2f}" for name in ("not_shipped", "shipped"))
    assert f"({turns['shipped']['driven']} runs, EPDMS-style {other} below all tokens instead of {shipped}" in page
    rate, lower = f"{100 * suite['collision_rate']:.0f} %", f"{-suite['epdms_style_difference']:.2f}"
    assert f"but not in the suite: {rate} of the runs collide, {lower} lower" in page


def test_the_closed_loops_page_shows_whether_planners_look():
    page = (ROOT / "docs" / "closed_loop.md").read_text()
    for row in json.loads((RESULTS / "closed_loop_looking.json").read_text())["summary"]:
        cells = (f"{row[name]:.1f}" for name in ("with_m", "without_m", "expert_m"))
        assert f"| {row['vla']} | {' | '.join(cells)} |" in page


def test_the_closed_loops_page_shows_its_ticks_a_second():
    page = " ".join((ROOT / "docs" / "closed_loop.md").read_text().split())
    found = json.loads((RESULTS / "closed_loop_ticks.json").read_text())
    suite, few = found["standard"], found["two_seeds"]
    whole, driving = suite["seconds"], suite["first_to_last_run_seconds"]
    assert f"{suite['ticks']:,} ticks in {suite['driven']} runs, took {driving:.0f} s" in page
    assert f"({suite['ticks'] / driving:.1f} a second), and {whole:.0f} s with" in page
    assert f"scores of all rows ({suite['ticks'] / whole:.1f})" in page
    before, after = (few["first_to_last_run_seconds"][name] for name in ("before", "after"))
    assert (
        f"({few['ticks']:,} ticks) took {after:.0f} s from first to last ({few['ticks'] / after:.1f} a second)" in page
    )
    assert f"exchange with the node, {before:.0f} s" in page
    for command in (found["command"], few["command"]):
        assert f"`{command}`" in page
