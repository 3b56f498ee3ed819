"""``fastdrive bench`` on an untrained tiny VLA whose language model says something."""

import json
import shutil

import pytest

from fastdrive_node.benchmark import comparison
from fastdrive_node.cli import main
from fastdrive_node.families import load_vla
from fastdrive_node.families.qwen2_5_vl.language import TorchLanguage
from fastdrive_node.planning.generator import Generator
from fastdrive_node.planning.loading import SHIPPED_PRUNER
from fastdrive_node.pruning.checkpoint import save_pruner
from fastdrive_node.pruning.recon_pruner import ReconPruner
from tests.generation import vary_answers


@pytest.fixture(scope="module")
def vla_dir(tiny_dir, tmp_path_factory):
    """A tiny VLA with short, varied answers, and a pruner beside it."""
    folder = shutil.copytree(tiny_dir, tmp_path_factory.mktemp("bench") / "vla")
    vla = load_vla(folder)
    vary_answers(vla, 0)
    vla.model.save_pretrained(folder)
    save_pruner(folder / SHIPPED_PRUNER, ReconPruner(vla.family, vla.config.text_config), vla.encoder_fingerprint)
    return folder


def bench(vla_dir, out, *arguments):
    command = ["bench", "--vla", vla_dir, "--runs", 1, "--device", "cpu", "--json", out, *arguments]
    assert main([str(part) for part in command]) == 0
    return json.loads(out.read_text())


def test_every_stage_is_timed_on_both_sides(vla_dir, tmp_path, capsys):
    figures = bench(vla_dir, tmp_path / "bench.json", "--drop", 0.75)
    assert set(figures["stages"]) == {"encode", "prefill", "decode", "end_to_end"}
    for times in figures["stages"].values():
        assert set(times) == {"ours_ms", "transformers_ms"} and min(times.values()) > 0
    whole, prefill = figures["stages"]["end_to_end"], figures["stages"]["prefill"]
    assert figures["speedup_end_to_end"] == pytest.approx(whole["transformers_ms"] / whole["ours_ms"], rel=1e-2)
    assert figures["speedup_prefill"] == pytest.approx(prefill["transformers_ms"] / prefill["ours_ms"], rel=1e-2)
    assert (figures["drop"], figures["tokens"], figures["kept_tokens"]) == (0.75, 192, 48)
    assert figures["device"] and "48 of 192 visual tokens" in capsys.readouterr().out


def test_without_dropping_the_text_is_that_of_transformers(vla_dir, tmp_path):
    figures = bench(vla_dir, tmp_path / "bench.json")  # dropping half: same_text is about all tokens nevertheless
    agreement = figures["agreement"]
    assert figures["kept_tokens"] == 96
    assert figures["same_text"] is True and agreement["same_tokens"] is True
    assert agreement["equal_steps"] == agreement["steps"] == figures["answer_tokens"]
    assert agreement["distinct_tokens"] > 5, "the model must say something for this test to mean anything"
    assert agreement["encode_cosine"]["min"] > 0.9999


def test_another_text_is_reported(vla_dir, tmp_path, monkeypatch, capsys):
    class Wrong(TorchLanguage):
        def forward(self, *arguments):
            return super().forward(*arguments).roll(1, dims=-1)

    class WrongGenerator(Generator):
        def __init__(self, vla):
            super().__init__(vla, Wrong(vla))

    monkeypatch.setattr(comparison, "Generator", WrongGenerator)
    assert bench(vla_dir, tmp_path / "bench.json")["same_text"] is False
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


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--help"])
    assert stopped.value.code == 0 and "example:" in capsys.readouterr().out
