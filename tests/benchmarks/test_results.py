"""Pages show the committed figures, and the committed figures are summaries."""

from __future__ import annotations

import json

import pytest

from benchmarks import RESULTS, ROOT
from benchmarks.studies import other_vlas, summary, three_b, tiny_card


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


@pytest.mark.parametrize("vla", ["vla_sizes", "tiny"])
def test_decision_0010_shows_the_committed_figures(vla):
    page = (ROOT / "docs" / "decisions" / "0010-a-vla-that-never-met-a-pruner.md").read_text()
    files = [RESULTS / f"{name}_{vla}_val.json" for name in ("open_loop", "distil")]
    for row in (row for file in files for row in json.loads(file.read_text())["rows"] if row["tokens"]):
        cell = f"{row['l2_avg_to_t']['avg']:.3f} / {100 * row['collision_polygon']['avg']:.2f} / {row['refused']}"
        assert cell in page, row["pruner"]
    pairs = json.loads((RESULTS / f"distil_{vla}_val_paired.json").read_text())["comparisons"]
    l2, hits = ([row for row in pairs if row["figure"] == figure] for figure in ("l2_avg_to_t", "collision_polygon"))
    for metres, points in zip(l2, hits, strict=True):
        assert (metres["other"], metres["drop"]) == (points["other"], points["drop"])
        assert f"{_starred(metres, 1, 3)} / {_starred(points, 100, 2)}" in page, metres


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


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.name)
def test_a_committed_result_is_a_summary(file):
    text = file.read_text()
    assert len(text.splitlines()) <= 200 and len(text) < 100_000
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
