"""The expert's drives are plans that the node would publish."""

from __future__ import annotations

import numpy as np
import pytest

from fastdrive_node.geometry import to_parent_frame
from fastdrive_node.planning.checks import check_plan
from fastdrive_sim.scenarios import CLOSED_LOOP, SCENARIOS
from fastdrive_sim.sim import Simulation

POINTS, HZ = 6, 2.0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scenario", sorted({*SCENARIOS} - {CLOSED_LOOP}))
def test_the_experts_futures_pass_the_plan_checks_as_they_are_and_rounded(scenario, seed):
    poses = [snapshot.ego for snapshot in Simulation(seed, 20.0, scenario).run(hz=HZ)]
    assert len(poses) > 30
    for start in range(len(poses) - POINTS):
        now = poses[start]
        points = np.array([(pose.x - now.x, pose.y - now.y) for pose in poses[start + 1 : start + 1 + POINTS]])
        plan = to_parent_frame(points, 0.0, 0.0, -now.yaw)
        check_plan(plan, 1 / HZ, now.speed)
        check_plan(np.round(plan, 1), 1 / HZ, now.speed, rounding_m=0.05)
