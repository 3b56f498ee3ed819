"""What plans: model, pruner, engines and device, with short fingerprints, for the diagnostics."""

from __future__ import annotations

import time

import torch

from fastdrive_node.devices import device_name
from fastdrive_node.engines.language_engine import EngineLanguage
from fastdrive_node.engines.vision_engine import EngineVision
from fastdrive_node.families.fingerprint import directory_fingerprint, pruner_fingerprint
from fastdrive_node.planning.loading import own_file
from fastdrive_node.planning.pipeline import Pipeline
from fastdrive_node.pruning.catalog import VARIANTS
from fastdrive_node.pruning.score_pruner import RefinedPruner

SHORT = 12  # digits of a fingerprint
FREE_EVERY_S = 1.0  # asking the driver for free memory may take milliseconds


class Identity:
    """Key and value of everything that a pipeline was made of.

    Args:
        pruner: as the user gave it: a file, a name, or empty.

    Raises:
        ModelError: a file that was loaded can no longer be read.
    """

    def __init__(self, pipeline: Pipeline, pruner: str):
        self._pipeline = pipeline
        self._fixed = _fixed(pipeline, pruner)
        self._free = (0.0, 0)  # when it was asked for, and bytes

    def __call__(self) -> dict[str, str]:
        values = {**self._fixed, "drop": f"{self._pipeline.drop:g}"}
        if self._pipeline.vla.device.type == "cuda":
            values["gpu_memory_mb"] = f"{torch.cuda.memory_allocated() / 1e6:.0f}"
            values["gpu_memory_reserved_mb"] = f"{torch.cuda.memory_reserved() / 1e6:.0f}"
            values["gpu_memory_free_mb"] = f"{self._free_bytes() / 1e6:.0f}"
        return values

    def _free_bytes(self) -> int:
        if time.monotonic() - self._free[0] > FREE_EVERY_S:
            self._free = time.monotonic(), torch.cuda.mem_get_info(self._pipeline.vla.device)[0]
        return self._free[1]


def _fixed(pipeline: Pipeline, pruner: str) -> dict[str, str]:
    vla, name = pipeline.vla, pipeline.pruner.name
    values = {
        "vla": str(vla.path),
        "vla_fingerprint": directory_fingerprint(vla.path)[:SHORT],
        "encoder_fingerprint": vla.encoder_fingerprint[:SHORT],
        "pruner": name if pruner in ("", name) else f"{name} {pruner}",
        "device": vla.device.type,
        "dtype": str(vla.dtype).removeprefix("torch."),
        "torch": str(torch.__version__),  # itself it is a class of torch, which the node would import to read it
    }
    file = own_file(vla.path, pruner or name)
    if name in ("reconpruner", "tokenpacker", *VARIANTS) and file is not None and file.is_file():
        values["pruner_fingerprint"] = pruner_fingerprint(file)[:SHORT]
    if isinstance(pipeline.vision, EngineVision):
        values |= pipeline.vision.identity()
    if isinstance(pipeline.generator.language, EngineLanguage):
        values |= pipeline.generator.language.identity()
    values |= _score_options(pipeline)
    if pipeline.camera_floor.least:
        values["camera_floor"] = str(pipeline.camera_floor.least)
    if vla.device.type == "cuda":
        values["gpu"] = device_name(vla.device)
    return values


def _score_options(pipeline: Pipeline) -> dict[str, str]:
    """Which options of the scores are on."""
    if not isinstance(pipeline.pruner, RefinedPruner):
        return {}
    options, calibration = pipeline.pruner.options, pipeline.pruner.calibration
    values = {}
    if calibration is not None:
        fit = calibration.fit
        values["calibration"] = f"{fit.dataset} {fit.split}, expected calibration error {fit.ece_after:.3f}"
    if options.keep_threshold:
        values["keep_threshold"] = f"{options.keep_threshold:g}, at least {options.k_min} tokens"
    if options.even_spacing:
        values["even_spacing"] = f"{options.even_spacing:g}"
    if options.pooled:
        values["pooled_cells"] = "true"
    if options.temporal is not None:
        terms = options.temporal
        values["temporal"] = f"change {terms.change:g}, memory {terms.memory:g}, up to {terms.max_gap_s:g} s"
    return values
