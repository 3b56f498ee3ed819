"""Checkpoints belong to one recipe; an earlier run is kept when its command is given again."""

from __future__ import annotations

import pytest
import torch

from fastdrive_node.errors import TrainingError
from fastdrive_training.engine.checkpoint import CHECKPOINT, archive_existing, read_checkpoint, write_checkpoint

CPU = torch.device("cpu")


def test_an_earlier_run_moves_to_the_first_free_name(tmp_path, capsys):
    folder = tmp_path / "run"
    for number in (1, 2):
        folder.mkdir()
        (folder / "figures.json").write_text(str(number))
        assert archive_existing(folder) == tmp_path / f"run.{number}"
        assert f"run.{number}" in capsys.readouterr().err
    assert [(tmp_path / f"run.{number}" / "figures.json").read_text() for number in (1, 2)] == ["1", "2"]
    assert not folder.exists()


def test_there_is_nothing_to_keep_in_an_empty_folder(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    assert archive_existing(tmp_path / "run") is None and archive_existing(tmp_path / "none") is None
    assert (tmp_path / "run").is_dir()
    assert capsys.readouterr().err == ""


def test_a_checkpoint_comes_back_and_leaves_no_partial_file(tmp_path):
    write_checkpoint(tmp_path, {"lr": 0.1}, {"weight": torch.ones(2), "step": 3})
    state = read_checkpoint(tmp_path, {"lr": 0.1}, CPU)
    assert torch.equal(state["weight"], torch.ones(2)) and state["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


@pytest.mark.parametrize(
    ("identity", "message"),
    [
        ({"schedule": {"lr": 0.2, "cameras": ["a"]}}, r"schedule\.lr was 0\.1 in that run, now it is 0\.2"),
        ({"schedule": {"lr": 0.1, "cameras": ["b"]}}, r"schedule\.cameras was \['a'\] in that run, now it is \['b'\]"),
        ({"schedule": {"lr": 0.1, "cameras": ["a"], "ema": 1}}, r"schedule\.ema was None in that run, now it is 1"),
    ],
)
def test_another_recipe_is_refused_by_the_name_of_the_key(tmp_path, identity, message):
    write_checkpoint(tmp_path, {"schedule": {"lr": 0.1, "cameras": ("a",)}}, {})
    with pytest.raises(TrainingError, match=message):
        read_checkpoint(tmp_path, identity, CPU)


def test_a_missing_or_broken_checkpoint_is_one_line(tmp_path):
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: no checkpoint to resume; start without --resume"):
        read_checkpoint(tmp_path, {}, CPU)
    (tmp_path / CHECKPOINT).write_bytes(b"no checkpoint")
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: unreadable \(.*\); start without --resume") as caught:
        read_checkpoint(tmp_path, {}, CPU)
    assert "\n" not in str(caught.value)
