"""The study of a 3B, at toy size: a checkpoint in the Hub's layout, its commands, and the page's part."""

from __future__ import annotations

import json

import pytest

from benchmarks.perf.random_models import SIZES
from benchmarks.studies import summary, three_b
from fastdrive_node.cli import main
from tests.real_tokenizer import qwen_tokenizer, reading_tokenizers_once


def in_this_process(arguments, folder, *figures):
    """As ``run_command``, without a process for each command."""
    assert main(arguments) in ((0, 1) if figures else (0,))
    return {"s": 1.5, "peak_memory_gb": 2.25}


def test_the_commands_are_measured_on_a_checkpoint_that_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(three_b, "run_command", in_this_process)
    qwen_tokenizer().save(str(tmp_path / "tokenizer.json"))
    hub, file = tmp_path / "hub", tmp_path / three_b.FILE
    made = ["--size", "tiny", "--tokenizer", str(tmp_path / "tokenizer.json")]
    with reading_tokenizers_once():
        three_b.main(["--checkpoint", str(hub), *made, "--json", str(file)])
    text = file.read_text()
    figures = json.loads(text)
    assert summary.to_text(summary.summarize(figures)) + "\n" == text and str(tmp_path) not in text
    assert len(text.splitlines()) < 50
    assert "text_config" not in json.loads((hub / "config.json").read_text())
    names = json.loads((hub / "model.safetensors.index.json").read_text())["weight_map"]
    assert "visual.blocks.0.attn.qkv.weight" in names and "model.layers.0.self_attn.q_proj.weight" in names
    plan = figures["plan"]
    assert plan["kind"] == "refused" and (plan["kept_tokens"], plan["total_tokens"]) == (84, 336)
    assert plan["answer_tokens"] >= plan["answer_forwards"] > 0 and plan["stage_ms"]["prefill"] > 0
    assert figures["check"]["answer_tokens"]["total"] > 100 and figures["check"]["problems"] == 0
    assert list(figures["commands"]) == ["vla init", "vla check", "plan"]
    part = three_b.part(tmp_path)
    assert "keeps 84 of 336 visual tokens" in part and "| `plan` | 1.5 | 2.25 |" in part


def test_time_and_memory_are_those_of_the_commands_process(tmp_path):
    cost = three_b.run_command(["--help"], tmp_path)
    assert cost["s"] > 0 and 0.01 < cost["peak_memory_gb"] < 2
    with pytest.raises(RuntimeError, match="fastdrive --help ended with 0"):
        three_b.run_command(["--help"], tmp_path, tmp_path / "figures.json")
    with pytest.raises(RuntimeError, match=r"(?s)fastdrive plans ended with 2: .*invalid choice"):
        three_b.run_command(["plans"], tmp_path)


def test_shards_are_split_by_their_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.perf.random_models.SHARD_BYTES", 40_000_000)
    (tmp_path / "tokenizer.json").write_text("{}")
    folder = three_b.write_checkpoint(tmp_path / "hub", SIZES["tiny"], tmp_path / "tokenizer.json", 0)
    names = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(names.values())) == len(list(folder.glob("*.safetensors"))) > 1
