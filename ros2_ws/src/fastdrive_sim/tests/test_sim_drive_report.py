"""The page of a drive, and a drive from its options to its files, with the rows that need no node."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from base64 import b64decode
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from sim_runs import ego, hit, make_map, make_run, parked, steady, straight_plan

from fastdrive_sim.drive.command import DriveOptions, drive_suite
from fastdrive_sim.drive.report import page, write_report
from fastdrive_sim.drive.report.player import MAX_RUNS, UNKNOWN, chosen_runs, run_payload
from fastdrive_sim.drive.report.severity import fault_lines, severity_charts
from fastdrive_sim.drive.report.tables import difference_table, heat_maps, score_table, term_table
from fastdrive_sim.drive.storage import load_run, save_run
from fastdrive_sim.drive.summary import ScoredRun, summarize
from fastdrive_sim.drive.types import DriveRow, RunRecord

NONE, PRUNED, FAULTED = DriveRow("none"), DriveRow("reconpruner", 0.5), DriveRow("reconpruner", 0.5, "frozen", 0.5)


MASK = np.arange(20).reshape(4, 5) % 2 == 0
ALL = np.ones((4, 5), bool)


@cache
def records() -> list[RunRecord]:
    """Unpruned drives well, pruned has one collision in four, and two under a fault, without its kept tokens."""
    crash = (hit(parked(7.0), ego(4.0)),)
    plan = replace(straight_plan(ego(0.0), 0.0, 5.0), kept_tokens=20, total_tokens=40)
    kept = {
        NONE: {"kept": {"CAM_FRONT": ALL, "CAM_BACK": ALL}, "kept_tokens": 40},
        PRUNED: {"kept": {"CAM_FRONT": MASK, "CAM_BACK": ~MASK}},
        FAULTED: {},
    }
    calm = make_run(steady(20.0), map_=make_map(obstacles=(parked(150.0),)))
    bad = replace(make_run(steady(2.0)), collisions=crash, ending="collision")
    calm, bad = (replace(run, steps=tuple(replace(step, plan=0) for step in run.steps)) for run in (calm, bad))
    scenarios = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    rows = {NONE: 4, PRUNED: 3, FAULTED: 2}  # calm runs
    return [
        replace(calm if index < good else bad, row=row, family=family, seed=seed, plans=(replace(plan, **kept[row]),))
        for row, good in rows.items()
        for index, (family, seed) in enumerate(scenarios)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A drive's folder with its page."""
    out = tmp_path_factory.mktemp("drive")
    for run in records():
        path = out / "runs" / run.row.name / f"{run.family}-{run.seed}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_run(path, run)
    figures = {**summarize(records()), "settings": {"vla": "<tiny>"}, "deterministic_hash": "f" * 64}
    (out / "summary.json").write_text(json.dumps(figures))
    write_report(out / "report.html", figures, out)
    return out


def test_the_page_needs_no_network_and_is_well_formed(folder):
    text = (folder / "report.html").read_text()
    assert not re.search(r"https?://|@import|url\(|<link|<script src|<img", text)
    assert "<dd>&lt;tiny&gt;</dd>" in text

    class Balance(HTMLParser):
        def __init__(self):
            super().__init__()
            self.opened: list[str] = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "input", "line", "circle", "polyline"):
                self.opened.append(tag)

        def handle_endtag(self, tag):
            if tag not in ("line", "circle", "polyline") or tag in self.opened[-1:]:
                assert self.opened.pop() == tag

    parser = Balance()
    parser.feed(text)
    assert parser.opened == []


def embedded(text: str) -> list[dict]:
    found = re.search(r'<script type="application/json" id="runs">(.*?)</script>', text, re.S)
    assert found is not None
    return json.loads(found[1])


def test_the_page_plays_the_worst_runs_with_the_way_of_the_unpruned_row(folder):
    runs = embedded((folder / "report.html").read_text())
    assert (runs[0]["row"], runs[0]["family"], runs[0]["ending"]) == ("reconpruner@0.5", "b", "collision")
    assert runs[0]["scores"]["EPDMS-style"] == 0.0
    assert [event[1] for event in runs[0]["events"]] == ["collision"]
    assert len(runs[0]["ghost"]) == 201
    assert runs[0]["plans"][0][3:5] == [20, 40]
    assert next(run for run in runs if run["row"] == "none")["ghost"] == []


def test_the_page_has_the_kept_tokens_of_each_plan(folder):
    runs = {(run["row"], run["family"], run["seed"]): run for run in embedded((folder / "report.html").read_text())}
    pruned, full, old = (runs[row.name, "a", 0] for row in (PRUNED, NONE, FAULTED))
    assert pruned["cameras"] == [[["front", 4, 5, 0], ["back", 4, 5, 20]]]
    bits = np.unpackbits(np.frombuffer(b64decode(pruned["plans"][0][6]), np.uint8))[:40].reshape(2, 4, 5)
    assert (bits.astype(bool) == [MASK, ~MASK]).all()
    assert (full["plans"][0][6], old["plans"][0][6], old["cameras"]) == (1, 0, [])
    assert (pruned["unknown"], old["unknown"]) == ("", UNKNOWN)


def test_six_surround_cameras_are_drawn_as_they_look():
    names = ("FRONT", "FRONT_RIGHT", "BACK_RIGHT", "BACK", "BACK_LEFT", "FRONT_LEFT")
    plan = replace(
        records()[0].plans[0], kept={f"CAM_{name}": MASK for name in names}, kept_tokens=60, total_tokens=120
    )
    run = replace(records()[0], plans=(plan,))
    rows = run_payload(run, summarize([run])["runs"][0])["cameras"]
    assert [[(title, first) for title, *_, first in row] for row in rows] == [
        [("front left", 100), ("front", 0), ("front right", 20)],
        [("back left", 80), ("back", 60), ("back right", 40)],
    ]


def test_damaged_kept_tokens_give_a_page_without_them_that_says_so(folder, tmp_path, capsys):
    out = shutil.copytree(folder, tmp_path / "drive")
    damaged = out / "runs" / PRUNED.name / "a-0.jsonl"
    damaged.write_text(re.sub(r'("type":"kept".*"plans":\[")...', r"\1", damaged.read_text()))
    write_report(out / "report.html", json.loads((out / "summary.json").read_text()), out)
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"{damaged}: its kept tokens are damaged (")
    runs = {(run["row"], run["family"]): run for run in embedded((out / "report.html").read_text()) if run["seed"] == 0}
    assert runs[PRUNED.name, "a"]["unknown"] == told
    assert (runs[PRUNED.name, "a"]["cameras"], runs[PRUNED.name, "a"]["plans"][0][6]) == ([], 0)


def test_text_in_a_run_cannot_end_the_script():
    run = replace(records()[0], ending="failed", reason="</script><b>")
    figures = summarize([run])
    text = page(figures, [{"row": "none", "family": "a", "seed": 0, **run_payload(run, figures["runs"][0])}])
    assert "</script><b>" not in text
    assert embedded(text)[0]["reason"] == "</script><b>"


def test_a_score_that_is_not_known_is_left_out_of_the_player_and_a_dash_in_the_table():
    run = records()[0]  # it has one plan, so EC is not rated
    figures = summarize([run])
    assert figures["rows"][0]["ec"] is None
    scores = run_payload(run, figures["runs"][0])["scores"]
    assert "EC" not in scores and scores["HC"] == 1.0
    assert "<td>-</td>" in term_table(figures)


def test_a_page_has_a_limited_number_of_runs():
    one = ScoredRun.of(records()[0])
    many = [replace(one, family=f"f{i}") for i in range(MAX_RUNS + 9)]
    assert len(chosen_runs(summarize(many))) == MAX_RUNS


@pytest.fixture(scope="module")
def figures() -> dict:
    return summarize(records())


def test_tables_show_figures_with_their_intervals_and_mark_what_is_surely_worse(figures):
    assert "<td>25.0 %<small>0.0 % to " in score_table(figures)
    assert '<th scope="col">late</th><th scope="col">superseded</th>' in score_table(figures)
    worse = [{**each, "differences": {"collision_rate": {"difference": 0.5, "ci95": [0.25, 0.75]}}}
             for each in figures["comparisons"]]  # fmt: skip
    assert '<td class="bad">+50.0 %<small>+25.0 % to +75.0 %</small></td>' in difference_table({"comparisons": worse})
    better = json.loads(json.dumps(worse).replace("[0.25, 0.75]", "[-0.75, -0.25]"))
    assert '<td class="good">' in difference_table({"comparisons": better})
    assert "class=" not in difference_table({"comparisons": json.loads(json.dumps(worse).replace("0.25", "-0.25"))})


def test_the_heat_map_is_darkest_where_the_score_is_worst(figures):
    found = re.findall(r"series-2\) (\d+)%[^>]*>([\d.]+)<", heat_maps(figures).split("heat-collision")[0])
    shades = {float(value): int(shade) for shade, value in found}
    assert shades[1.0] == 0
    assert shades[0.5] == round(75 * 0.5)


def test_the_page_says_which_rows_cannot_be_compared(figures):
    told = "1 of 4 runs failed; its figures are of the others and cannot be compared"
    failed = [replace(run, ending="failed") if run.row == PRUNED and run.key == ("a", 1) else run for run in records()]
    found = summarize(failed)
    table = score_table(found)
    assert "cannot be compared with those" not in score_table(figures)
    assert f'<p class="bad">reconpruner@0.5: {told}' in table and table.count("cannot be compared with those") == 1
    assert "<td>reconpruner@0.5</td><td>4</td><td>1</td>" in table
    assert "<td>reconpruner@0.5</td><td>none</td><td>3</td><td>1</td>" in difference_table(found)


def test_a_page_of_runs_that_all_failed_has_no_best_row():
    found = summarize([replace(run, ending="failed") for run in records()])
    assert "<dt>highest EPDMS-style of the VLA</dt><dd></dd>" in page(found, [])


@pytest.mark.parametrize(("fault", "neutral"), [("speed-scale", 1.0), ("burst", 1.0), ("latency", 0.0)])
def test_the_row_without_a_fault_stands_at_the_severity_that_changes_nothing(fault, neutral):
    row = {"pruner": "/home/me/p.safetensors", "drop": 0.5, "epdms_style": 0.5, "ci95": {"epdms_style": None}}
    found = fault_lines({"rows": [{**row, "failed": 0, "fault": each} for each in (None, f"{fault}:2")]})
    assert [point.severity for point in found[fault]["p@0.5"]] == [neutral, 2.0]


def test_runs_that_failed_under_a_fault_are_marked_in_its_chart():
    row = {"pruner": "none", "drop": 0.0, "epdms_style": 0.5, "ci95": {"epdms_style": [0.4, 0.6]}, "failed": 0}
    some = {**row, "fault": "dropped:0.5", "failed": 3}
    all_failed = {**row, "fault": "dropped:1", "failed": 14, "epdms_style": None, "ci95": {"epdms_style": None}}
    text = severity_charts({"rows": [{**row, "fault": None}, some, all_failed]})
    assert "<title>none, severity 0.5: 0.500, 3 failed</title></circle>" in text and text.count('fill="none">') == 1
    assert "<title>none, severity 1: 14 failed</title></path>" in text
    assert "ring: some runs failed" in text and "ring:" not in severity_charts(
        {"rows": [{**row, "fault": "dropped:0"}]}
    )
    way = re.search(r'<polyline points="([^"]*)"', text)
    assert way is not None and len(way[1].split()) == 2, "a line to a score that there is not"


def test_a_faults_line_begins_with_the_row_without_it(figures):
    lines = fault_lines(figures)["frozen"]["reconpruner@0.5"]
    assert [(point.severity, point.value) for point in lines] == [(0.0, 0.75), (0.5, 0.5)]
    assert fault_lines({"rows": [row for row in figures["rows"] if row["fault"] is None]}) == {}


STUB = """
const fs = require("fs"), html = fs.readFileSync(process.argv[1], "utf8");
const data = html.match(/<script type="application\\/json" id="runs">([\\s\\S]*?)<\\/script>/)[1];
const script = html.match(/<script>([\\s\\S]*)<\\/script><\\/body>/)[1];
let calls = 0;
const element = (id) => {
  const cells = [], context = new Proxy({}, {
    get: (t, k) => k in t ? t[k] : (...a) => {
      calls++; if (a.some((v) => typeof v === "number" && !Number.isFinite(v))) throw Error(String(k));
      if (k === "fillRect") cells.push(t.fillStyle);
      if (k === "clearRect") cells.length = 0;
    },
    set: (t, k, v) => { t[k] = v; return true; } });
  return { textContent: id === "runs" ? data : "", value: "0", clientWidth: 900, clientHeight: 400, style: {}, cells,
    handlers: {}, addEventListener(name, f) { this.handlers[name] = f; }, getContext: () => context,
    replaceChildren() {}, append() {} };
};
const made = {};
global.document = { getElementById: (id) => made[id] ??= element(id), querySelectorAll: () => [],
  documentElement: {}, createElement: () => element("x") };
global.window = { devicePixelRatio: 1, addEventListener() {} };
global.getComputedStyle = () => ({ getPropertyValue: (name) => ` ${name}` });
eval(script.replace('"use strict";', ""));
const runs_ = JSON.parse(data), kept = {};
runs_.forEach((run, i) => {
  made.run.value = String(i); made.run.handlers.change(); made.time.value = "7"; made.time.handlers.input();
  kept[run.row] = { told: made["told-kept"].textContent, hidden: made.kept.hidden, cells: [...made.kept.cells] };
});
console.log(JSON.stringify({ drawn: calls > 100 * runs_.length, told: made.told.textContent, kept }));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_the_script_draws_every_run(folder):
    done = subprocess.run(["node", "-e", STUB, folder / "report.html"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["drawn"] and found["told"].startswith("0.7 s, 5.0 m/s, straight")
    pruned, full, old = (found["kept"][row.name] for row in (PRUNED, NONE, FAULTED))
    assert (pruned["told"], pruned["hidden"]) == ("The plan of 0.0 s keeps 20 of 40 tokens.", False)
    assert [cell == "--series-1" for cell in pruned["cells"]] == [*MASK.ravel(), *~MASK.ravel()]
    assert (full["told"], full["hidden"]) == ("The plan of 0.0 s keeps all 40 tokens.", True)
    assert (old["told"], old["hidden"]) == (UNKNOWN, True)


def test_a_drive_writes_summary_and_page_and_is_the_same_again(tmp_path):
    found = []
    for name in ("first", "again"):
        options = DriveOptions(tmp_path / name, families=("red-light",), runs=1, seed=1, pruners=(), drops=())
        found.append(drive_suite(options))
        assert json.loads((tmp_path / name / "summary.json").read_text()) == json.loads(json.dumps(found[-1]))
        assert "constant-velocity" in (tmp_path / name / "report.html").read_text()
    assert found[0]["deterministic_hash"] == found[1]["deterministic_hash"]
    assert [row["pruner"] for row in found[0]["rows"]] == ["expert", "constant-velocity"]
    assert len(found[0]["runs"]) == 2
    run = load_run(tmp_path / "first" / "runs" / "constant-velocity" / "red-light-1.jsonl")
    assert len(run.expert_progress_m) > 10
