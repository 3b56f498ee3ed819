"""Errors that the training rooms share."""

from __future__ import annotations

from fastdrive_node.types import FastDriveError


class TrainingError(FastDriveError):
    """A training run that cannot go on; the text says why and what was kept."""
