"""Pages show the committed figures, and the committed figures are summaries."""

from __future__ import annotations

import json

import pytest

from benchmarks import RESULTS, ROOT
from benchmarks.studies import (
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


def _starred(row: dict, scale: float, digits: int) -> str:
    """A difference with its sign, and a star where its interval is clear of zero."""
    low, high = row["interval_95"]
    rounded = round(scale * row["difference"], digits)
    return (f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}") + ("" if low <= 0 <= high else "*")


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
