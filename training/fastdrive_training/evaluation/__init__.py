"""Open-loop planning on a dataset: every pruner and ratio against the recorded future, in one harness.

A refused answer is counted and has no error: the figures are means over the answered samples of their row. The node
refuses the same answers: those outside of the grammar, and physically implausible plans.
"""

from fastdrive_training.evaluation.run import evaluate
from fastdrive_training.evaluation.samples import CONSTANT_VELOCITY, constant_velocity, other_scenes
from fastdrive_training.evaluation.settings import OpenLoopSettings, RowKey

__all__ = ["CONSTANT_VELOCITY", "OpenLoopSettings", "RowKey", "constant_velocity", "evaluate", "other_scenes"]
