"""Where the shipped models lie, and a pipeline made from what a user gives."""

from __future__ import annotations

from pathlib import Path

import torch

from fastdrive_node.engines.language_engine import LanguageChoice, drop_language_weights, open_language_engine
from fastdrive_node.engines.vision_engine import EngineChoice, EnginePruner, open_engine
from fastdrive_node.errors import InputError, ModelError
from fastdrive_node.families.loading import load_vla
from fastdrive_node.families.spec import SPEC_FILE
from fastdrive_node.files import package_share_file
from fastdrive_node.planning.checks import PlanLimits
from fastdrive_node.planning.pipeline import Pipeline
from fastdrive_node.pruning.baselines import make_pruner
from fastdrive_node.pruning.checkpoint import load_calibration
from fastdrive_node.pruning.score_options import ScoreOptions

SHIPPED_VLA = "models/tiny"
SHIPPED_PRUNER = "reconpruner.safetensors"
DEFAULT_DROP = 0.5


def default_vla_dir() -> Path:
    """The shipped tiny VLA: ``models/tiny`` of a checkout, or ``share/fastdrive_node/models/tiny`` of an installation.

    Raises:
        ModelError: neither is there.
    """
    try:
        return package_share_file(f"{SHIPPED_VLA}/{SPEC_FILE}").parent
    except InputError as error:
        raise ModelError(f"the shipped VLA is not installed ({error}); or give a VLA directory with --vla") from error


def open_pipeline(
    vla_dir: str | Path | None = None,
    pruner_file: str | Path | None = None,
    drop: float | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    engine: EngineChoice | None = None,
    scores: ScoreOptions | None = None,
    language_engine: LanguageChoice | None = None,
    limits: PlanLimits | None = None,
) -> Pipeline:
    """A pipeline from files.

    Args:
        vla_dir: None for the shipped tiny VLA.
        pruner_file: None for ``reconpruner.safetensors`` in the VLA directory, where it is.
        drop: pruning ratio p in [0, 1); None for 0.5 with a pruner and 0 without.
        engine: what runs encoder and pruner; None for torch. An engine holds its pruner, and the pruner file, where it
            is, must be the one that the engine was built with.
        scores: what is done with the pruner's scores; a calibration is read from the pruner file.
        language_engine: what runs the language model; None for torch.
        limits: of plans; None for the defaults.

    Raises:
        ModelError: a model or engine cannot be used, ``drop`` is above 0 or score options are on without a pruner, or
            they need a calibration that the pruner file lacks.
        InputError: ``drop`` is out of range.
    """
    vla_dir = default_vla_dir() if vla_dir is None else Path(vla_dir)
    vla = load_vla(vla_dir, device, dtype)
    if pruner_file is None and (vla_dir / SHIPPED_PRUNER).is_file():
        pruner_file = vla_dir / SHIPPED_PRUNER
    calibration = None
    if scores is not None and scores.needs_calibration and pruner_file is not None:
        calibration = load_calibration(pruner_file)
    language = None
    if language_engine is not None:
        language = open_language_engine(language_engine, vla)
        drop_language_weights(vla)  # the engine has its own
    if engine is not None:
        vision = open_engine(engine, vla, pruner_file)
        vla.model.model.visual = None  # the engine has its own
        least = 1 - vision.max_keep / vla.tokens
        drop = max(DEFAULT_DROP, least) if drop is None else drop
        return Pipeline(vla, EnginePruner(vision), drop, vision, limits, scores, calibration, language)
    if pruner_file is not None:
        pruner = make_pruner("reconpruner", vla, pruner_file)
        drop = DEFAULT_DROP if drop is None else drop
        return Pipeline(vla, pruner, drop, limits=limits, scores=scores, calibration=calibration, language=language)
    if drop:
        raise ModelError(
            f"drop {drop:g} needs a pruner, and {vla_dir} has no {SHIPPED_PRUNER}; give --pruner FILE or --drop 0"
        )
    if scores is not None and scores.active:
        raise ModelError(
            f"calibrated_scores, keep_threshold, temporal_change, temporal_memory: need a pruner, and {vla_dir} has no "
            f"{SHIPPED_PRUNER}; give a pruner file or turn them off"
        )
    return Pipeline(vla, limits=limits, language=language)
