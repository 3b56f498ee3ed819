"""``fastdrive bench`` on an untrained tiny VLA whose language model says something."""

import itertools
import json
import os
import shutil
from functools import partial

import pytest

from fastdrive_node.benchmark import comparison, conditions, energy
from fastdrive_node.cli import main
from fastdrive_node.families import load_vla
from fastdrive_node.families.qwen2_5_vl.language import TorchLanguage
from fastdrive_node.files import SHIPPED_PRUNER
from fastdrive_node.planning.generator import Generator
from fastdrive_node.pruning.checkpoint import save_pruner
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_training.vla.tiny_model import TinySize, build_tiny_vla
from tests.generation import vary_answers, write_geometry
from tests.replay.bags import BagPlan, write_bag


@pytest.fixture(scope="module")
def vla_dir(tmp_path_factory):
    """A tiny VLA with short, varied answers, and a pruner beside it."""
    size = TinySize(tower_depth=2, full_attention_blocks=(1,), layers=2)
    folder = build_tiny_vla(tmp_path_factory.mktemp("bench") / "vla", seed=0, size=size)
    vla = load_vla(folder)
    vary_answers(vla, 0)
    vla.model.save_pretrained(folder)
    save_pruner(folder / SHIPPED_PRUNER, ReconPruner(vla.family, vla.config.text_config), vla.encoder_fingerprint)
    return folder


@pytest.fixture(scope="module", autouse=True)
def cold():
    """Untimed runs before the timed ones change no figure that is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "measure", partial(comparison.measure, warm_up=0))
        yield


def bench(vla_dir, out, *arguments, large=False):
    command = [
        "bench",
        "--vla",
        vla_dir,
        "--runs",
        1,
        "--hz",
        0,
        "--sets",
        2,
        "--device",
        "cpu",
        "--json",
        out,
        *([] if large else ["--no-large"]),
        *arguments,
    ]
    assert main([str(part) for part in command]) == 0
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def pages(vla_dir, tmp_path_factory):
    """The folder of a benchmark at drop 0.75, paced too, on a machine that is busy and counts its energy."""
    folder = tmp_path_factory.mktemp("pages")
    readings = itertools.count(1.0, 2.5)
    counter = energy.Counter("package-0", lambda: next(readings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "find_counters", lambda device: ([counter], []))
        patch.setattr(os, "getloadavg", lambda: (3.5, 0.0, 0.0))
        patch.setattr(os, "cpu_count", lambda: 2)
        bench(vla_dir, folder / "again.json", "--drop", 0.75, "--out", folder, "--hz", 1000, large=True)
    assert (folder / "again.json").read_bytes() == (folder / "bench.json").read_bytes()
    return folder


@pytest.fixture(scope="module")
def figures(pages):
    return json.loads((pages / "bench.json").read_text())


def test_every_stage_is_timed_on_both_sides(figures):
    assert set(figures["stages"]) == {"encode", "prefill", "decode", "end_to_end", "camera_to_plan"}
    for times in (*figures["stages"].values(), figures["paced"]):
        for who in ("ours", "transformers"):
            assert 0 < times[f"{who}_ms"] <= times[f"{who}_p90_ms"] <= times[f"{who}_worst_ms"]
    assert figures["paced"]["period_s"] == 0.001
    assert (figures["drop"], figures["tokens"], figures["kept_tokens"]) == (0.75, 192, 48)
    assert figures["samples"] == 2 and figures["source"] == "samples/city" and figures["device"]


def test_ratios_are_those_of_the_medians_and_the_pruner_counts(figures):
    whole, prefill = figures["stages"]["camera_to_plan"], figures["stages"]["prefill"]
    assert figures["speedup_end_to_end"] == pytest.approx(whole["transformers_ms"] / whole["ours_ms"], rel=1e-2)
    with_pruner = prefill["ours_ms"] + figures["prune_ms"]
    assert figures["speedup_prefill"] == pytest.approx(prefill["transformers_ms"] / with_pruner, rel=1e-2)
    rate = figures["plans_per_s"]
    assert rate == {who: pytest.approx(1e3 / whole[f"{who}_ms"], rel=1e-2) for who in ("ours", "transformers")}


def test_each_row_of_the_ablation_has_one_thing_more(figures):
    rows = {row["with"]: row["forwards"] for row in figures["ablation"]}
    assert list(rows) == ["transformers", "lean", "pruning", "forced", "drafts"]
    plain = figures["answer_tokens"] - 1
    assert rows["transformers"] == rows["lean"] == rows["pruning"] == plain >= rows["forced"]
    assert rows["drafts"] == figures["forwards_per_answer"]


def test_drafts_give_the_answer_of_plain_decoding_and_all_tokens_that_of_transformers(figures):
    assert figures["equal_answers"] == [2, 2] and 1 <= figures["forwards_per_answer"] <= figures["answer_tokens"]
    agreement = figures["agreement"]
    assert figures["same_text"] is True and figures["equal_to_transformers"] == [2, 2]
    assert agreement["same_tokens"] is True and agreement["equal_steps"] == agreement["steps"]
    assert agreement["distinct_tokens"] > 5, "the model must say something for this test to mean anything"
    assert agreement["encode_cosine"]["min"] > 0.9999


def test_the_pages_hold_the_figures_of_the_json(pages, figures):
    page, text = ((pages / f"bench.{kind}").read_text() for kind in ("html", "md"))
    for name, times in figures["stages"].items():
        assert f"| {name} | {times['ours_ms']:.2f} |" in text
        assert f"<td>{name}</td><td>{times['ours_ms']:.2f}</td>" in page
    assert "http" not in page and "<script" not in page
    assert "48 of 192 visual tokens" in page
    for who in ("ours", "transformers"):
        jitter = [f"{times[f'{who}_jitter_ms']:.2f}" for times in figures["stages"].values()]
        assert all(f"| {each} |" in text and f"<td>{each}</td>" in page for each in jitter)
    shown = [
        f"{figures['plans_per_s']['ours']:.2f}",
        f"{figures['weights_mib']['transformers']:.1f}",
        f"{figures['peak_memory_mib']}",
        f"{figures['floor']['encode']['least_ms']:.3f}",
        f"{figures['floor']['decode']['measured_ms']['ours']:.2f}",
        f"{figures['large']['rows']['prune']['median_ms']:.2f}",
    ]
    assert all(f"| {each} |" in text and f"<td>{each}</td>" in page for each in shown)
    assert "+ forced tokens" in text and "+ forced tokens" in page


def test_a_busy_machine_is_told_on_the_page_and_on_stderr(pages, figures, vla_dir, tmp_path, monkeypatch, capsys):
    warning = "the machine was not idle before the measurement: load 3.5 on 2 cores"
    assert figures["load"] == {"one_minute": 3.5, "cores": 2, "idle": False}
    for kind in ("html", "md"):
        page = (pages / f"bench.{kind}").read_text()
        assert warning in page and "load 3.5 on 2 cores in the minute before" in page
    for load, told in ((3.5, True), (0.1, False)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        monkeypatch.setattr(os, "cpu_count", lambda: 2)
        bench(vla_dir, tmp_path / "bench.json", "--sets", 1, "--out", tmp_path)
        assert (f"warning: {warning}" in capsys.readouterr().err) == told
        assert (warning in (tmp_path / "bench.html").read_text()) == told


def test_energy_of_a_plan_is_that_of_the_machine_s_counters(pages, figures):
    assert figures["energy"] == {
        "joules_per_plan": {"ours": {"package-0": 2.5}, "transformers": {"package-0": 2.5}},
        "plans": 1,
        "reasons": [],
    }
    for kind in ("html", "md"):
        page = (pages / f"bench.{kind}").read_text()
        assert "energy of a plan, package-0, J" in page and "2.500" in page and "does not tell" not in page


def test_energy_that_nothing_tells_is_not_guessed(vla_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "find_counters", lambda *_: ([], ["RAPL: no right to read it"]))
    figures = bench(vla_dir, tmp_path / "again.json", "--sets", 1, "--out", tmp_path)
    assert figures["energy"]["joules_per_plan"] is None
    for kind in ("html", "md"):
        page = (tmp_path / f"bench.{kind}").read_text()
        assert "the machine does not tell" in page and "RAPL: no right to read it." in page


def test_a_counter_that_ends_while_it_is_read_takes_no_other_figure_with_it(vla_dir, tmp_path, monkeypatch):
    readings = iter([1.0, 2.0])

    def read():
        for reading in readings:
            return reading
        raise OSError("No data available")

    counter = energy.Counter("package-0", read)
    monkeypatch.setattr(comparison, "find_counters", lambda *_: ([counter], []))
    figures = bench(vla_dir, tmp_path / "bench.json", "--sets", 1)
    assert figures["energy"]["joules_per_plan"] is None
    assert "could not be read any more" in figures["energy"]["reasons"][0]


def test_the_floor_stands_beside_what_was_measured(figures):
    floor, stages = figures["floor"], figures["stages"]
    assert floor["encode"]["measured_ms"]["ours"] == pytest.approx(stages["encode"]["ours_ms"], abs=1e-3)
    assert list(floor["prefill"]) == ["all tokens", "pruned", "pruned, with the draft"]
    whole, pruned, drafted = floor["prefill"].values()
    assert whole["tokens"] - pruned["tokens"] == 192 - 48
    assert pruned["tokens"] < drafted["tokens"] <= pruned["tokens"] + figures["answer_tokens"]
    assert list(whole["measured_ms"]) == ["transformers"] and list(drafted["measured_ms"]) == ["ours"]
    forwards = figures["answer_tokens"] - 1
    step = floor["decode"]["measured_ms"]["transformers"]
    assert step == pytest.approx(stages["decode"]["transformers_ms"] / forwards, rel=1e-2)


def test_the_second_regime_has_the_paper_s_number_of_tokens(figures, vla_dir, tmp_path):
    large = figures["large"]
    assert (large["tokens"], large["kept_tokens"], large["runs"]) == (3249, 812, 1)
    assert large["prompt_tokens"] > 3249 and list(large["rows"]) == ["transformers", "prune", "ours"]
    times = {name: row["median_ms"] for name, row in large["rows"].items()}
    ratio = times["transformers"] / (times["ours"] + times["prune"])
    assert large["speedup"]["ours"]["prefill"] == pytest.approx(ratio, rel=1e-2)
    assert large["arithmetic_ratio"] > 4, "a fourth of the tokens"
    without = bench(vla_dir, tmp_path / "again.json", "--sets", 1, "--out", tmp_path)
    assert without["large"] is None and "3249" not in (tmp_path / "bench.md").read_text()


def test_a_pruner_that_cannot_serve_one_image_is_told_in_the_second_regime(vla_dir, tmp_path):
    write_geometry(vla_dir)
    figures = bench(vla_dir, tmp_path / "x.json", "--sets", 1, "--pruner", "ring-view", "--out", tmp_path, large=True)
    assert "6 images, but 1 are there" in figures["large"]["rows"]["prune"]["error"]
    assert figures["large"]["speedup"]["ours"] == {"prefill": None, "prefill_alone": None}
    assert "6 images, but 1 are there" in (tmp_path / "bench.md").read_text()


def test_the_answers_on_the_baseline_are_those_of_what_ran(pages, vla_dir, tmp_path, monkeypatch):
    yes = "| Does the baseline use its cache? | yes: generate ran "
    assert yes in (pages / "bench.md").read_text()
    assert "| Does the baseline use fast attention? | yes: sdpa in the " in (pages / "bench.md").read_text()
    monkeypatch.setattr(comparison, "baseline", lambda stock: without_cache(stock))
    bench(vla_dir, tmp_path / "again.json", "--sets", 1, "--out", tmp_path)
    assert "| Does the baseline use its cache? | NO: generate ran " in (tmp_path / "bench.md").read_text()


def without_cache(stock):
    stock.model.generation_config.use_cache = False
    return conditions.baseline(stock)


def test_past_images_repeat_those_of_t0(vla_dir, tmp_path):
    folder = shutil.copytree(vla_dir, tmp_path / "vla")
    spec = json.loads((folder / "vla.json").read_text())
    (folder / "vla.json").write_text(json.dumps({**spec, "frames": {"count": 2, "interval_s": 0.5}}))
    figures = bench(folder, tmp_path / "bench.json", "--sets", 1, large=True)
    assert (figures["tokens"], figures["kept_tokens"]) == (384, 192)
    assert figures["large"]["kept_tokens"] == 1624 and "median_ms" in figures["large"]["rows"]["ours"]
    assert figures["same_text"] is True and figures["agreement"]["same_tokens"] is True


def test_another_text_is_reported(vla_dir, tmp_path, monkeypatch, capsys):
    class Wrong(TorchLanguage):
        def forward(self, *arguments):
            return super().forward(*arguments).roll(1, dims=-1)

    class WrongGenerator(Generator):
        def __init__(self, vla):
            super().__init__(vla, Wrong(vla))

    monkeypatch.setattr(comparison, "Generator", WrongGenerator)
    assert bench(vla_dir, tmp_path / "bench.json", "--sets", 1)["same_text"] is False
    assert "the answer without dropping is ANOTHER" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments,code,reason",
    [
        (("--runs", "0"), 2, "--runs: 0; give 1 or more"),
        (("--vla", "nowhere"), 1, "nowhere: no such VLA directory"),
    ],
)
def test_wrong_figures_are_refused_in_one_line(vla_dir, capsys, arguments, code, reason):
    assert main(["bench", "--vla", str(vla_dir), *arguments]) == code
    error = capsys.readouterr().err.strip()
    assert reason in error and "\n" not in error


@pytest.mark.parametrize("drop", ["1", "-0.1", "nan", "half"])
def test_a_pruning_ratio_out_of_range_is_wrong_usage(capsys, drop):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", f"--drop={drop}"])
    assert stopped.value.code == 2 and drop in capsys.readouterr().err


def test_a_bag_that_does_not_fit_is_refused(vla_dir, tmp_path, capsys):
    bag = write_bag(tmp_path / "bag", BagPlan(without={"/CAM_BACK/image_raw"}))
    assert main(["bench", "--vla", str(vla_dir), "--bag", str(bag)]) == 1
    assert "CAM_BACK" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_measured(vla_dir, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["bench", "--vla", str(vla_dir), "--out", str(tmp_path / "file" / "pages")]) == 1
    assert "--out " in capsys.readouterr().err


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--help"])
    assert stopped.value.code == 0 and "examples:" in capsys.readouterr().out
