"""The scenarios by name. A new one is a file here with a subclass of ``Scenario``, and an entry below."""

from fastdrive_sim.scenarios.base import ClosedLoopScenario, Scenario, SceneLog
from fastdrive_sim.scenarios.step_out import StepOutScenario

DEFAULT, CLOSED_LOOP = "default", "drive"
SCENARIOS: dict[str, Scenario] = {
    DEFAULT: Scenario(),
    "step-out": StepOutScenario(),
    CLOSED_LOOP: ClosedLoopScenario(),
}

__all__ = ["CLOSED_LOOP", "DEFAULT", "SCENARIOS", "Scenario", "SceneLog"]
