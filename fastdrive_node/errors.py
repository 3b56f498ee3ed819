"""Every error that a user can see. The text is one line that names the field or file and how to fix it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastdrive_node.types import ModelOutput


class FastDriveError(Exception):
    """Base class: an error that is meant for the user, not for a traceback.

    Args:
        code: the reason for machines, like "plan.speed"; empty: the stage says it.
    """

    stage = "model"  # of the refusal that the node reports where a frame set ends in this error

    def __init__(self, *arguments: object, code: str = ""):
        super().__init__(*arguments)
        self.code = code


class InputError(FastDriveError):
    """Data from outside (a bag, an image, a message, a file) that cannot be used."""

    stage = "input"


class ImageError(InputError):
    """An image that cannot be decoded or has another type or size than expected."""

    stage = "image"


class FrameSetError(InputError):
    """A frame set whose cameras are not those of the VLA."""

    stage = "frames"


class EgoStateError(InputError):
    """Odometry or an ego history that cannot be used for a plan."""

    stage = "odometry"


class UsageError(InputError):
    """An argument of a command that is out of range; the command exits with 2."""


class ModelError(FastDriveError):
    """A VLA directory, pruner file or engine that cannot be used."""


class AnswerError(FastDriveError):
    """A model's answer that is not a plan. It is refused, never repaired."""

    stage = "answer"
    output: ModelOutput | None = None  # what the model wrote, where it ran


class PlannerError(FastDriveError):
    """The planner's process cannot plan: planner_starting, planner_hang, planner_exit, planner_down,
    gpu_out_of_memory."""

    stage = "planner"


class TrainingError(FastDriveError):
    """A training run that cannot continue; the text says why and what was kept."""


class SimError(FastDriveError):
    """A world, folder or renderer of the simulator that cannot be used."""


class ClusterError(FastDriveError):
    """A Ray cluster that cannot be joined, or a worker of it that failed or died. What is finished is kept."""
