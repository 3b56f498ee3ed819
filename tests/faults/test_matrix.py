"""A third of the fault matrix, on a live node that is reused from fault to fault."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")

from tests.faults.catalog import FAULTS
from tests.faults.harness import SCENES, Scenes
from tests.faults.matrix import line

QUICK = sorted((fault for fault in FAULTS if fault.quick), key=lambda fault: list(SCENES).index(fault.scene))


@pytest.fixture(scope="module")
def scenes(ros):
    made = Scenes(ros)
    yield made
    made.close()


@pytest.mark.parametrize("fault", QUICK, ids=lambda fault: fault.name.replace(" ", "_"))
def test_a_fault_has_its_mode_and_code_and_the_node_recovers(scenes, fault):
    attempts = 3 if fault.mode == "nominal" else 1  # a machine that stands still for a moment is a fault too
    for _ in range(attempts):
        measured = scenes.measure(fault)
        if not measured.problems:
            break
    assert not measured.problems, line(measured)


def test_readme_and_page_name_as_many_faults_as_there_are():
    root = Path(__file__).parents[2]
    assert f"lists {len(FAULTS)} injected faults" in (root / "README.md").read_text()
    page = (root / "docs" / "faults.md").read_text()
    assert f"from {len(FAULTS)} faults that were injected" in page
    assert all(f"| {fault.name} | " in page for fault in FAULTS)


def test_names_of_faults_are_unique():
    names = [(fault.group, fault.name) for fault in FAULTS]
    assert len(names) == len(set(names)) >= 120
