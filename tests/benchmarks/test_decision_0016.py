"""Decision 0016 holds the committed figures and claims no more than they say."""

from __future__ import annotations

import json

from benchmarks import RESULTS, ROOT

PAGE = (ROOT / "docs/decisions/0016-three-trainings-and-pooled-cells.md").read_text(encoding="utf-8")
TEXT = " ".join(PAGE.split())
REAR = ("CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT")


def test_kept_tokens_by_camera_are_the_committed_ones():
    rows = json.loads((RESULTS / "kept_by_camera.json").read_text())["rows"]
    shown = PAGE.split("<!-- kept -->")[1].split("<!-- end of kept -->")[0].strip().splitlines()[2:]
    assert len(shown) == 5
    for line in shown:
        pruner, drop, *figures = (cell.strip() for cell in line.strip("|").split("|"))
        row = next(row for row in rows if (row["pruner"], row["drop"]) == (pruner, float(drop)))
        front = [row[name] for name in ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT")]
        assert figures == [f"{each:.1f}" for each in (*front, sum(row[name] for name in REAR))]
