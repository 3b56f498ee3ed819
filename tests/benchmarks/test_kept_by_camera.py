"""Kept tokens by camera."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import ROOT
from benchmarks.studies.kept_by_camera import main
from fastdrive_training.evaluation.records import SCHEMA

WIDE = ROOT / "models/tiny_wide"  # six cameras of 72 tokens


def run_of(folder, kept):
    lines = [
        {"pruner": pruner, "drop": 0.5, "seed": 0, "sample": f"k{place}", "scene": "s", "refused": False, "kept": each}
        for pruner, rows in kept.items()
        for place, each in enumerate(rows)
    ]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(lines, SCHEMA), folder / "samples.parquet")
    return str(folder)


def test_each_camera_has_the_mean_of_its_kept_tokens_over_the_samples(tmp_path, capsys):
    run = run_of(tmp_path / "run", {"a": [[0, 71, 72, 431], [1, 73, 74, 75]], "b": [[5], [6]]})
    main([run, "--vla", str(WIDE), "--pruners", "a", "--json", str(tmp_path / "f.json")])
    (row,) = json.loads((tmp_path / "f.json").read_text())["rows"]
    assert (row["pruner"], row["drop"]) == ("a", 0.5)
    assert [row[name] for name in row if name.startswith("CAM")] == [1.5, 2.0, 0.0, 0.0, 0.0, 0.5]
    assert "CAM_FRONT_LEFT" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kept", "pruner", "message"),
    [([[1]], "c", "has no row of c; evaluate it there"), ([[432]], "a", "tokens of more than 6 cameras of 72")],
)
def test_what_the_run_lacks_or_another_vla_had_is_named(tmp_path, capsys, kept, pruner, message):
    with pytest.raises(SystemExit):
        main([run_of(tmp_path / "run", {"a": kept}), "--vla", str(WIDE), "--pruners", pruner])
    assert message in capsys.readouterr().err
