"""Where the shipped models are, and a pipeline made from what a user gives."""

from __future__ import annotations

from pathlib import Path

import torch

from fastdrive_node.engines.language_engine import LanguageChoice, open_language_engine
from fastdrive_node.engines.vision_engine import EngineChoice, open_engine, require_engines
from fastdrive_node.errors import ModelError
from fastdrive_node.families import LANGUAGE, PARTS, VISION, Vla, load_vla
from fastdrive_node.families.spec import default_vla_dir
from fastdrive_node.files import GEOMETRY_FILE, SHIPPED_PRUNER, TOKEN_PACKER_FILE, VIEW_WEIGHTS_FILE
from fastdrive_node.planning.checks import PlanLimits
from fastdrive_node.planning.pipeline import Pipeline
from fastdrive_node.pruning.catalog import FILES, NAMES, VARIANT_FILES, VARIANTS, ScoreOptions, reads_given_file
from fastdrive_node.pruning.checkpoint import check_pruner_file
from fastdrive_node.pruning.pruner import Pruner
from fastdrive_node.pruning.registry import BY_VIEW, make_pruner, with_options
from fastdrive_node.pruning.score_pruner import ScorePruner
from fastdrive_node.pruning.token_packer import check_packer_file


def open_pipeline(
    vla_dir: str | Path | None = None,
    pruner: str | Path | None = None,
    drop: float | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    engine: EngineChoice | None = None,
    scores: ScoreOptions | None = None,
    language_engine: LanguageChoice | None = None,
    limits: PlanLimits | None = None,
    drafts: bool = True,
    camera_floor: int = 0,
) -> Pipeline:
    """A pipeline from files.

    Args:
        vla_dir: None for the shipped tiny VLA.
        pruner: a name of ``pruning.registry``, or a ReconPruner's file; None for ``reconpruner.safetensors`` in the VLA
            directory, where it is, else no pruner. A name with a file of its own stands for this file.
        drop: pruning ratio p; None for ``Pipeline.default_drop``.
        engine: what runs vision encoder and ReconPruner; None for torch. An engine holds its pruner, and the pruner
            file, where it is, must be the one that the engine was built with.
        scores: what is done with ReconPruner's scores; a calibration is read from its file.
        language_engine: what runs the language model; None for torch.
        limits: what a plan may ask of the vehicle; None for the defaults.
        drafts, camera_floor: see ``Pipeline``.

    With engines of both parts on the CPU torch is left one thread in this process: little remains for it to do, and
    its waiting threads would take the cores from the engines.

    Raises:
        ModelError: a model or engine cannot be used, ``drop`` is above 0 or score options are on without a pruner, or
            they need a calibration that the pruner file lacks; or ``camera_floor`` cannot be kept.
        InputError: ``drop`` or ``camera_floor`` is out of range.
    """
    vla_dir = default_vla_dir() if vla_dir is None else Path(vla_dir)
    supplied = {part for part, choice in ((VISION, engine), (LANGUAGE, language_engine)) if choice is not None}
    vla = load_vla(vla_dir, device, dtype, PARTS - supplied)
    if supplied:
        require_engines(vla)
    name, file = name_and_file(vla_dir, pruner)
    _TorchThreads.give_back()  # an engine's session takes as many
    vision = None if engine is None else open_engine(engine, vla, file)
    language = None if language_engine is None else open_language_engine(language_engine, vla)
    if vision is not None and language is not None and vla.device.type == "cpu":
        _TorchThreads.spare()
    if vision is not None and name in ("none", "reconpruner") and pruner != "none":
        chosen = with_options(ScorePruner(None), scores, vla, file)  # the engine scores the tokens itself
    else:
        chosen = _torch_pruner(name, file, vla, scores)
    if drop and chosen.name == "none":
        cause = f"{vla_dir} has no {SHIPPED_PRUNER}" if pruner is None else "pruner none keeps every token"
        raise ModelError(f"drop {drop:g} needs a pruner, and {cause}; give another pruner or drop 0")
    return Pipeline(vla, chosen, drop, vision, limits, language, drafts, camera_floor)


class _TorchThreads:
    """Torch's threads in this process."""

    _spared: int | None = None  # how many it had before it was left one

    @classmethod
    def spare(cls) -> None:
        cls._spared = torch.get_num_threads()
        torch.set_num_threads(1)

    @classmethod
    def give_back(cls) -> None:
        if cls._spared is not None and torch.get_num_threads() == 1:  # nobody has set them since
            torch.set_num_threads(cls._spared)
        cls._spared = None


def name_and_file(vla_dir: Path, pruner: str | Path | None) -> tuple[str, Path | None]:
    """A pruner's name, and the file of a ReconPruner."""
    shipped = vla_dir / SHIPPED_PRUNER
    if pruner is None:
        return ("reconpruner", shipped) if shipped.is_file() else ("none", None)
    if str(pruner) in FILES:
        return "reconpruner", vla_dir / FILES[str(pruner)]
    if str(pruner) in VARIANT_FILES:
        return str(pruner), vla_dir / VARIANT_FILES[str(pruner)]
    if str(pruner) in NAMES:
        return str(pruner), shipped if shipped.is_file() else None
    return "reconpruner", Path(pruner)


def own_file(vla_dir: Path, pruner: str) -> Path | None:
    """The file that the choice of a pruner depends on, there or not; None for those that have none.

    Args:
        pruner: a name of ``pruning.registry``, or a ReconPruner's file.
    """
    if pruner in BY_VIEW:
        return vla_dir / VIEW_WEIGHTS_FILE
    if pruner == "ring-view":
        return vla_dir / GEOMETRY_FILE
    if pruner == "tokenpacker":
        return vla_dir / TOKEN_PACKER_FILE
    if reads_given_file(pruner):
        return vla_dir / SHIPPED_PRUNER
    own = pruner in FILES or pruner in VARIANT_FILES or pruner not in NAMES
    return name_and_file(vla_dir, pruner)[1] if own else None


def check_pruner(vla: Vla, pruner: str, scores: ScoreOptions | None = None) -> None:
    """See, without its weights, that a pruner can serve a VLA.

    Args:
        vla: its weights need not be loaded (``families.read_vla``).
        pruner: a name of ``pruning.registry``, or a ReconPruner's file.
        scores: see ``open_pipeline``.

    Raises:
        ModelError: as ``open_pipeline``, but for values of a pruner file that are not finite.
    """
    name, _ = name_and_file(vla.path, pruner)
    _refuse_scores(name, scores)
    if name == "reconpruner" or name in VARIANTS:
        file = own_file(vla.path, pruner) or Path(pruner)
        check_pruner_file(file, vla)
        with_options(ScorePruner(None), VARIANTS.get(name, scores), vla, file, name)
    elif name == "tokenpacker":
        check_packer_file(vla)
    else:
        make_pruner(name, vla)


def _torch_pruner(name: str, file: Path | None, vla: Vla, scores: ScoreOptions | None) -> Pruner:
    _refuse_scores(name, scores)
    return make_pruner(name, vla, file or own_file(vla.path, name), options=scores)  # it tells of a missing file


def _refuse_scores(name: str, scores: ScoreOptions | None) -> None:
    if scores is not None and scores.active and name != "reconpruner":
        raise ModelError(
            f"{', '.join(scores.parameters)}: are for ReconPruner, but the pruner is {name!r}; give a pruner file, "
            "such as reconpruner_plan.safetensors of the VLA directory, or turn them off"
        )
