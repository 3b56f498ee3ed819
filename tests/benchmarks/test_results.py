"""Pages show the committed figures, and the committed figures are summaries."""

from __future__ import annotations

import json
from statistics import mean

import pytest

from benchmarks import RESULTS, ROOT
from benchmarks.studies import (
    closed_loop,
    lite_pruner,
    other_vlas,
    pruner_cost,
    summary,
    three_b,
    tiny_card,
    trigger,
)
from fastdrive_export.parity import REQUIRED


def test_the_card_of_models_tiny_holds_the_committed_figures():
    card = tiny_card.CARD.read_text(encoding="utf-8")
    assert tiny_card.complete(card) == card


def test_a_card_without_its_marks_is_not_written():
    with pytest.raises(ValueError, match="not found"):
        tiny_card.filled("# models/tiny", "figures", "text")


def test_the_page_of_vla_directories_holds_the_committed_figures_of_a_3b():
    page = three_b.PAGE.read_text(encoding="utf-8")
    assert three_b.complete(page) == page


def test_decision_0007_shows_the_table_of_the_committed_figures():
    page = (ROOT / "docs" / "decisions" / "0007-what-the-open-loop-table-depends-on.md").read_text()
    assert other_vlas.table() in page


def test_the_page_of_pruners_shows_the_table_of_the_committed_figures():
    assert other_vlas.pruner_table() in (ROOT / "docs" / "pruners.md").read_text()


@pytest.mark.parametrize(
    ("page", "vla"),
    [
        ("0010-a-vla-that-never-met-a-pruner", "vla_sizes"),
        ("0010-a-vla-that-never-met-a-pruner", "tiny"),
        ("0011-432-tokens-on-a-gpu", "vla_wide"),
    ],
)
def test_decisions_on_distilled_scores_show_the_committed_figures(page, vla):
    page = (ROOT / "docs" / "decisions" / f"{page}.md").read_text()
    files = [RESULTS / f"{name}_{vla}_val.json" for name in ("open_loop", "distil")]
    for row in (row for file in files for row in json.loads(file.read_text())["rows"] if row["tokens"]):
        cell = f"{row['l2_avg_to_t']['avg']:.3f} / {100 * row['collision_polygon']['avg']:.2f} / {row['refused']}"
        assert cell in page, row["pruner"]
    pairs = json.loads((RESULTS / f"distil_{vla}_val_paired.json").read_text())["comparisons"]
    l2, hits = ([row for row in pairs if row["figure"] == figure] for figure in ("l2_avg_to_t", "collision_polygon"))
    for metres, points in zip(l2, hits, strict=True):
        assert (metres["other"], metres["drop"]) == (points["other"], points["drop"])
        assert f"{_starred(metres, 1, 3)} / {_starred(points, 100, 2)}" in page, metres


def test_decision_0011_shows_the_committed_figures_of_even_spacing():
    page = (ROOT / "docs" / "decisions" / "0011-432-tokens-on-a-gpu.md").read_text()
    rows = json.loads((RESULTS / "distil_vla_wide_even_val.json").read_text())["rows"]
    for row in (row for row in rows if row["tokens"]):
        rates = [f"{100 * row[name]['avg']:.2f}" for name in ("collision_polygon", "collision_any")]
        assert " / ".join([f"{row['l2_avg_to_t']['avg']:.3f}", *rates, str(row["refused"])]) in page, row["pruner"]
        if row["tails"] is not None:
            tails, relative = row["tails"], row["relative_performance"]["l2_avg_to_t"]
            worst = f"{tails['worst5_loss']:.2f} / {100 * tails['new_collisions']:.1f}"
            assert f"{100 * relative:.1f} / {100 * tails['loss_90_samples']:.0f} / {worst}" in page, row["pruner"]
    found = json.loads((RESULTS / "distil_vla_wide_even_paired.json").read_text())
    assert found["pruner"] == "reconpruner-even75"
    l2, hits = (
        [one for one in found["comparisons"] if one["figure"] == name] for name in ("l2_avg_to_t", "collision_any")
    )
    for metres, points in zip(l2, hits, strict=True):
        assert (metres["other"], metres["drop"]) == (points["other"], points["drop"])
        assert f"{_starred(metres, 1, 3)} / {_starred(points, 100, 2)}" in page, metres


def test_decision_0012_shows_the_committed_figures_of_the_trigger():
    page = (ROOT / "docs" / "decisions" / "0012-no-trigger.md").read_text()
    for vla, label in (("tiny", "models/tiny"), ("vla_wide", "432 tokens")):
        rows = json.loads((RESULTS / f"trigger_{vla}_val.json").read_text())["rows"]
        assert trigger.table_of([trigger.TriggerFigures(**row) for row in rows], 0.2) in page
        for signal in (trigger.PREDICTED, trigger.CHANGE):
            found = [row for row in rows if (row["signal"], row["drop"]) == (signal, 0.75)]
            cells = [f"{row['l2']:.3f} / {row['l2_random']:.3f} / {row['l2_same_tokens']:.3f}" for row in found]
            assert f"| {label}, {signal} | {' | '.join(cells)} |" in page


def test_decision_0013_shows_the_committed_figures_of_lite_pruners():
    page = (ROOT / "docs" / "decisions" / "0013-a-lite-pruner.md").read_text()
    cost, found = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("pruner_cost", "lite_pruner"))
    for table in (pruner_cost.table(cost), *lite_pruner.tables(found)):
        assert table in page
    counted, timed = (
        {row["pruner"]: row for row in part["3B"]["rows"]}["lite 512"] for part in (cost["counted"], cost["timed"])
    )
    assert (
        f"takes {100 * counted['share']:.2f} % of a 3B's unpruned prefill ({100 * timed['share']:.2f} % timed)" in page
    )
    full, *lite = (row["auroc"] for row in found["scores"] if row["pruner"] != "linear")
    assert max(abs(auroc - full) for auroc in lite) < 0.0001
    assert all(row["interval_95"][0] <= 0 <= row["interval_95"][1] for row in found["comparisons"])  # as the page says


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
    assert "HD-Score" in closed_loop.SCORES.values() and len(found["families"]) == 14 * len(found["rows"])


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
    families = {
        each["row"]: each for each in found["families"] + found["pruners"]["families"] if each["family"] == "red-light"
    }
    counts = [round(16 * families[name]["collision_rate"]) for name in ("reconpruner@0.5", "none")]
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


def test_the_sentences_about_random_tokens_hold_the_committed_figures():
    page = " ".join(closed_loop.PAGE.read_text().split())
    found = json.loads(closed_loop.FILE.read_text())["pruners_two_runs"]
    assert f"`{found['command']}`" in page
    random = next(row for row in found["rows"] if row["row"] == "random@0.5")
    rates = (f"{100 * random[name]:.0f} %" for name in ("collision_rate", "off_road_rate"))
    assert "{} of the 28 runs collide and {} leave the road".format(*rates) in page
    own = {(each["row"], each["against"]): each["differences"]["epdms_style"] for each in found["comparisons"]}
    lower, above = own["random@0.5", "none"], own["reconpruner@0.5", "random@0.5"]
    low, high = lower["ci95"]
    assert f"score is {-lower['difference']:.2f} lower ({-high:.2f} to {-low:.2f})" in page
    low, high = above["ci95"]
    assert f"in these runs is {above['difference']:.2f} above it ({low:.2f} to {high:.2f})" in page


def test_the_closed_loops_page_shows_whether_planners_look():
    page = (ROOT / "docs" / "closed_loop.md").read_text()
    for row in json.loads((RESULTS / "closed_loop_looking.json").read_text())["summary"]:
        cells = (f"{row[name]:.1f}" for name in ("with_m", "without_m", "expert_m"))
        assert f"| {row['vla']} | {' | '.join(cells)} |" in page


def test_the_closed_loops_page_shows_its_ticks_a_second():
    page = " ".join((ROOT / "docs" / "closed_loop.md").read_text().split())
    one, two = json.loads((RESULTS / "closed_loop_ticks.json").read_text())["workers"].values()
    shown = [f"{each['seconds']:.0f} s" for each in (one, two)]
    rates = [f"{each['ticks'] / each['seconds']:.1f}" for each in (one, two)]
    assert f"{one['ticks']} ticks of `models/tiny` in {one['driven']} runs took {shown[0]}" in page
    assert f"({rates[0]} a second) and {shown[1]} with two ({rates[1]})" in page


def _starred(row: dict, scale: float, digits: int) -> str:
    """A difference with its sign, and a star where its interval is clear of zero."""
    low, high = row["interval_95"]
    rounded = round(scale * row["difference"], digits)
    return (f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}") + ("" if low <= 0 <= high else "*")


def test_the_latency_page_shows_the_committed_figures():
    page = (ROOT / "docs" / "latency.md").read_text()
    scenes = json.loads((RESULTS / "gpu_models_3b.json").read_text())["sizes"]["3b"]["scenes"]
    one, six = scenes["one_image_1596x1596"], scenes["six_cameras_672x392"]

    def cells(stage, name):
        return " | ".join(f"{scene['stages'][stage][name]['median_ms']:.1f}" for scene in (one, six))

    shown = {
        "transformers, all tokens": "transformers",
        "ours, all tokens": "ours_drop_0",
        "ours, drop 0.75": "ours_drop_0.75",
        "+ drafts": "ours_drop_0.75_drafts",
        "+ CUDA graphs, no drafts": "ours_drop_0.75_graphs",
    }
    for label, name in shown.items():
        assert f"| {label} | {cells('end_to_end', name)} |" in page
    assert f"**{cells('end_to_end', 'ours_drop_0.75_drafts_graphs').replace(' | ', '** | **')}**" in page
    for scene, tokens in ((one, 3249), (six, 2016)):
        times = {name: entry["median_ms"] for name, entry in scene["stages"]["prefill"].items()}
        row = " | ".join(f"{times[name]:.1f}" for name in ("transformers", "ours_drop_0", "ours_drop_0.75"))
        assert f"| prefill, {tokens} tokens | {row} |" in page
    for drop, row in json.loads((RESULTS / "drafts.json").read_text())["rows"].items():
        assert (
            f"| {drop.split()[1]} | {row['answers']} | {row['equal_to_plain']} | {row['forwards_mean']:.2f} |" in page
        )


def test_the_latency_page_shows_the_figures_of_the_bench_and_of_the_deadlines():
    page = (ROOT / "docs" / "latency.md").read_text()
    figures = json.loads((RESULTS / "bench_tiny.json").read_text())
    for stage in ("encode", "prefill", "decode", "camera_to_plan"):
        times = figures["stages"][stage]
        assert f"| {stage.replace('_', ' ')} | {times['ours_ms']:.1f} | {times['transformers_ms']:.1f} |" in page
    assert f"From camera to plan {figures['speedup_end_to_end']:.1f} times faster" in page
    for factor, row in json.loads((RESULTS / "deadline.json").read_text())["deadlines"].items():
        loaded = row["loaded"]
        shown = f"{loaded['planned']} | {loaded['met']} | {loaded['met_or_dropped']:.1%}"
        assert f"| {factor} | {row['deadline_ms']:.0f} | {row['before']['planned']} | {shown} |" in page


def test_the_latency_page_shows_the_figures_with_engines():
    page = " ".join((ROOT / "docs" / "latency.md").read_text().split())
    figures = json.loads((RESULTS / "bench_tiny_engines.json").read_text())
    names = {"encode": "encode and score", "prefill": "prefill", "decode": "decode", "camera_to_plan": "camera to plan"}
    rows = {label: figures["stages"][stage] for stage, label in names.items()}
    for label, times in (rows | {"camera to plan, paced at 2 Hz": figures["paced"]}).items():
        assert f"| {label} | {times['ours_ms']:.1f} | {times['transformers_ms']:.1f} |" in page
    paced = figures["paced"]["transformers_ms"] / figures["paced"]["ours_ms"]
    equal, of = figures["equal_answers"]
    ratios = f"{figures['speedup_end_to_end']:.1f} times faster from camera to plan ({paced:.1f} paced)"
    assert f"{ratios}, {figures['speedup_decode']:.1f} in decoding, {equal} of {of} answers equal" in page
    assert f"the {figures['forwards_per_answer']:.1f} forwards" in page
    for name, row in json.loads((RESULTS / "engine_threads.json").read_text())["rows"].items():
        shown = f"| {name.removesuffix(' (as built)')} | {row['median_ms']:.1f} |"
        assert shown in page.replace("**", "")
    for file in ("node_and_bench.json", "node_and_bench_torch.json", "node_and_bench_two_threads.json"):
        node = json.loads((RESULTS / file).read_text())
        *before, last = (f"{each['ratio']:.2f}" for each in node["rounds"])
        assert f"{node['median_ratio']:.2f} times" in page and f"{', '.join(before)} and {last})" in page


def test_the_latency_page_shows_what_a_plan_costs_and_what_comes_before_it():
    page = " ".join((ROOT / "docs" / "latency.md").read_text().split())
    labels = {
        "kept_tokens": "kept visual token",
        "cameras": "camera of 32 tokens, none dropped",
        "visual_tokens": "visual token of six cameras, half of them kept",
        "answer_tokens": "token of the answer",
    }
    for name, curve in json.loads((RESULTS / "curves_tiny.json").read_text())["curves"].items():
        cells = page.split(f"| {labels[name]} | ")[1].split(" |")[:3]
        for cell, stage in zip(cells, ("encode", "prefill", "decode"), strict=True):
            digits = len(cell.partition(".")[2])
            assert float(cell) == pytest.approx(curve["ms_for_one_more"][stage], abs=0.5 * 10**-digits + 1e-9)
    for label, row in json.loads((RESULTS / "images.json").read_text())["rows"].items():
        median, part = f"{row['median_ms']:.1f}", f"{row['preprocess_median_ms']:.1f}"
        assert f"| {label.replace('scaled, on', 'scaled while decoded, on two')} | {median} | {part} |" in page
    sets = json.loads((RESULTS / "reception.json").read_text())
    times = sets["complete_ms"]
    assert f"{sets['planned_sets']} of {sets['sent_sets']} sets arrived" in page
    assert f"{times['p50']:.1f} ms (p50), {times['p99']:.1f} (p99). {sets['first_to_last_image_ms_p50']:.1f} ms" in page


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_page_of_engines_shows_the_figures_of_the_wrong_plans(precision):
    page = (ROOT / "docs" / "export.md").read_text()
    figures = json.loads((RESULTS / f"tensorrt_tiny_h100_{precision}.json").read_text())
    apart = figures["against_torch"]
    times = (figures[name]["gpu"]["median_ms"] for name in ("latency", "latency_cuda_graph"))
    cells = [
        *(precision, f"{figures['build_s']:.1f}", *(f"{time:.2f}" for time in times)),
        *(f"{apart['cosine']:.4f}", f"{apart['cosine_min']:.3f}", f"{apart['score_max_abs_error']:.2f}"),
        " / ".join(f"{overlap:.3f}" for overlap in apart["kept_overlap"].values()),
    ]
    assert f"| {' | '.join(cells)} |" in page
    assert f"standard deviation of the scores is {apart['score_std']:.2f}" in page
    least_cosine, least_overlap = REQUIRED[precision]
    assert apart["cosine"] < least_cosine and min(apart["kept_overlap"].values()) < least_overlap, "verify refuses it"


def test_the_decision_on_the_planners_process_shows_its_figures():
    page = (ROOT / "docs" / "decisions" / "0009-the-planners-process.md").read_text()
    stages = ("load", "preprocess", "encode", "prefill", "decode", "total", "planning", "latency")
    for name, row in json.loads((RESULTS / "planner_process.json").read_text())["median_ratio"].items():
        assert f"| {name} | {' | '.join(f'{row[stage]:.2f}' for stage in stages)} |" in page


def test_the_page_on_latency_shows_what_decoding_on_arrival_saves():
    results = json.loads((RESULTS / "decode_on_arrival.json").read_text())
    page = " ".join((ROOT / "docs" / "latency.md").read_text().split())
    names = "load", "total", "planning", "latency"
    for cameras, figures in (("one after the other", results["nuscenes"]), ("at once", results["at once"])):
        for way, row in figures["median_ms"].items():
            assert f"| {cameras} | {way} | {' | '.join(f'{row[name]:.1f}' for name in names)} |" in page
        ratios = figures["median_ratio"]
        assert f"| | ratio | {' | '.join(f'{ratios[name]:.2f}' for name in names)} |" in page
        assert ", ".join(f"{each:.2f}" for each in figures["ratios"]["latency"]) in page


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.name)
def test_a_committed_result_is_a_summary(file):
    text = file.read_text()
    assert len(text.splitlines()) <= 250 and len(text) < 100_000
    assert summary.to_text(summary.summarize(json.loads(text))) + "\n" == text


def test_a_summary_keeps_rows_and_rounds_them(tmp_path):
    row = {"pruner": "none", "l2_avg_to_t": {"avg": 0.46512034702484}, "l2_at_t": {"avg": 1.0}}
    compared = [{"figure": "l2_avg_to_t", "difference": 1 / 3}, {"figure": "intersection", "difference": 0.1}]
    report = {"dataset": "data/sim_test", "rows": [row, row], "comparisons": compared}
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report))
    summary.main([str(file)])
    text = file.read_text()
    short = {"pruner": "none", "l2_avg_to_t": {"avg": 0.46512}}
    assert json.loads(text) == {
        "dataset": "data/sim_test",
        "rows": [short, short],
        "comparisons": [{"figure": "l2_avg_to_t", "difference": 0.333333}],
    }
    assert text.splitlines().count("    " + json.dumps(short)) == 1, "each row has a line of its own"
