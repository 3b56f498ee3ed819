"""Rows of several run folders in one table: seeds and controls of a pruner, and what the figures say of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.studies.pruner_seeds import compare, main, parse_base, parse_row
from benchmarks.studies.run_rows import NamedRow, RunRow
from tests.benchmarks.test_paired_runs import _run

L2, HITS = "l2_avg_to_t", "collision_any"
BASE: dict[tuple[str, float, int], Sequence[float | None]] = {
    ("none", 0.0, 0): [0.5] * 4,
    ("constant-velocity", 0.0, 0): [4.0] * 4,
    ("random", 0.5, 0): [1.5, 1.5, 1.5, 1.5],
    ("random", 0.5, 1): [2.5, 2.5, 2.5, None],
    ("coverage", 0.5, 0): [0.9, 0.9, 0.9, 0.9],
    ("oracle", 0.5, 0): [0.1] * 4,
    ("reconpruner-plan", 0.5, 0): [3.0] * 4,
}
OURS = "reconpruner-plan"


def about(run: Path, **fields: str) -> Path:
    """The folder with these fields in its run.json."""
    known = {"dataset": "/data/sim_test", "samples": "s", "vla": "v", "dtype": "torch.float32"}
    (run / "run.json").write_text(json.dumps({**known, **fields}))
    return run


def base(folder: Path, **changed: Sequence[float | None]) -> Path:
    return about(_run(folder, {**BASE, **{key: changed[key[0]] for key in BASE if key[0] in changed}}))


def seed(folder: Path, errors: Sequence[float | None], file: str = "", **fields: str) -> Path:
    return about(_run(folder, {("reconpruner", 0.5, 0): errors}), pruner=file or folder.name, **fields)


def row(name: str, *runs: Path) -> NamedRow:
    return NamedRow(name, tuple(RunRow(run, "reconpruner") for run in runs))


@pytest.fixture
def seeds(tmp_path) -> list[Path]:
    errors = [0.8, 0.8, 0.8, 1.2], [1.0, 1.0, None, 1.0], [0.6, 0.6, 0.6, 0.8]
    return [seed(tmp_path / f"plan_{place}", each) for place, each in enumerate(errors)]


def figures_of(found: dict, pruner: str, drop: float = 0.5) -> dict:
    (figures,) = [each for each in found["rows"] if (each["pruner"], each["drop"]) == (pruner, drop)]
    return figures


def place_of(found: dict, figure: str = L2) -> dict:
    (one,) = [each for each in found["verdicts"] if each["figure"] == figure]
    return one


def test_a_row_is_the_mean_of_its_seeds(tmp_path, seeds):
    found = compare([(base(tmp_path / "base"), ())], [row(OURS, *seeds)], OURS)
    ours = figures_of(found, OURS)
    assert ours["seeds"] == 3 and ours["refused"] == pytest.approx(1 / 3)
    assert ours[L2] == pytest.approx((0.9 + 1.0 + 0.65) / 3)
    assert ours["l2_of_seeds"] == pytest.approx([0.65, 1.0])
    assert ours[HITS] == pytest.approx(0.25 / 3) == ours["off_drivable"]
    by_sample = [0.8, 0.8, 0.7, 1.0]  # over the seeds that answered it
    assert ours["relative_l2"] == pytest.approx(0.5 * 4 / sum(by_sample))
    assert "less_ours" not in ours and "relative_l2" not in figures_of(found, "none", 0.0)
    less = figures_of(found, "coverage")["less_ours"][L2]
    assert less[0] == pytest.approx(0.9 - sum(by_sample) / 4) and less[1] < less[0] < less[2]
    assert figures_of(found, "random")["l2_of_seeds"] == pytest.approx([1.5, 2.5])
    order = ["none", "coverage", "oracle", "random", OURS, "constant-velocity"]
    assert list(found["sources"]) == order, "a row of the base is replaced by that of the same name"
    assert found["sources"][OURS] == ["plan_0:reconpruner", "plan_1:reconpruner", "plan_2:reconpruner"]
    assert (found["dataset"], found["samples"], found["scenes"]) == ("sim_test", 4, 2)


@pytest.mark.parametrize(
    ("coverage", "place", "ahead"),
    [
        ([0.9, 0.9, 0.9, 0.9], "first", []),
        ([0.5, 1.0, 0.4, 1.2], "within", []),
        ([0.7, 0.7, 0.6, 0.9], "behind", ["coverage"]),
    ],
)
def test_the_place_among_the_ranked(tmp_path, seeds, coverage, place, ahead):
    found = compare([(base(tmp_path / "base", coverage=coverage), ())], [row(OURS, *seeds)], OURS)
    one = place_of(found)
    assert (one["place"], one["ahead"], one["best_other"]) == (place, ahead, "coverage")
    assert found["unranked"] == ["oracle"], "it knows the ground truth"
    if place == "behind":
        low, high = one["less_best_other"][1:]
        assert one["less_best_other"][0] == pytest.approx(0.1) and 0 < low <= high
    unranked = compare([(tmp_path / "base", ())], [row(OURS, *seeds)], OURS, ["coverage"])
    assert place_of(unranked)["best_other"] == "random" and place_of(unranked)["place"] == "first"


def test_a_row_that_is_ahead_clear_of_zero_is_enough_to_be_behind(tmp_path, seeds):
    """Though the best one is not clear of zero."""
    base(tmp_path / "base", coverage=[0.1, 0.1, 0.1, 1.5])
    control = seed(tmp_path / "bias", [0.75, 0.75, 0.65, 0.95])
    found = compare([(tmp_path / "base", ())], [row(OURS, *seeds), row("bias", control)], OURS)
    one = place_of(found)
    assert (one["place"], one["best_other"], one["ahead"]) == ("behind", "coverage", ["bias"])


def test_a_row_that_refuses_the_hard_sample_is_not_the_best(tmp_path, seeds):
    """Its mean over what it answered is the lowest, and it is behind in the samples that both answered."""
    base(tmp_path / "base", coverage=[0.82, 0.82, 0.75, None])
    one = place_of(compare([(tmp_path / "base", ())], [row(OURS, *seeds)], OURS))
    assert (one["place"], one["best_other"]) == ("first", "coverage")
    assert one["less_best_other"][0] == pytest.approx((0.8 + 0.8 + 0.7 - 0.82 - 0.82 - 0.75) / 3)
    control = seed(tmp_path / "bias", [0.79, 0.79, 0.75, 0.95])
    one = place_of(compare([(tmp_path / "base", ())], [row(OURS, *seeds), row("bias", control)], OURS))
    assert (one["place"], one["best_other"], one["ahead"]) == ("within", "bias", [])


def test_better_than_random_only_where_the_interval_is_clear_of_zero(tmp_path, seeds):
    base(tmp_path / "base")
    one = place_of(compare([(tmp_path / "base", ())], [row(OURS, *seeds)], OURS))
    assert one["better_than_random"] and one["less_random"][0] == pytest.approx(
        ((0.8 + 0.8 + 0.7) - 6.0 + 1.0 - 1.5) / 4
    )
    assert one["less_whole"][0] == pytest.approx(3.3 / 4 - 0.5)
    level = seed(tmp_path / "level", [4.0, 0.1, 2.0, 0.1])
    one = place_of(compare([(tmp_path / "base", ())], [row(OURS, level)], OURS))
    difference, low, high = one["less_random"]
    assert not one["better_than_random"] and low < difference < 0 < high


def test_named_pruners_of_a_base_are_all_that_is_taken(tmp_path, seeds):
    folder = base(tmp_path / "base")
    found = compare([(folder, ["random", "none"])], [row(OURS, *seeds)], OURS)
    assert list(found["sources"]) == ["none", "random", OURS]
    other = about(_run(tmp_path / "more", {("dart", 0.5, 0): [1.0] * 4, ("none", 0.0, 0): [9.0] * 4}))
    with pytest.raises(ValueError, match="the row none is there twice; name the pruners"):
        compare([(folder, ()), (other, ())], [row(OURS, *seeds)], OURS)
    assert "dart" in compare([(folder, ()), (other, ["dart"])], [row(OURS, *seeds)], OURS)["sources"]


@pytest.mark.parametrize("field", ["vla", "samples", "dtype", "dataset"])
def test_runs_of_another_evaluation_are_refused(tmp_path, field):
    """Night has the sample tokens of the day, and another VLA has those of this one."""
    other = seed(tmp_path / "other", [1.0] * 4, **{field: "another"})
    with pytest.raises(ValueError, match=f"other/run.json: {field} is not that of .*base"):
        compare([(base(tmp_path / "base"), ())], [row(OURS, other)], OURS)


def test_the_same_dataset_may_lie_elsewhere(tmp_path):
    other = seed(tmp_path / "other", [1.0] * 4, dataset="/mnt/sim_test")
    assert compare([(base(tmp_path / "base"), ())], [row(OURS, other)], OURS)["dataset"] == "sim_test"


def test_runs_of_other_samples_and_rows_that_are_cut_off_are_refused(tmp_path):
    base(tmp_path / "base")
    other = about(_run(tmp_path / "other", {("reconpruner", 0.5, 0): [1.0] * 4}, first=1))
    for run in (other, seed(tmp_path / "short", [1.0] * 3)):
        with pytest.raises(ValueError, match="different samples, or one is not finished; evaluate both with the same"):
            compare([(tmp_path / "base", ())], [row(OURS, run)], OURS)


def test_one_pruner_file_is_not_two_seeds(tmp_path, seeds):
    base(tmp_path / "base")
    twin = seed(tmp_path / "twin", [1.0] * 4, file="plan_0")
    for runs in ((seeds[0], twin), (seeds[0], seeds[0])):
        with pytest.raises(ValueError, match="two of its seeds are evaluations of one pruner file"):
            compare([(tmp_path / "base", ())], [row(OURS, *runs)], OURS)


def test_seeds_without_a_file_may_lie_beside_one_pruner_file(tmp_path, seeds):
    base(tmp_path / "base")
    pairs = [about(_run(tmp_path / str(n), {("random", 0.5, n): [1.0 + n] * 4}), pruner="one file") for n in (0, 1)]
    rows = [row(OURS, *seeds), NamedRow("random", tuple(RunRow(run, "random") for run in pairs))]
    assert figures_of(compare([(tmp_path / "base", ())], rows, OURS), "random")["seeds"] == 2


@pytest.mark.parametrize("name", ["reconpruner-plan", "reconpruner-plan-pooled", "reconpruner-lite"])
def test_a_file_of_its_own_tells_seeds_apart(tmp_path, name):
    """Such a name does not read the file of the run."""
    base(tmp_path / "base")

    def seeds(*files: str) -> NamedRow:
        runs = [tmp_path / f"{place}_{len(files)}_{file}" for place, file in enumerate(files)]
        for run, file in zip(runs, files, strict=True):
            about(_run(run, {(name, 0.5, 0): [1.0] * 4}), pruner="one file", **{f"file of {name}": file})
        return NamedRow(name, tuple(RunRow(run, name) for run in runs))

    found = compare([(tmp_path / "base", ())], [seeds("a", "b")], name)
    assert figures_of(found, name)["seeds"] == 2
    with pytest.raises(ValueError, match=f"{name}: two of its seeds are evaluations of one pruner file"):
        compare([(tmp_path / "base", ())], [seeds("c", "c", "d")], name)


def test_a_ratio_that_one_seed_lacks_is_named(tmp_path, seeds):
    more = {**BASE, ("random", 0.75, 0): [1.0] * 4}
    folder = about(_run(tmp_path / "base", more))
    longer = {("reconpruner", drop, 0): [1.0] * 4 for drop in (0.5, 0.75)}
    both = about(_run(tmp_path / "both", longer), pruner="another file")
    with pytest.raises(ValueError, match=f"{OURS}: plan_0:reconpruner lacks the ratio 0.75 of another seed"):
        compare([(folder, ())], [row(OURS, both, seeds[0])], OURS)


def test_rows_that_are_missing_are_named(tmp_path, seeds):
    folder = base(tmp_path / "base")
    with pytest.raises(ValueError, match="plan_0: has no row dart, only reconpruner"):
        compare([(folder, ())], [NamedRow(OURS, (RunRow(seeds[0], "dart"),))], OURS)
    for chosen, ours, absent in ((("none",), OURS, "random"), ((), "x", "x")):
        with pytest.raises(ValueError, match=f"no row {absent}; name it with --row"):
            compare([(folder, chosen)], [row(OURS, seeds[0])], ours)
    other = about(_run(tmp_path / "other", {("reconpruner", 0.75, 0): [1.0] * 4}))
    with pytest.raises(ValueError, match=r"bias: has 0.75 and reconpruner-plan 0.5; evaluate it at these ratios"):
        compare([(folder, ())], [row(OURS, seeds[0]), row("bias", other)], OURS)


def test_the_command_prints_tables_and_writes_a_summary(tmp_path, seeds, capsys):
    folder = base(tmp_path / "base")
    sources = ",".join(f"{run}:reconpruner" for run in seeds)
    arguments, out = ["--base", str(folder), "--row", f"{OURS}={sources}", "--ours", OURS], tmp_path / "new/seeds.json"
    main([*arguments, "--json", str(out)])
    said, text = capsys.readouterr().out, out.read_text()
    assert f"| {OURS} | 3 | 0.850 (0.650 to 1.000) / 8.33 / 8.3 | 60.6 |" in said
    assert "| 0.5 | L2 [m] | 0.850 | first | coverage 0.900 | -0.075" in said
    assert text.count('{"pruner": ') == 6 and text.count('{"drop": ') == 3, "each row has a line of its own"
    assert str(tmp_path) not in text
    with pytest.raises(SystemExit):
        main([*arguments, "--unranked", "dart"])
    assert "error: no row dart; name it with --row" in capsys.readouterr().err


def test_what_is_written_on_the_command_line(capsys):
    assert parse_base("runs/wide") == (Path("runs/wide"), [])
    assert parse_base("runs/wide:none,random") == (Path("runs/wide"), ["none", "random"])
    assert parse_row("a=runs/x:dart") == NamedRow("a", (RunRow(Path("runs/x"), "dart"),))
    for text in ("a", "a=runs/x", "=runs/x:dart", "a=runs/x:dart,"):
        with pytest.raises(SystemExit):
            main(["--base", "b", "--ours", "a", "--row", text])
        assert f"{text!r}: write NAME=RUN:PRUNER" in capsys.readouterr().err
