"""The page of an evaluation: its tables, statements and files, on made-up runs whose figures are known."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from fastdrive_node.cli import main
from fastdrive_training.evaluation import RowKey
from fastdrive_training.evaluation import run as evaluation
from fastdrive_training.reports.open_loop.curves import _apart
from fastdrive_training.reports.open_loop.figures import make_tables
from fastdrive_training.reports.open_loop.labels import MINUS, TIMES
from fastdrive_training.reports.open_loop.ranking import statements, summary
from fastdrive_training.reports.open_loop.run_folder import read_run
from fastdrive_training.reports.open_loop.tables import HEADS, cost_rows
from fastdrive_training.reports.pruner_run.findings import Level
from fastdrive_training.vla.tiny_model import build_tiny_vla
from tests.generation import SHALLOW
from tests.training.evaluation.open_loop_runs import ROWS, MadeUp, edit_json, write_run
from tests.training.reports.report_pages import Page, check_references, check_stands_alone, evaluate_report
from tests.training.tiny_nuscenes import write_dataset


@pytest.fixture(scope="module")
def vla_dir(tmp_path_factory):
    return build_tiny_vla(tmp_path_factory.mktemp("vla") / "tiny", seed=0, size=SHALLOW)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "d", scenes=2, keyframes=14)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, root, vla_dir):
    return write_run(tmp_path_factory.mktemp("runs") / "seed1", root, vla_dir)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def page(folder, vla_dir) -> Page:
    return evaluate_report(folder, vla_dir, "--json", folder / "figures.json")


@pytest.fixture(scope="module")
def figures(page, folder) -> dict:
    return json.loads((folder / "figures.json").read_text())


def line(figures: dict, pruner: str, drop: float = 0.75) -> dict:
    return next(one for one in figures["lines"] if (one["pruner"], one["drop"]) == (pruner, drop))


def test_the_page_stands_alone_and_stays_small(page, folder):
    check_stands_alone(page, ("data:image/jpeg;base64,", "data:image/png;base64,"))
    assert (folder / "report.html").stat().st_size < 3e6


def test_ids_differ_and_references_have_their_targets(page):
    check_references(page)


def test_figures_are_those_of_the_evaluation(folder, figures):
    run = read_run(folder)
    key = RowKey("reconpruner", 0.75)
    row = evaluation.row_figures(key, run.tables[key], {})
    found = line(figures, "reconpruner")
    assert found["l2_avg_to_t"]["avg"] == row["l2_avg_to_t"]["avg"]
    assert found["l2_avg_to_t"]["interval_95"] == row["interval_95"]["l2_avg_to_t"]
    assert line(figures, "none", 0.0)["l2_avg_to_t"]["avg"] == pytest.approx(0.40)
    assert found["l2_avg_to_t"]["relative_performance"] == pytest.approx(0.40 / found["l2_avg_to_t"]["avg"])
    assert found["prefill_ms"] == 2.0


def test_seeds_are_averaged_and_refused_answers_counted(figures):
    random = line(figures, "random")
    assert random["seeds"] == 2 and random["l2_avg_to_t"]["avg"] == pytest.approx(1.0, abs=0.01)
    low, high = random["l2_avg_to_t"]["interval_95"]
    assert low < random["l2_avg_to_t"]["avg"] < high < 1.05  # of the mean over seeds, not of one of them
    assert line(figures, "fastv")["refused"] == 1


def test_any_collision_and_relative_performance_are_on_the_page(page, folder, figures):
    random = line(figures, "random")
    assert random["collision_any"]["avg"] == pytest.approx(8 / figures["samples"])
    assert random["collision_any"]["relative_performance"] == 0 and "relative_performance" in figures["rows"][0]
    text = (folder / "report.md").read_text()
    relative = f"{100 * line(figures, 'reconpruner')['l2_avg_to_t']['relative_performance']:.1f} %"
    assert "any collision [%]" in text and relative in text and relative in page.text


def test_neither_ground_truth_nor_variants_are_best(figures):
    assert line(figures, "oracle")["l2_avg_to_t"]["avg"] < line(figures, "reconpruner")["l2_avg_to_t"]["avg"]
    best = {one["pruner"] for one in figures["lines"] if one.get("l2_avg_to_t", {}).get("best")}
    assert best == {"reconpruner"}
    adaptive = line(figures, "reconpruner-adaptive")
    assert adaptive["tokens"] == pytest.approx(39.5)  # a mean, for its number varies


def test_best_figures_are_bold(page, folder):
    text = (folder / "report.html").read_text()
    row = re.search(r'<tr class="own"><th scope="row">ReconPruner.*?</tr>', text, re.S).group()
    value = re.search(r"<td><b>([\d.]+)</b>", row).group(1)
    assert (
        value == f"{line(json.loads((folder / 'figures.json').read_text()), 'reconpruner')['l2_avg_to_t']['avg']:.3f}"
    )
    assert f"**{value}**" in (folder / "report.md").read_text()


def stated(tmp_path, root, vla_dir, *rows: MadeUp, figure="l2_avg_to_t"):
    found = statements(make_tables(read_run(write_run(tmp_path / "run", root, vla_dir, rows))))
    return found, next((one for one in found if one.figure == figure), None)


NONE = MadeUp("none", 0.0, 0.4, kept=192)


def test_a_first_place_is_said(figures):
    l2, collision, _ = figures["statements"]
    assert l2["first"] == ["reconpruner"] and l2["reconpruner_first"] and l2["within_interval_of_first"] is None
    assert l2["against_random"] == "better" and l2["against_oracle"] == "worse"
    assert collision["first"] == ["reconpruner"] and collision["against_oracle"] == "level"
    assert f"48 tokens ({MINUS}75 %): ReconPruner is first with" in l2["text"]


def test_a_place_within_the_interval_of_first_is_said(tmp_path, root, vla_dir):
    recon = MadeUp("reconpruner", 0.5, 0.50, wobble_m=0.1)
    rows = (NONE, MadeUp("random", 0.5, 0.9), MadeUp("fastv", 0.5, 0.49), recon)
    found, one = stated(tmp_path, root, vla_dir, *rows)
    assert one.first == ("fastv",) and not one.is_first and one.within
    assert "within the paired interval of first" in one.text and one.level is Level.GOOD
    assert summary(found)[1] == "ReconPruner is first in 2 of 3 comparisons, level with first in 1 more"


def test_a_place_behind_first_is_said(tmp_path, root, vla_dir):
    recon = MadeUp("reconpruner", 0.5, 0.50, wobble_m=0.02)
    found, one = stated(tmp_path, root, vla_dir, NONE, MadeUp("fastv", 0.5, 0.3), MadeUp("random", 0.5, 0.9), recon)
    assert one.within is False and one.level is Level.WATCH and "behind first by more than" in one.text
    assert summary(found)[0] is Level.WATCH


def test_being_worse_than_chance_is_bad(tmp_path, root, vla_dir):
    found, one = stated(tmp_path, root, vla_dir, MadeUp("random", 0.5, 0.3), MadeUp("reconpruner", 0.5, 0.5))
    assert one.against_random == "worse" and one.level is Level.BAD and "Worse than random" in one.text
    assert summary(found)[0] is Level.BAD and one.against_oracle is None


def test_equal_figures_share_the_first_place(tmp_path, root, vla_dir):
    rows = (MadeUp("random", 0.5, 0.9, hits=4), MadeUp("fastv", 0.5, 0.7), MadeUp("reconpruner", 0.5, 0.5))
    _, one = stated(tmp_path, root, vla_dir, *rows, figure="collision_polygon")
    assert set(one.first) == {"fastv", "reconpruner"} and one.is_first and ", as fastv." in one.text


@pytest.mark.usefixtures("undrawn")
def test_a_run_without_reconpruner_says_so(tmp_path, root, vla_dir):
    run = write_run(tmp_path / "run", root, vla_dir, (NONE, MadeUp("random", 0.5, 0.9), MadeUp("fastv", 0.5, 0.6)))
    page = evaluate_report(run, vla_dir)
    assert "ReconPruner was not run" in page.text and f"Worst samples of random at {MINUS}50 %" in page.text


def test_a_run_of_none_alone_has_a_page(tmp_path, root, vla_dir):
    page = evaluate_report(write_run(tmp_path / "run", root, vla_dir, (NONE,)), vla_dir)
    assert "No row has a ratio" in page.text and "Fewer than two pruners" in page.text and not page.all("img")


def test_the_page_has_every_part(page):
    for phrase in (
        "Table 1",
        "Table 3",
        "Table 4",
        f"Worst samples of ReconPruner at {MINUS}75 %",
        "Overlap of kept tokens",
    ):
        assert phrase in page.text, phrase
    charts = [attributes for attributes in page.all("svg") if attributes.get("role") == "img"]
    assert len([one for one in charts if (one["aria-labelledby"]).startswith(("curve", "paired"))]) == 6


def test_the_time_before_the_first_token_is_pruner_and_prefill(folder):
    rows = {row.pruner: row.cells for row in cost_rows(make_tables(read_run(folder)))}
    both = HEADS.index("both")
    assert rows["none"][both].text == "5" and rows["none"][both].times == ""
    assert rows["reconpruner"][both].text == "2.5" and rows["reconpruner"][both].times == f"2.00{TIMES}"


@pytest.mark.usefixtures("undrawn")
def test_efficiency_is_told_beside_none(page, copy, vla_dir):
    assert f"2.00{TIMES}" in page.text
    (copy / "efficiency.json").unlink()
    assert "no efficiency.json" in evaluate_report(copy, vla_dir).text


def test_names_on_a_chart_keep_their_distance_and_stay_near_their_lines():
    levels = _apart([0.1, 0.1, 0.11, 0.5, 0.98, 0.99, 1.0])
    assert min(np.diff(levels)) > 0.04 and max(levels) <= 1.0 + 1e-9
    assert levels[3] == 0.5 and np.mean(levels[:3]) == pytest.approx(np.mean([0.1, 0.1, 0.11]))


ATTACK = '"><script>alert(1)</script><img src=x onerror=alert(1)>'


def rewrite(folder, **columns):
    """Put constant values into columns of samples.parquet."""
    table = pq.read_table(folder / "samples.parquet")
    for name, value in columns.items():
        field = table.schema.field(name)
        place = table.schema.names.index(name)
        array = value(table.column(name)) if callable(value) else pa.array([value] * len(table), field.type)
        table = table.set_column(place, field, array)
    pq.write_table(table, folder / "samples.parquet")


def test_hostile_text_stays_text(tmp_path, root, vla_dir):
    marks = "\x00\x1b\u202e|`*_"
    rows = (*ROWS, MadeUp("vispruner", 0.75, 0.8, refuse=(0, 2), reason=ATTACK + marks))
    run = write_run(tmp_path / "run", root, vla_dir, rows)
    rewrite(run, pruner=lambda column: pc.replace_substring(column, "vispruner", ATTACK))
    page = evaluate_report(run, vla_dir)
    assert not page.all("script") and "alert(1)" in page.text
    assert all((one.get("src") or "data:").startswith("data:") for one in page.all("img"))
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    markdown = (run / "report.md").read_text()
    assert "<script>" not in markdown and "<img" not in markdown and "\x1b" not in markdown
    widths = {
        len(re.findall(r"(?<!\\)\|", row)) for row in markdown.splitlines() if "alert" in row and "no plan" in row
    }
    assert len(widths) <= 1  # a bar in a reason starts no new cell


def no_parquet(folder):
    (folder / "samples.parquet").unlink()


def cut_off(folder):
    path = folder / "samples.parquet"
    path.write_bytes(path.read_bytes()[:-40])


def other_columns(folder):
    table = pq.read_table(folder / "samples.parquet")
    pq.write_table(table.drop_columns(["kept"]), folder / "samples.parquet")


def no_lines(folder):
    pq.write_table(pq.read_table(folder / "samples.parquet").slice(0, 0), folder / "samples.parquet")


def lost_line(folder):
    pq.write_table(pq.read_table(folder / "samples.parquet").slice(1), folder / "samples.parquet")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_parquet, "samples.parquet: missing; the evaluation has not finished; call `fastdrive evaluate"),
        (lambda folder: (no_parquet(folder), shutil.rmtree(folder / "parts")), "no folder of an evaluation"),
        (cut_off, "samples.parquet: damaged"),
        (other_columns, "samples.parquet: its columns are not those"),
        (no_lines, "samples.parquet: holds no line"),
        (lost_line, "samples.parquet: row random-0.75-0: has other samples than the first row"),
        (lambda folder: rewrite(folder, drop=7.0), "drop: 7.0 is not in [0, 0.95]"),
        (lambda folder: rewrite(folder, pruner=None), "samples.parquet: a line belongs to no row"),
        (lambda folder: rewrite(folder, scene=None), "a line without sample, scene or refused"),
        (lambda folder: rewrite(folder, errors_m=[1.0, 2.0]), "errors_m is not 6 values a sample"),
        (lambda folder: rewrite(folder, errors_m=[float("nan")] * 6), "errors_m is not 6 values a sample"),
        (lambda folder: rewrite(folder, errors_m=None), "an answer that was not refused needs 6 points"),
        (lambda folder: rewrite(folder, plan_m=None), "an answer that was not refused needs 6 points"),
        (lambda folder: rewrite(folder, plan_m=[[0.0]] * 6), "an answer that was not refused needs 6 points"),
        (lambda folder: rewrite(folder, plan_m=[[0.0, float("inf")]] * 6), "an answer that was not refused"),
        (lambda folder: rewrite(folder, kept=[5, 9999]), "kept holds tokens that the VLA does not have"),
        (lambda folder: rewrite(folder, kept=[-1]), "kept holds tokens that the VLA does not have"),
        (lambda folder: rewrite(folder, sample="x"), "samples.parquet: its samples are not those of run.json"),
        (lambda folder: (folder / "run.json").unlink(), "run.json: missing; make the evaluation again"),
        (lambda folder: (folder / "run.json").write_text("{"), "run.json: not readable as JSON"),
        (lambda folder: (folder / "run.json").write_text("[]"), "run.json: not a JSON object"),
        (lambda folder: (folder / "run.json").write_text("{}"), "run.json: the run was made with another VLA"),
        (lambda folder: (folder / "efficiency.json").write_text("{"), "efficiency.json: not readable as JSON"),
        (lambda folder: (folder / "efficiency.json").write_text('{"a": 1}'), "efficiency.json: no object of figures"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(copy, vla_dir, capsys, damage, message):
    damage(copy)
    (copy / "report.html").unlink(missing_ok=True)
    assert main(["evaluate-report", str(copy), "--vla", str(vla_dir)]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (copy / "report.html").exists()


@pytest.mark.usefixtures("undrawn")
def test_figures_that_are_no_numbers_are_left_out(copy, vla_dir):
    def spoil(content):
        content["none-0"] |= {"flops": "many", "prefill_ms": None, "tokens_by_layer": ["a"], "peak_memory_mb": 1e400}

    edit_json(copy / "efficiency.json", spoil)
    evaluate_report(copy, vla_dir, "--json", copy / "f.json")
    whole = line(json.loads((copy / "f.json").read_text()), "none", 0.0)
    assert "flops" not in whole and "peak_memory_mb" not in whole and whole["pruner_ms"] == 1.0


def test_another_vla_is_refused(folder, tmp_path, capsys):
    other = build_tiny_vla(tmp_path / "other", seed=1, size=SHALLOW)
    assert main(["evaluate-report", str(folder), "--vla", str(other)]) == 1
    assert "give the run's own with --vla DIR" in capsys.readouterr().err
    assert main(["evaluate-report", str(folder), "--vla", str(tmp_path / "nowhere")]) == 1
    assert "no such VLA directory" in capsys.readouterr().err


def test_a_ratio_that_was_not_run_is_refused(folder, vla_dir, capsys):
    assert main(["evaluate-report", str(folder), "--vla", str(vla_dir), "--drop", "0.3"]) == 2
    assert "--drop 0.3" in capsys.readouterr().err
    assert main(["evaluate-report", str(folder), "--vla", str(vla_dir), "--worst", "-1"]) == 2
    assert "--worst -1: must be 0 or more" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_the_command_writes_where_it_is_told(folder, vla_dir, tmp_path, capsys):
    asked = ["evaluate-report", str(folder), "--vla", str(vla_dir), "--worst", "1", "--out"]
    html, markdown = tmp_path / "a" / "x.html", tmp_path / "b" / "y.md"
    assert main([*asked, str(html), "--markdown", str(markdown)]) == 0
    assert html.read_text().startswith("<!DOCTYPE html>") and markdown.read_text().startswith("# Open-loop evaluation")
    assert main([*asked, str(html), "--markdown", str(html)]) == 1
    assert "name the same file" in capsys.readouterr().err
    assert main([*asked, str(tmp_path)]) == 1
    assert "give another file with --out" in capsys.readouterr().err
    assert main([*asked, str(html), "--markdown", str(tmp_path)]) == 1
    assert "give another file with --markdown" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["evaluate-report", "--help"])
    assert caught.value.code == 0 and "fastdrive evaluate-report runs/open_loop" in capsys.readouterr().out
    assert main(["evaluate-report", str(tmp_path / "nothing")]) == 1
    assert "nothing: no such folder" in capsys.readouterr().err


def test_the_same_run_gives_the_same_page(folder, page, vla_dir, tmp_path):
    again = tmp_path / "again.html"
    assert main(["evaluate-report", str(folder), "--vla", str(vla_dir), "--worst", "2", "--out", str(again)]) == 0
    assert again.read_text() == (folder / "report.html").read_text()
