"""``fastdrive bench`` on an untrained tiny VLA whose language model says something."""

import json
import shutil
from functools import partial

import pytest

from fastdrive_node.benchmark import comparison
from fastdrive_node.cli import main
from fastdrive_node.families import load_vla
from fastdrive_node.families.qwen2_5_vl.language import TorchLanguage
from fastdrive_node.files import SHIPPED_PRUNER
from fastdrive_node.planning.generator import Generator
from fastdrive_node.pruning.checkpoint import save_pruner
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_training.vla.tiny_model import TinySize, build_tiny_vla
from tests.generation import vary_answers
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


def bench(vla_dir, out, *arguments):
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
        *arguments,
    ]
    assert main([str(part) for part in command]) == 0
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def pages(vla_dir, tmp_path_factory):
    """The folder of a benchmark at drop 0.75, paced too."""
    folder = tmp_path_factory.mktemp("pages")
    bench(vla_dir, folder / "again.json", "--drop", 0.75, "--out", folder, "--hz", 1000)
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
    assert [row["with"] for row in figures["ablation"]] == ["transformers", "lean", "pruning", "drafts"]


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


def test_past_images_repeat_those_of_t0(vla_dir, tmp_path):
    folder = shutil.copytree(vla_dir, tmp_path / "vla")
    spec = json.loads((folder / "vla.json").read_text())
    (folder / "vla.json").write_text(json.dumps({**spec, "frames": {"count": 2, "interval_s": 0.5}}))
    figures = bench(folder, tmp_path / "bench.json", "--sets", 1)
    assert (figures["tokens"], figures["kept_tokens"]) == (384, 192)
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
