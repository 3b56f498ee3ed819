"""The scenarios by name. A new one is a file here with a subclass of ``Scenario``, and an entry below."""

from fastdrive_sim.scenarios.base import Scenario, SceneLog
from fastdrive_sim.scenarios.step_out import StepOutScenario

DEFAULT = "default"
SCENARIOS: dict[str, Scenario] = {DEFAULT: Scenario(), "step-out": StepOutScenario()}

__all__ = ["DEFAULT", "SCENARIOS", "Scenario", "SceneLog"]
