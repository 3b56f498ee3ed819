"""The page of a training run: what is on it, that it stands alone, and that nothing in a run's files can break it."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from fastdrive_node.cli import main
from fastdrive_training.reports.pruner_run.page import describe_kind, flatten, write_report
from fastdrive_training.reports.pruner_run.run_folder import ReportError, read_run
from fastdrive_training.reports.pruner_run.samples import read_samples
from fastdrive_training.reports.tiles import psnr, sample_tiles
from tests.training.reports.report_pages import Page, check_references, check_stands_alone
from tests.training.reports.run_folders import (
    RECIPE,
    curve,
    full_run,
    language_log,
    pruner_log,
    sample_arrays,
    write_run,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return full_run(tmp_path_factory.mktemp("runs") / "seed1")


@pytest.fixture(scope="module")
def page(folder) -> Page:
    return Page(write_report(folder).read_text())


def page_of(folder) -> Page:
    return Page(write_report(folder).read_text())


def test_the_page_stands_alone(page):
    check_stands_alone(page, ("data:image/webp;base64,",))
    styles = " ".join([page.text, *(value.get("style") or "" for _, value in page.tags)])
    assert "@import" not in styles and "url(http" not in styles


def test_ids_differ_and_references_have_their_targets(page):
    check_references(page)


def test_charts_and_pictures_say_what_they_show(page):
    charts = [attributes for attributes in page.all("svg") if attributes.get("role") == "img"]
    assert len(charts) == len(page.all("svg")) == 10
    assert len(page.all("title")) == 11 and len(page.all("desc")) == 10  # with the page's own title
    images = page.all("img")
    assert len(images) == 2 * 6 + 2 * 6 * 5
    alts = [attributes["alt"] for attributes in images]
    assert alts[0] == "Score map of the front left camera: 4 of 8 above zero, 4 foreground"
    assert "front: rebuilt foreground, PSNR: equal" in alts
    assert "total: 0.19 at 19, 0.02 at 1099." in page.text


def test_the_page_has_every_part(page, folder):
    for phrase in (
        "Healthy",
        "Fraction of tokens above zero",
        "Precision and recall of the scores",
        "Reconstructions",
        "37.5",
        "vla: models/tiny",
        "0.970",
        "random: 19.0%",
    ):
        assert phrase in page.text, phrase
    assert "missing" not in page.text


def test_the_rig_stands_as_on_the_vehicle(page):
    captions = [name for name in ("front left", "front", "front right", "back left", "back", "back right")]
    order = [attributes["alt"].split(" camera")[0].split("the ")[1] for attributes in page.all("img")[:6]]
    assert order == captions


@pytest.mark.usefixtures("undrawn")
def test_an_older_run_says_what_it_lacks(tmp_path):
    page = page_of(write_run(tmp_path / "old", pruner_log()))
    for name in ("recipe.yaml", "samples.npz", "curve.json", "figures.json"):
        assert f"The run has no {name}" in page.text or f"{name}: " in page.text
    assert not page.all("img") and "Loss" in page.text
    assert "Fraction of tokens above zero" in page.text


@pytest.mark.usefixtures("undrawn")
def test_a_vla_run_shows_its_curves_and_what_it_is(tmp_path):
    page = page_of(write_run(tmp_path / "language", language_log()))
    assert "A VLA's language model" in page.text and "Losses only" in page.text
    assert len(page.all("svg")) == 2 and "Score maps" not in page.text
    assert "text went from" in page.text
    tower = write_run(tmp_path / "tower", [{**entry, "dense": 1.0} for entry in language_log()])
    assert describe_kind(read_run(tower)).startswith("A VLA's vision tower")
    distilled = write_run(tmp_path / "distil", [{"step": 1, "total": 2.0}], recipe={"kind": "distil"})
    assert describe_kind(read_run(distilled)).startswith("Distillation that trains a ReconPruner")
    other = write_run(tmp_path / "other", [{"step": 1, "reward": 2}])
    assert "does not know" in describe_kind(read_run(other))


ATTACK, MARKS = '"><script>alert(1)</script><img src=x onerror=alert(1)>', "\x00\x1b\ud800\u202e$\\frac{1}"


@pytest.mark.usefixtures("undrawn")
def test_hostile_text_stays_text(tmp_path):
    arrays = sample_arrays(cameras=(ATTACK, "front"), names=(ATTACK,))
    recipe = {**RECIPE, ATTACK: ATTACK}
    figures = {ATTACK: ATTACK, "nested": {ATTACK: 1.0}}
    run = full_run(tmp_path / ATTACK.replace("/", ""), recipe=recipe, samples=arrays, figures=figures)
    page = page_of(run)
    assert not page.all("script") and all("onerror" not in attributes for _, attributes in page.tags)
    assert ATTACK in page.text


def test_hostile_names_of_columns_stay_text(tmp_path):
    log = [{"step": step, ATTACK + MARKS: 1.0 + step, MARKS: 2.0} for step in range(30)]
    page = page_of(write_run(tmp_path / "keys", log))
    assert not page.all("script") and "<script>" in page.text
    assert not {"\x00", "\x1b", "\ud800", "\u202e"} & set(page.text)


def test_numbers_of_any_size_can_be_drawn(tmp_path):
    log = pruner_log()
    for entry, value in zip(
        log, (1e308, -1e300, float("nan"), float("inf"), 10**400, 0, -5, None, "x", [1]), strict=False
    ):
        entry["total"] = value
    schedule = {"decoder_pretrain_steps": 10**30, "steps": -7}
    recipe = {**RECIPE, "schedule": schedule, "health": {"grace_steps": -(10**20)}}
    log[-1]["recall"], log[-1]["auroc"] = [1], 10**50
    assert "NaN" not in page_of(write_run(tmp_path / "run", log, recipe)).text


@pytest.mark.usefixtures("undrawn")
def test_one_camera_and_odd_pictures_can_be_shown(tmp_path):
    arrays = sample_arrays(cameras=("image_2",), names=("000001",), size=(3000, 2), grid=(3, 1))
    page = page_of(full_run(tmp_path / "run", samples=arrays))
    assert len(page.all("img")) == 6
    image = Image.open(io.BytesIO(base64.b64decode(page.all("img")[0]["src"].split(",")[1])))
    assert image.height <= 2000


def test_a_run_of_masks_is_compared_with_masks(tmp_path):
    samples = read_samples(full_run(tmp_path / "run") / "samples.npz")
    black = np.zeros_like(samples.fore)
    white = np.where(samples.foreground[..., None], 255, black).astype(np.uint8)
    samples = type(samples)(**{**vars(samples), "fore": white})
    assert sample_tiles(samples, masks=True)[0].rows[0].tiles[2].caption == "PSNR: equal"
    assert sample_tiles(samples)[0].rows[0].tiles[2].caption != "PSNR: equal"
    assert psnr(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8)) == 0


@pytest.mark.usefixtures("undrawn")
def test_precision_at_a_keep_ratio_follows_from_its_recall(tmp_path, page):
    desc = page.text[page.text.index("Precision against recall of held-out tokens") :][:400]
    assert "kept at 0.25, 0.5, 0.75: 68.4% at 0.9, 25.1% at 0.99" in desc  # 0.9 * 0.19 / 0.25
    other = write_report(full_run(tmp_path / "run", curve={**curve(), "step": 7})).read_text()
    assert "kept at 0.25" not in other  # the recall is of another step


@pytest.mark.usefixtures("undrawn")
def test_a_curve_without_points_is_no_chart(tmp_path):
    empty = {**curve(), "precision": [], "recall": []}
    assert "Precision against recall" not in page_of(full_run(tmp_path / "run", curve=empty)).text


def test_the_same_run_gives_the_same_page(folder, page, tmp_path):
    assert write_report(folder, tmp_path / "again.html").read_text() == (folder / "report.html").read_text()


def test_figures_become_rows():
    rows = flatten({"a": 1234, "b": {"0.5": 0.123456789}, "c": None, "d": "x" * 900, "e": [1, 2], "f": float("nan")})
    assert rows == [("a", "1,234"), ("b.0.5", "0.12346"), ("c", "none"), ("d", "x" * 200)]
    deep = {}
    for _ in range(300):
        deep = {"key": deep}
    assert flatten(deep) == []


@pytest.mark.usefixtures("undrawn")
def test_a_cut_off_last_line_is_left_out_and_told(tmp_path):
    run = write_run(tmp_path / "run", pruner_log())
    with open(run / "log.jsonl", "a") as log:
        log.write('{"step": 2000, "pha')
    assert len(read_run(run).log) == len(pruner_log())
    assert "The last line of log.jsonl is cut off" in page_of(run).text


def test_an_earlier_start_in_the_same_log_is_left_out(tmp_path):
    run = read_run(write_run(tmp_path / "run", language_log(800) + language_log(300)))
    assert [entry["step"] for entry in run.log] == list(range(50, 301, 50))
    assert run.notes == ("16 lines of log.jsonl are of an earlier start of the run and left out.",)


def put(name: str, content: str | bytes):
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def samples(**changes):
    def write(folder):
        arrays = {**sample_arrays(), **changes}
        np.savez(folder / "samples.npz", **{key: value for key, value in arrays.items() if value is not None})

    return write


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "log.jsonl").unlink(), "log.jsonl: missing"),
        (put("log.jsonl", ""), "log.jsonl: empty"),
        (put("log.jsonl", " \n\n"), "log.jsonl: empty"),
        (put("log.jsonl", '{"step": 1}\nxx\n{"step": 2}\n'), "log.jsonl: line 2 is no JSON object"),
        (put("log.jsonl", "[1]\n"), "log.jsonl: line 1 is no JSON object"),
        (put("log.jsonl", '{"step": 1.5}\n'), "log.jsonl: line 1 is no JSON object with a whole number `step`"),
        (put("log.jsonl", '{"step": tru'), "log.jsonl: line 1 is no JSON object"),
        (put("log.jsonl", b"\xff\xfe\x00"), "log.jsonl: not UTF-8"),
        (put("log.jsonl", '{"step": ' + "[" * 100_000), "log.jsonl: line 1 is no JSON object"),
        (put("recipe.yaml", "a: [1"), "recipe.yaml: no valid YAML"),
        (put("recipe.yaml", "- 1"), "recipe.yaml: no mapping of keys"),
        (put("recipe.yaml", "x" * 2_000_000), "recipe.yaml: 2000000 bytes"),
        (put("figures.json", "{"), "figures.json: no valid JSON"),
        (put("curve.json", "[]"), "curve.json: no JSON object"),
        (
            put("curve.json", json.dumps({**curve(), "recall": [0.5]})),
            "curve.json: precision has 50 values and recall 1",
        ),
        (put("curve.json", json.dumps({**curve(), "recall": "x"})), "curve.json: recall must be a list"),
        (
            put("curve.json", json.dumps({**curve(), "recall": [7] * 50})),
            "curve.json: recall must hold numbers in 0..1",
        ),
        (put("samples.npz", b"no archive"), "samples.npz: no readable archive"),
        (samples(scores=None), "samples.npz: scores is missing"),
        (samples(scores=np.full((2, 6, 2, 4), np.nan, np.float32)), "samples.npz: scores holds values that are no"),
        (
            samples(fore=np.zeros((2, 6, 28, 50, 3), np.uint8)),
            "samples.npz: fore is uint8 [2, 6, 28, 50, 3], not uint8",
        ),
        (samples(images=np.zeros((2, 6, 28, 56, 3), np.float64)), "samples.npz: images is float64"),
        (samples(cameras=np.array(["a"])), "samples.npz: images is uint8 [2, 6, 28, 56, 3], not uint8 [2, 1, any"),
        (samples(names=np.array([{"a": 1}, 2], dtype=object)), "samples.npz: "),
        (samples(names=np.zeros(0, "U1")), "samples.npz: names is"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, capsys, damage, message):
    folder = full_run(tmp_path / "run")
    damage(folder)
    assert main(["train-report", str(folder)]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "Traceback" not in error
    assert not (folder / "report.html").exists()


class Trap:
    """Creates a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_among_the_samples_is_not_loaded(tmp_path):
    folder = full_run(tmp_path / "run")
    samples(names=np.array([Trap(str(tmp_path / "sprung")), 1], dtype=object))(folder)
    with pytest.raises(ReportError, match="samples"):
        read_run(folder)
    assert not (tmp_path / "sprung").exists()


def test_a_folder_that_is_none_is_refused(tmp_path, capsys):
    assert main(["train-report", str(tmp_path / "nothing")]) == 1
    assert "nothing: no such folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["train-report", str(tmp_path / "empty")]) == 1
    assert "log.jsonl: missing" in capsys.readouterr().err


def test_the_command_writes_where_it_is_told(tmp_path, capsys):
    folder = write_run(tmp_path / "run", [{"step": 1}])
    target = tmp_path / "pages" / "seed1.html"
    assert main(["train-report", str(folder), "--out", str(target)]) == 0
    assert target.read_text().startswith("<!DOCTYPE html>") and str(target) in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["train-report", str(folder), "--out", str(tmp_path / "file" / "x.html")]) == 1
    assert "give another file with --out" in capsys.readouterr().err
    assert main(["train-report", str(folder), "--out", str(tmp_path)]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pages", "run"]
    with pytest.raises(SystemExit) as caught:
        main(["train-report", "--help"])
    assert caught.value.code == 0 and "fastdrive train-report runs/recon_tiny" in capsys.readouterr().out
