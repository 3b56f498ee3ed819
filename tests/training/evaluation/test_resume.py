"""A run folder of ``fastdrive evaluate``: what is there is not done again, and what does not belong is refused."""

from __future__ import annotations

import json
import shutil

import pyarrow.parquet as pq
import pytest
import torch

from fastdrive_node.cli import main
from fastdrive_node.errors import InputError
from fastdrive_node.families import load_vla
from fastdrive_node.planning.generator import Generator
from fastdrive_node.pruning.baselines.prune2drive import save_weights
from fastdrive_node.types import CAMERAS
from fastdrive_training.data import token_cache
from fastdrive_training.data.nuscenes.keyframes import KeyframeDataset
from fastdrive_training.data.token_cache import FeatureStore
from fastdrive_training.evaluation import OpenLoopSettings, evaluate, segments
from fastdrive_training.evaluation import run as evaluation
from fastdrive_training.evaluation.records import RecordStore
from fastdrive_training.vla.tiny_model import build_tiny_vla
from tests.generation import generate_as
from tests.training.tiny_nuscenes import write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return KeyframeDataset(write_dataset(tmp_path_factory.mktemp("data") / "d", scenes=2, keyframes=9))


@pytest.fixture
def asked(monkeypatch):
    """Prompts that were answered; each row is timed as {"prefill_ms": its number of calls}, segments are short."""
    asked = []

    def text(indices):
        asked.append(indices)
        return "no plan"

    generate_as(monkeypatch, text)
    monkeypatch.setattr(evaluation, "SEGMENT", 2)
    monkeypatch.setattr(segments, "measure", lambda _, rows, *__, **___: [{"prefill_ms": 1.5} for _ in rows])
    return asked


def _settings(out, **changes) -> OpenLoopSettings:
    return OpenLoopSettings(**{"pruners": ("none", "random"), "drops": (0.5,), "out": out, **changes})


def test_what_is_there_is_not_answered_again(tmp_path, dataset, tiny_vla, asked):
    whole = evaluate(dataset, tiny_vla, _settings(tmp_path / "run"), progress=False)
    assert len(asked) == 12  # six samples, two rows
    assert evaluate(dataset, tiny_vla, _settings(tmp_path / "run"), progress=False) == whole
    assert len(asked) == 12
    more = evaluate(dataset, tiny_vla, _settings(tmp_path / "run", drops=(0.5, 0.75), seeds=2), progress=False)
    assert len(asked) == 12 + 3 * 6
    assert [row for row in more["rows"] if row in whole["rows"]] == whole["rows"]
    lines = pq.read_table(tmp_path / "run" / "samples.parquet")
    assert len(lines) == 6 * 6  # none, random 0.5 and 0.75 with two seeds each, constant-velocity


def test_a_run_that_was_cut_off_goes_on(tmp_path, dataset, tiny_vla, asked, monkeypatch):
    speak = Generator.generate

    def cut(*arguments):
        if len(asked) == 6:
            raise KeyboardInterrupt
        return speak(*arguments)

    monkeypatch.setattr(Generator, "generate", cut)
    with pytest.raises(KeyboardInterrupt):
        evaluate(dataset, tiny_vla, _settings(tmp_path / "run"), progress=False)
    monkeypatch.setattr(Generator, "generate", speak)
    resumed = evaluate(dataset, tiny_vla, _settings(tmp_path / "run"), progress=False)
    assert len(asked) == 12
    assert resumed == evaluate(dataset, tiny_vla, _settings(None), progress=False)


def test_damaged_part_is_answered_again(tmp_path, dataset, tiny_vla, asked):
    whole = evaluate(dataset, tiny_vla, _settings(tmp_path / "run"), progress=False)
    (tmp_path / "run" / "parts" / "none-0-0" / "00001.parquet").write_bytes(b"PAR1 no parquet")
    assert evaluate(dataset, tiny_vla, _settings(tmp_path / "run"), progress=False) == whole
    assert len(asked) == 14


def test_folder_of_another_evaluation_is_refused(tmp_path, dataset, tiny_dir, tiny_vla, asked):
    evaluate(dataset, tiny_vla, _settings(tmp_path / "run"), progress=False)
    with pytest.raises(InputError, match=r"samples differs.*another --out"):
        evaluate(dataset, tiny_vla, _settings(tmp_path / "run", limit=2), progress=False)
    with pytest.raises(InputError, match="samples differs"):
        evaluate(dataset, tiny_vla, _settings(tmp_path / "run", shuffled=True), progress=False)
    shutil.copytree(tiny_dir, tmp_path / "vla")
    (tmp_path / "vla" / "prompt.txt").write_text((tiny_dir / "prompt.txt").read_text() + " ")
    with pytest.raises(InputError, match="vla differs"):
        evaluate(dataset, load_vla(tmp_path / "vla"), _settings(tmp_path / "run"), progress=False)
    (tmp_path / "run" / "run.json").write_text("[]")
    with pytest.raises(InputError, match=r"run\.json: not a JSON object"):
        evaluate(dataset, tiny_vla, _settings(tmp_path / "run"), progress=False)


def test_a_run_goes_on_beside_another_file_of_a_pruner_that_it_does_not_have(tmp_path, dataset, tiny_dir, asked):
    vla = shutil.copytree(tiny_dir, tmp_path / "vla")
    run, weights = tmp_path / "run", vla / "prune2drive.json"
    evaluate(dataset, load_vla(vla), _settings(run), progress=False)
    save_weights(weights, dict.fromkeys(CAMERAS, 1.0))
    both = _settings(run, pruners=("none", "random", "prune2drive-input"))
    evaluate(dataset, load_vla(vla), both, progress=False)
    weights.write_text(weights.read_text() + " ")
    evaluate(dataset, load_vla(vla), _settings(run), progress=False)
    with pytest.raises(InputError, match="file of prune2drive-input differs"):
        evaluate(dataset, load_vla(vla), both, progress=False)


def test_times_are_kept_with_the_run(tmp_path, dataset, tiny_vla, asked, monkeypatch):
    evaluate(dataset, tiny_vla, _settings(tmp_path / "run"), progress=False)
    monkeypatch.setattr(segments, "measure", lambda _, rows, *__, **___: [{"prefill_ms": 9.0} for _ in rows])
    again = evaluate(dataset, tiny_vla, _settings(tmp_path / "run"), progress=False)
    assert [row["prefill_ms"] for row in again["rows"]] == [1.5, 1.5, None]
    more = evaluate(dataset, tiny_vla, _settings(tmp_path / "run", pruners=("none", "uniform")), progress=False)
    assert [row["prefill_ms"] for row in more["rows"]] == [9.0, 9.0, None]  # rows of one table are timed together
    assert set(json.loads((tmp_path / "run" / "efficiency.json").read_text())) == {
        "none-0",
        "random-0.5",
        "uniform-0.5",
    }


def test_features_are_encoded_once_and_read_afterwards(tmp_path, dataset, tiny_vla, monkeypatch):
    first = FeatureStore(dataset, tiny_vla, tmp_path, attention=False).load([3, 0, 3])
    monkeypatch.setattr(token_cache, "load_images", None)
    again = FeatureStore(dataset, tiny_vla, tmp_path, attention=False).load([3, 0])
    assert torch.equal(first[0].tokens, again[0].tokens) and torch.equal(first[1].tokens, again[1].tokens)
    assert first[0] is first[2]
    assert again[0].tower_attention is None


def test_features_that_lack_something_are_encoded_again(tmp_path, dataset, tiny_vla):
    plain = FeatureStore(dataset, tiny_vla, tmp_path, attention=False).load([0])[0]
    attended = FeatureStore(dataset, tiny_vla, tmp_path, attention=True)
    found = attended.load([0])[0]
    assert found.tower_attention.shape == found.tokens.shape[:2]
    assert torch.allclose(found.tokens, plain.tokens, atol=1e-5)
    path = next(tmp_path.glob("*/*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(attended.load([0])[0].tokens, found.tokens)


def test_features_of_another_encoder_are_not_read(tmp_path, dataset, tiny_vla):
    other = load_vla(build_tiny_vla(tmp_path / "other", seed=3))
    cache = tmp_path / "cache"
    first, second = (FeatureStore(dataset, vla, cache, attention=False).load([0])[0] for vla in (tiny_vla, other))
    assert not torch.equal(first.tokens, second.tokens)


@pytest.mark.parametrize("kept", [True, False])
def test_ctrl_c_says_what_is_kept_and_how_to_go_on(tmp_path, dataset, asked, monkeypatch, capsys, kept):
    arguments = ["evaluate", str(dataset.root), "--pruners", "none", "--no-timing", "--device", "cpu"]
    arguments += ["--vla", str(build_tiny_vla(tmp_path / "vla", seed=0))]
    arguments += ["--out", str(tmp_path / "run")] if kept else []
    put, done = RecordStore.put, []

    def interrupted(store, *written):
        if len(done) == 3:  # the baseline and the row of the first segment, the baseline of the second
            raise KeyboardInterrupt
        done.append(written)
        put(store, *written)

    with monkeypatch.context() as patch:
        patch.setattr(RecordStore, "put", interrupted)
        assert main(arguments) == 1
    hint = "finished segments are kept; give the same command again, and it goes on" if kept else "nothing is kept"
    assert f"fastdrive evaluate: interrupted: {hint}" in capsys.readouterr().err.splitlines()[-1]
    if kept:
        before = len(asked)
        assert main(arguments) == 0 and len(asked) < 6 + before
