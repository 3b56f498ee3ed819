"""Calibrated scores: what a score says of the chance that its token is foreground, on each camera.

Platt scaling (Platt 1999; for networks Guo et al. 2017): ``logit(p) = scale * score + shift`` with two numbers for each
camera, so that a threshold on p means the same on all of them. The scale is above zero, so within a camera the order of
the tokens stays. ``fastdrive calibrate`` fits the numbers and writes them into the pruner file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import jsonschema
import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.families.spec import refuse_constant

_NUMBER = {"type": "number", "minimum": -1e6, "maximum": 1e6}
_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["cameras", "fit"],
    "properties": {
        "cameras": {
            "type": "object",
            "minProperties": 1,
            "maxProperties": 64,
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "required": ["scale", "shift"],
                "properties": {"scale": {**_NUMBER, "exclusiveMinimum": 0}, "shift": _NUMBER},
            },
        },
        "fit": {
            "type": "object",
            "additionalProperties": False,
            "required": ["dataset", "split", "keyframes", "ece_before", "ece_after"],
            "properties": {
                "dataset": {"type": "string", "maxLength": 200},
                "split": {"type": "string", "maxLength": 200},
                "keyframes": {"type": "integer", "minimum": 1, "maximum": 1 << 40},
                "ece_before": _SHARE,
                "ece_after": _SHARE,
            },
        },
    },
}


@dataclass(frozen=True)
class CameraScale:
    """``logit(p) = scale * score + shift`` on one camera; ``scale`` above zero."""

    scale: float
    shift: float


@dataclass(frozen=True)
class FitRecord:
    """Where a calibration comes from; the errors are expected calibration errors on the data that it was fitted on."""

    dataset: str  # name of its folder
    split: str
    keyframes: int
    ece_before: float  # of sigmoid(score), over all cameras
    ece_after: float


@dataclass(frozen=True)
class Calibration:
    """By camera; of an encoder and pruner, as the file that holds it."""

    cameras: dict[str, CameraScale]
    fit: FitRecord

    def require(self, cameras: Sequence[str]) -> None:
        """Raises ModelError where a camera has no calibration."""
        for camera in cameras:
            if camera not in self.cameras:
                known = ", ".join(self.cameras)
                raise ModelError(
                    f"calibration: {camera}: was not calibrated (there are {known}); run `fastdrive calibrate` on a "
                    "data set with this camera"
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
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """Raises ModelError where the text, which comes from a file, is no calibration."""
        try:
            content = json.loads(text, parse_constant=refuse_constant)
            jsonschema.validate(content, _SCHEMA)
        except (ValueError, RecursionError) as error:
            raise ModelError("calibration: not readable as JSON") from error
        except jsonschema.ValidationError as error:
            raise ModelError(f"calibration: {error.json_path}: {error.message[:200]}") from error
        return cls(
            {
                name: CameraScale(float(pair["scale"]), float(pair["shift"]))
                for name, pair in content["cameras"].items()
            },
            FitRecord(**content["fit"]),
        )
