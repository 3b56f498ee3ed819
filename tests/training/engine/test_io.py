"""An earlier run is kept when its command is given again."""

from __future__ import annotations

from fastdrive_training.engine.io import set_aside


def test_an_earlier_run_moves_to_the_first_free_name(tmp_path, capsys):
    folder = tmp_path / "run"
    for number in (1, 2):
        folder.mkdir()
        (folder / "figures.json").write_text(str(number))
        assert set_aside(folder) == tmp_path / f"run.{number}"
        assert f"run.{number}" in capsys.readouterr().err
    assert [(tmp_path / f"run.{number}" / "figures.json").read_text() for number in (1, 2)] == ["1", "2"]
    assert not folder.exists()


def test_there_is_nothing_to_keep_in_an_empty_folder(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    assert set_aside(tmp_path / "run") is None and set_aside(tmp_path / "none") is None
    assert (tmp_path / "run").is_dir()
    assert capsys.readouterr().err == ""
