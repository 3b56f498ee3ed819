"""Tables of seeds in pages."""

from __future__ import annotations

import json

import pytest

from benchmarks.studies import seed_tables
from benchmarks.studies.seed_tables import WRITER, complete, figures_table, pages, verdict_table
from benchmarks.studies.wide_table import FIGURES

L2, HITS, OFF = FIGURES


def figures(pruner: str, drop: float, l2: float, **more) -> dict:
    row = {"pruner": pruner, "drop": drop, "seeds": 1, "refused": 0.0, L2: l2, HITS: 0.014, OFF: 0.071}
    return {**row, "l2_of_seeds": [l2, l2], **more}


LESS = {L2: [0.01, 0.001, 0.02], HITS: [-0.02, -0.04, 0.0], OFF: [-0.03, -0.04, -1e-12]}
FOUND = {
    "ours": "plan",
    "rows": [
        figures("none", 0.0, 0.4144, refused=2.7),
        figures("random", 0.5, 0.474, relative_l2=0.8719, less_ours=LESS),
        figures("random", 0.75, 0.565, relative_l2=0.732, less_ours=LESS),
        figures("plan", 0.5, 0.435, relative_l2=0.958, seeds=3, l2_of_seeds=[0.431, 0.4404], refused=0.3),
        figures("plan", 0.75, 0.454, relative_l2=0.916, seeds=3, l2_of_seeds=[0.45, 0.46]),
    ],
    "verdicts": [
        {"drop": 0.5, "figure": HITS, "place": "behind", "best_other": "random", "ahead": ["random"]}
        | {"less_best_other": [0.0123, 0.0011, 0.02], "less_random": [0.0123, 0.0011, 0.02]}
        | {"better_than_random": False, "less_whole": [0.001, -0.01, 0.01]}
    ],
}
MARKS = "<!-- seeds_x {0}: written by {1} -->\n<!-- end of seeds_x {0} -->\n"


def test_figures_have_the_span_of_the_seeds_stars_and_refused_answers():
    assert figures_table(FOUND).splitlines() == [
        "| pruner | seeds | drop 0.5 | drop 0.75 | relative L2 [%] |",
        "| --- | --- | --- | --- | --- |",
        "| none | 1 | 0.414 / 1.40 / 7.1 (3) | | |",
        "| random | 1 | 0.474* / 1.40 / 7.1 | 0.565* / 1.40 / 7.1 | 87.2 / 73.2 |",
        "| plan | 3 | 0.435 (0.431 to 0.440) / 1.40 / 7.1 | 0.454 (0.450 to 0.460) / 1.40 / 7.1 | 95.8 / 91.6 |",
    ]


def test_the_verdict_says_by_how_much():
    assert verdict_table(FOUND).splitlines()[2] == (
        "| 0.5 | vehicles hit [%] | 1.40 | behind random | random 1.40 "
        "| +1.23* (+0.11 to +2.00) | no, +1.23* (+0.11 to +2.00) | +0.10 (-1.00 to +1.00) |"
    )


def test_the_caption_says_that_the_first_place_alone_is_not_significant():
    table, caption = verdict_table(FOUND).split("\n\n")
    assert "| better than random |" in table.splitlines()[0]
    assert "`first`: no other row is better in the mean, which alone is not significant." in " ".join(caption.split())


def test_a_page_is_written_between_its_marks(tmp_path):
    (tmp_path / "seeds_x.json").write_text(json.dumps(FOUND))
    page = f"# Before\n\n{MARKS.format('figures', WRITER)}\nbetween\n{MARKS.format('verdicts', WRITER)}after\n"
    done = complete(page, tmp_path)
    assert figures_table(FOUND) in done and verdict_table(FOUND) in done
    assert done.startswith("# Before\n\n<!--") and done.endswith("-->\nafter\n") and "\nbetween\n" in done
    assert complete(done, tmp_path) == done
    with pytest.raises(ValueError, match="the mark <!-- end of seeds_x figures --> is not found"):
        complete(page.replace("<!-- end of seeds_x figures -->", ""), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"seeds_x\.json"):
        complete(page, tmp_path / "elsewhere")


def test_pages_with_marks_are_found(tmp_path):
    marked = [tmp_path / name for name in ("docs/decisions/0016-seeds.md", "models/tiny_wide/README.md")]
    for page in (*marked, tmp_path / "docs/other.md"):
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(MARKS.format("figures", WRITER if page in marked else "another.py"))
    assert pages(tmp_path) == marked


def test_committed_pages_hold_the_committed_figures():
    assert pages(), f"no page has marks of {WRITER}"
    for page in pages():
        text = page.read_text(encoding="utf-8")
        assert complete(text) == text, f"{page}: python -m {seed_tables.__name__}"
