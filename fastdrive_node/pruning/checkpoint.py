"""Pruner files: safetensors whose metadata says which encoder the pruner belongs to.

Metadata: ``format`` ("fastdrive-reconpruner"), ``version`` ("1", of a lite pruner "2", which readers before it refuse),
``config`` (JSON: the layer's sizes, whether the product is normalised, the names of the cameras where each has a bias,
and of a lite pruner ``token_width``), ``encoder`` (fingerprint of the vision tower), and where it was calibrated
``calibration``.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.families import Vla
from fastdrive_node.files import SHIPPED_PRUNER
from fastdrive_node.pruning.calibration import Calibration
from fastdrive_node.pruning.catalog import FILES, NAMES
from fastdrive_node.pruning.module_file import check_encoder, compare, fill, opened, write_tensors
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.validation import refuse_constant

FORMAT, VERSION, LITE_VERSION = "fastdrive-reconpruner", "1", "2"
_MADE_BY = {  # files with a name of their own in a VLA directory, and a recipe that trains one
    "reconpruner": (SHIPPED_PRUNER, "recon_tiny"),
    "reconpruner-lite": (FILES["reconpruner-lite"], "distil_tiny_lite"),
    "reconpruner-plan": (FILES["reconpruner-plan"], "distil_tiny_plan"),
}
_MOST_CAMERAS = 64
_MOST_WIDTH = 1 << 17


def save_pruner(path: str | Path, pruner: ReconPruner, encoder_fingerprint: str) -> None:
    """Write a pruner file, in the dtype that the pruner has.

    Args:
        encoder_fingerprint: of the vision tower that it was trained on (``Vla.encoder_fingerprint``).
    """
    config = {**pruner.layer.sizes(), "normalise": pruner.normalise}
    if pruner.cameras:
        config["cameras"] = list(pruner.cameras)
    if pruner.narrow is not None:
        config["token_width"] = pruner.width
    metadata = {
        "format": FORMAT,
        "version": VERSION if pruner.narrow is None else LITE_VERSION,
        "config": json.dumps(config),
        "encoder": encoder_fingerprint,
    }
    write_tensors(Path(path), pruner.state_dict(), metadata)


def load_calibration(path: str | Path) -> Calibration | None:
    """The calibration in a pruner file; None where it has none.

    Raises:
        ModelError: the file is missing or damaged, is no pruner, or its calibration is none.
    """
    with _opened(Path(path)) as (_, metadata):
        text = metadata.get("calibration")
    try:
        return None if text is None else Calibration.from_json(text)
    except ModelError as error:
        raise ModelError(f"{path}: {error}; run `fastdrive calibrate` again") from error


def save_calibration(path: str | Path, calibration: Calibration, out: str | Path | None = None) -> None:
    """Write a pruner file again with a calibration, in its place or to ``out``; weights and all else stay.

    Raises:
        ModelError: the file is missing or damaged, or is no pruner.
    """
    with _opened(Path(path)) as (stored, metadata):
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    write_tensors(Path(out or path), tensors, {**metadata, "calibration": calibration.to_json()})


def load_pruner(path: str | Path, vla: Vla, dtype: torch.dtype | None = None) -> ReconPruner:
    """Read a pruner for a VLA, on its device and in its dtype (or ``dtype``), in ``eval`` mode.

    A bias for each camera is put into the order of the VLA's cameras.

    Raises:
        ModelError: the file is missing or damaged, is no pruner, belongs to another width or encoder, or knows the bias
            of other cameras only.
    """
    path = Path(path)
    with _opened(path) as (stored, metadata):
        pruner = _empty(path, metadata, vla)
        fill(path, stored, pruner, "pruner", vla.device, dtype or vla.dtype)
    pruner.layer.rebuild_buffers(vla.device)
    if pruner.camera_bias is not None:
        _order_cameras(path, pruner, vla)
    return pruner


def check_pruner_file(path: str | Path, vla: Vla) -> None:
    """See that a pruner file is one for a VLA; neither its weights nor those of the VLA are read.

    Raises:
        ModelError: as ``load_pruner``, but for values that are not finite.
    """
    path = Path(path)
    with _opened(path) as (stored, metadata):
        pruner = _empty(path, metadata, vla)
        compare(path, stored, pruner, "pruner")
    if pruner.camera_bias is not None:
        _order_cameras(path, pruner, vla)


def _opened(path: Path) -> AbstractContextManager[tuple[Any, dict[str, str]]]:
    """A pruner file of the present format, and its metadata."""
    return opened(path, FORMAT, (VERSION, LITE_VERSION), "pruner", _missing(path))


def _missing(path: Path) -> str:
    """What is said of a file that is not there: its name may be that of a known pruner's file, or a wrong name."""
    for name, (file, recipe) in _MADE_BY.items():
        if path.name == file:
            return (
                f"no such pruner file, and {name} needs it; train one (`fastdrive train {recipe}` and others, "
                "docs/training_the_pruner.md) and copy it to this path, or use a VLA that has it or another pruner"
            )
    close = get_close_matches(path.name, NAMES, 1)
    advice = f"did you mean {close[0]}?" if close else "docs/pruners.md has the names; train one: `fastdrive train`"
    return f"no such pruner file, and no pruner of this name; {advice}"


def _empty(path: Path, metadata: dict[str, str], vla: Vla) -> ReconPruner:
    """A pruner without storage, its sizes from the file's metadata."""
    try:
        sizes = json.loads(metadata.get("config", ""), parse_constant=refuse_constant)
        normalise = sizes.pop("normalise")
        if not isinstance(normalise, bool):
            raise TypeError
        cameras = _camera_names(path, sizes.pop("cameras", []))
        lite = metadata["version"] == LITE_VERSION
        token_width = _token_width(path, sizes.pop("token_width", None)) if lite else None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: config: not readable as JSON") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: config: normalise: missing, or neither true nor false") from error
    try:
        with torch.device("meta"):
            pruner = ReconPruner(vla.family, sizes, normalise, cameras, token_width)
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from error
    if pruner.width != vla.width:
        raise ModelError(
            f"{path}: hidden_size: the pruner scores tokens of width {pruner.width}, but {vla.path} gives "
            f"tokens of width {vla.width}; use a pruner that was trained for this VLA's encoder"
        )
    check_encoder(path, metadata, vla, "pruner")
    return pruner


def _camera_names(path: Path, stored: Any) -> list[str]:
    names = [name for name in stored if isinstance(name, str)] if isinstance(stored, list) else []
    if names != stored or len(names) > _MOST_CAMERAS or len(set(names)) < len(names):
        raise ModelError(f"{path}: config: cameras: must be a list of different names")
    return names


def _token_width(path: Path, stored: Any) -> int:
    if isinstance(stored, bool) or not isinstance(stored, int) or not 0 < stored <= _MOST_WIDTH:
        raise ModelError(
            f"{path}: config: token_width: must be a whole number from 1 to {_MOST_WIDTH}, of a lite pruner"
        )
    return stored


def _order_cameras(path: Path, pruner: ReconPruner, vla: Vla) -> None:
    """Put the bias of the VLA's cameras, and only theirs, into the order of its images."""
    vla.require_one_frame("a pruner with a bias for each camera")
    absent = [camera for camera in vla.spec.cameras if camera not in pruner.cameras]
    if absent:
        raise ModelError(
            f"{path}: cameras: has a bias for {', '.join(pruner.cameras)}, but {vla.path} reads {absent[0]}; distil a "
            "pruner for these cameras"
        )
    assert pruner.camera_bias is not None
    order = [pruner.cameras.index(camera) for camera in vla.spec.cameras]
    pruner.cameras = vla.spec.cameras
    pruner.camera_bias = torch.nn.Parameter(pruner.camera_bias[order], requires_grad=False)
