"""Calibrated scores: the probability that a token is foreground by its score, on each camera.

Platt scaling (Platt 1999; for networks Guo et al. 2017): ``logit(p) = scale * score + shift`` with two numbers for each
camera, so that a threshold on p means the same on all of them. The scale is above zero, so within a camera the order of
the tokens stays. ``fastdrive calibrate`` fits the numbers and writes them into the pruner file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from fastdrive_node.errors import ModelError
from fastdrive_node.validation import STRICT, parse_json

Name = Annotated[str, Field(max_length=200)]
Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=STRICT)
class CameraScale:
    """``logit(p) = scale * score + shift`` on one camera; ``scale`` above zero."""

    scale: Annotated[float, Field(gt=0, le=1e6)]
    shift: Annotated[float, Field(ge=-1e6, le=1e6)]


@dataclass(frozen=True, config=STRICT)
class FitRecord:
    """Where a calibration comes from; the errors are expected calibration errors on the data that it was fitted on."""

    dataset: Name  # name of its folder
    split: Name
    keyframes: Annotated[int, Field(ge=1, le=1 << 40)]
    ece_before: Fraction  # of sigmoid(score), over all cameras
    ece_after: Fraction


@dataclass(frozen=True, config=STRICT)
class Calibration:
    """By camera; of an encoder and pruner, as the file that holds it."""

    cameras: Annotated[dict[str, CameraScale], Field(min_length=1, max_length=64)]
    fit: FitRecord

    def require(self, cameras: Sequence[str]) -> None:
        """Raises ModelError where a camera has no calibration."""
        for camera in cameras:
            if camera not in self.cameras:
                known = ", ".join(self.cameras)
                raise ModelError(
                    f"calibration: {camera}: was not calibrated (there are {known}); run `fastdrive calibrate` on a "
                    "dataset with this camera"
                )

    def logits(self, scores: torch.Tensor, cameras: Sequence[str]) -> torch.Tensor:
        """Log odds that each token is foreground.

        Args:
            scores: [C, N], a camera of ``cameras`` a row.

        Returns:
            float32 [C, N] on the CPU, where every machine rounds alike.

        Raises:
            ModelError: a camera has no calibration.
        """
        self.require(cameras)
        pairs = [(self.cameras[camera].scale, self.cameras[camera].shift) for camera in cameras]
        scale, shift = torch.tensor(pairs, dtype=torch.float64).T[:, :, None]
        return (scale * scores.detach().double().cpu() + shift).float()

    def to_json(self) -> str:
        return _CALIBRATION.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """Raises ModelError where the text, which comes from a file, is no calibration."""
        return parse_json(_CALIBRATION, text, "calibration")


_CALIBRATION = TypeAdapter(Calibration)
