"""The cost curves, at a few points of the shipped VLA."""

from __future__ import annotations

import json

from benchmarks.studies import curves
from fastdrive_node.families.spec import default_vla_dir


def test_every_point_is_measured_with_what_its_curve_says(tmp_path, monkeypatch):
    few = {
        "kept_tokens": ("tokens", (10, 192)),
        "cameras": ("cameras", (1, 2)),
        "visual_tokens": ("tokens", (96,)),
        "answer_tokens": ("tokens", (3,)),
    }
    made = {}
    point = curves.implementation

    def noted(curve, value, *places):
        made[curve, value] = point(curve, value, *places)
        return made[curve, value]

    monkeypatch.setattr(curves, "implementation", noted)
    figures = curves.run(default_vla_dir(), 1, few)
    assert [made["kept_tokens", value].keep for value in (10, 192)] == [10, 192]
    assert [made["cameras", value].vla.tokens for value in (1, 2)] == [32, 64]
    assert made["visual_tokens", 96].vla.tokens == 96 and made["visual_tokens", 96].keep == 48
    assert made["answer_tokens", 3].forwards == 2
    for name, (_, values) in few.items():
        assert [row["at"] for row in figures["curves"][name]["rows"]] == list(values)
        assert all(row[stage] > 0 for row in figures["curves"][name]["rows"] for stage in (*curves.STAGES, "sum"))
    curves.draw(json.loads(json.dumps(figures)), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
