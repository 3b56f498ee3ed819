"""Two evaluations of the same samples, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.studies.paired_runs import compare, is_clear, main, table_of
from fastdrive_training.evaluation.records import SCHEMA

HITS = ("collision", "raster_collision", "off_drivable")


def _run(
    folder, errors: Mapping[tuple[str, float, int], Sequence[float | None]], first: int = 0, with_plans: bool = False
):
    """A run folder whose samples have a constant error in metres; None is a refused answer.

    With plans it can be read as a whole; each lies as far to the left as its error says.
    """
    lines = [
        {"pruner": pruner, "drop": drop, "seed": seed, "sample": f"k{first + place}", "scene": f"s{place // 2}"}
        | {"refused": error is None, "errors_m": None if error is None else [error] * 6}
        | dict.fromkeys(HITS, None if error is None else [error > 1] * 6)
        for (pruner, drop, seed), values in errors.items()
        for place, error in enumerate(values)
    ]
    for line in lines if with_plans else []:
        line["plan_m"] = [[1.0, value] for value in line["errors_m"]]
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    pq.write_table(pa.Table.from_pylist(lines, SCHEMA), folder / "samples.parquet")
    return folder


def test_rows_of_two_runs_are_compared_over_the_samples_that_both_answered(tmp_path, capsys) -> None:
    ours = _run(tmp_path / "a", {("reconpruner", 0.5, 0): [1.0, 2.0, None, 1.0], ("none", 0.0, 0): [9.0] * 4})
    seeds = {("random", 0.5, seed): [1.0 + seed, 1.0 + seed, 1.0, None] for seed in (0, 1)}
    theirs = _run(tmp_path / "b", {**seeds, ("none", 0.0, 0): [0.5] * 4, ("reconpruner", 0.75, 0): [0.1] * 4})
    found = {(row["other"], row["figure"]): row for row in compare(ours, theirs)}
    assert {name for name, _ in found} == {"random", "none"}  # at 0.75 the first run has nothing
    assert found["random", "l2_avg_to_t"]["difference"] == pytest.approx(0.0)
    assert found["random", "l2_avg_to_t"]["samples"] == 2
    assert found["none", "l2_avg_to_t"]["difference"] == pytest.approx(4 / 3 - 0.5)
    assert found["none", "collision_polygon"]["difference"] == pytest.approx(1 / 3)
    assert "| reconpruner | 0.5 | 1.333 | 33.33 | 1 |" in table_of(ours)
    main([str(ours), str(theirs)])
    assert "l2_avg_to_t at 0.5 less none: +0.8333" in capsys.readouterr().out


def test_rows_of_one_run_are_compared_with_each_other(tmp_path, capsys) -> None:
    rows = {("none", 0.0, 0): [1.0] * 4, ("reconpruner", 0.5, 0): [2.0] * 4, ("uniform", 0.5, 0): [1.5] * 4}
    folder = str(_run(tmp_path / "a", rows))
    main([folder, folder, "--pruner", "uniform"])
    said = capsys.readouterr().out
    assert "less none: +0.5000" in said and "less reconpruner: -0.5000" in said and "less uniform" not in said


def test_an_interval_that_ends_at_zero_is_not_clear_of_it() -> None:
    assert is_clear([0.1, 0.2]) and is_clear((-0.2, -0.1))
    assert not any(map(is_clear, ([-0.1, 0.1], [0.0, 0.1], [1e-12, 0.1], [-0.1, -1e-12])))


def test_runs_of_different_samples_are_refused(tmp_path) -> None:
    row = {("reconpruner", 0.5, 0): [1.0] * 4}
    with pytest.raises(ValueError, match="different samples"):
        compare(_run(tmp_path / "a", row), _run(tmp_path / "b", row, first=1))


def test_a_folder_without_a_finished_run_is_named(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path / "run"), str(tmp_path / "run")])
    assert "run: no finished run; make it with `fastdrive evaluate" in capsys.readouterr().err
