"""Pruner files: safetensors whose metadata says which encoder the pruner belongs to.

Metadata: ``format`` ("fastdrive-reconpruner"), ``version`` ("1"), ``config`` (JSON: the layer's sizes and whether the
product is normalised), ``encoder`` (fingerprint of the vision tower), and where it was calibrated ``calibration``. Only
tensors are read from a file, and its sizes are compared with the VLA's before anything is allocated.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jsonschema
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from transformers import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding

from fastdrive_node.errors import ModelError
from fastdrive_node.families.spec import refuse_constant
from fastdrive_node.families.vla import Vla
from fastdrive_node.pruning.calibration import Calibration
from fastdrive_node.pruning.recon_pruner import ReconPruner

FORMAT, VERSION = "fastdrive-reconpruner", "1"
_SIZE = {"type": "integer", "minimum": 1, "maximum": 1 << 17}
_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "hidden_act",
                 "rms_norm_eps", "rope_theta", "mrope_section", "normalise"],
    "properties": {
        "hidden_size": _SIZE,
        "intermediate_size": _SIZE,
        "num_attention_heads": _SIZE,
        "num_key_value_heads": _SIZE,
        "hidden_act": {"const": "silu"},
        "rms_norm_eps": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "rope_theta": {"type": "number", "minimum": 1, "maximum": 1e12},
        "mrope_section": {"type": "array", "items": _SIZE, "minItems": 3, "maxItems": 3},
        "normalise": {"type": "boolean"},
    },
}  # fmt: skip


def save_pruner(path: str | Path, pruner: ReconPruner, encoder_fingerprint: str) -> None:
    """Write a pruner file, in the dtype that the pruner has.

    Args:
        encoder_fingerprint: of the vision tower that it was trained on (``Vla.encoder_fingerprint``).
    """
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "config": json.dumps(_config_json(pruner)),
        "encoder": encoder_fingerprint,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in pruner.state_dict().items()}
    _write(Path(path), tensors, metadata)


def _write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a file so that it is there whole or as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(save(tensors, metadata))  # save_file would make it private to its owner
    partial.replace(path)


def load_calibration(path: str | Path) -> Calibration | None:
    """The calibration in a pruner file; None where it has none.

    Raises:
        ModelError: the file is missing or damaged, is no pruner, or its calibration is none.
    """
    with _opened(Path(path)) as stored:
        text = _check_format(Path(path), stored.metadata() or {}).get("calibration")
    try:
        return None if text is None else Calibration.from_json(text)
    except ModelError as error:
        raise ModelError(f"{path}: {error}; run `fastdrive calibrate` again") from error


def save_calibration(path: str | Path, calibration: Calibration, out: str | Path | None = None) -> None:
    """Write a pruner file again with a calibration, in its place or to ``out``; weights and all else stay.

    Raises:
        ModelError: the file is missing or damaged, or is no pruner.
    """
    with _opened(Path(path)) as stored:
        metadata = dict(_check_format(Path(path), stored.metadata() or {}))
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    _write(Path(out or path), tensors, {**metadata, "calibration": calibration.to_json()})


def load_pruner(path: str | Path, vla: Vla) -> ReconPruner:
    """Read a pruner for a VLA, on its device and in its dtype, in ``eval`` mode.

    Raises:
        ModelError: the file is missing or damaged, is no pruner, or belongs to another width or encoder.
    """
    path = Path(path)
    with _opened(path) as stored:
        config = _check_metadata(path, stored.metadata() or {}, vla)
        return _read(path, stored, config, vla)


@contextmanager
def _opened(path: Path) -> Iterator:
    if not path.is_file():
        raise ModelError(f"{path}: no such pruner file; train one with `fastdrive train`, or plan without a pruner")
    try:
        with safe_open(path, framework="pt") as stored:
            yield stored
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error}); fetch it again") from error


def _config_json(pruner: ReconPruner) -> dict:
    config = pruner.config
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "hidden_act")
    return {
        **{name: getattr(config, name) for name in names},
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_parameters["rope_theta"],
        "mrope_section": list(config.rope_parameters["mrope_section"]),
        "normalise": pruner.normalise,
    }


def _check_format(path: Path, metadata: dict[str, str]) -> dict[str, str]:
    if metadata.get("format") != FORMAT:
        raise ModelError(f"{path}: format: not a pruner file (its metadata lacks format {FORMAT!r})")
    if metadata.get("version") != VERSION:
        raise ModelError(
            f"{path}: version: {metadata.get('version', '')[:20]!r} is not {VERSION!r}; update this package"
        )
    return metadata


def _check_metadata(path: Path, metadata: dict[str, str], vla: Vla) -> dict:
    _check_format(path, metadata)
    try:
        config = json.loads(metadata.get("config", ""), parse_constant=refuse_constant)
        jsonschema.validate(config, _SCHEMA)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: config: not readable as JSON") from error
    except jsonschema.ValidationError as error:
        raise ModelError(f"{path}: config: {error.json_path}: {error.message[:200]}") from error
    if config["hidden_size"] != vla.width:
        raise ModelError(
            f"{path}: hidden_size: the pruner scores tokens of width {config['hidden_size']}, but {vla.path} gives "
            f"tokens of width {vla.width}; use a pruner that was trained for this VLA's encoder"
        )
    if metadata.get("encoder") != vla.encoder_fingerprint:
        raise ModelError(
            f"{path}: encoder: trained on the vision encoder {metadata.get('encoder', '')[:12]!r}, but {vla.path} has "
            f"{vla.encoder_fingerprint[:12]!r}; train the pruner on this encoder"
        )
    return config


def _read(path: Path, stored, config: dict, vla: Vla) -> ReconPruner:
    """Compare shapes on the meta device, then take the file's tensors as the parameters."""
    pruner = _empty(path, config)
    expected = {name: list(tensor.shape) for name, tensor in pruner.state_dict().items()}
    names = set(stored.keys())
    if names != set(expected):
        odd = min(names ^ set(expected))
        raise ModelError(f"{path}: tensor {odd[:80]!r} is {'missing' if odd in expected else 'not a pruner tensor'}")
    for name, shape in expected.items():
        found = stored.get_slice(name).get_shape()
        if found != shape:
            raise ModelError(f"{path}: tensor {name!r} has shape {found}, expected {shape} by the file's own config")
    tensors = {name: stored.get_tensor(name).to(vla.device, vla.dtype) for name in expected}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{path}: tensor {name!r} holds values that are not finite")
    pruner.load_state_dict(tensors, assign=True)
    pruner.rotary = Qwen2_5_VLRotaryEmbedding(pruner.config).to(vla.device)
    return pruner.requires_grad_(False).eval()


def _empty(path: Path, config: dict) -> ReconPruner:
    """A pruner without storage; its sizes come from the file."""
    sizes = {name: value for name, value in config.items() if name not in ("rope_theta", "mrope_section", "normalise")}
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"], "mrope_section": config["mrope_section"]}
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    if config["hidden_size"] % (2 * heads) or heads % groups:
        raise ModelError(f"{path}: config: hidden_size, heads and key/value heads do not fit each other")
    if sum(config["mrope_section"]) != config["hidden_size"] // heads // 2:
        raise ModelError(f"{path}: config: mrope_section does not fit the head size")
    with torch.device("meta"):
        return ReconPruner(Qwen2_5_VLTextConfig(**sizes, rope_parameters=rope), config["normalise"])
