"""A small engine file with its manifest, of nothing that runs: for the checks before anything runs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import save_file

from fastdrive_export.files import file_info
from fastdrive_node.engines.graph_info import LanguageGraphInfo, VisionGraphInfo
from fastdrive_node.engines.language_engine import check_language_engine
from fastdrive_node.engines.manifest import (
    FileInfo,
    LanguageManifest,
    LanguageParity,
    Manifest,
    SourceInfo,
    TargetInfo,
    VisionManifest,
    VisionParity,
    manifest_path,
    manifest_text,
)
from fastdrive_node.engines.vision_engine import check_engine
from fastdrive_node.families.fingerprint import pruner_fingerprint
from fastdrive_node.types import CAMERAS

ENCODER = hashlib.sha256(b"encoder").hexdigest()


@dataclass(frozen=True)
class SmallEngine:
    file: Path
    manifest: Manifest
    vla: SimpleNamespace  # what the checks read of a VLA
    pruner_file: Path

    def check(self) -> Manifest:
        """The manifest, where all is well. Raises ModelError as the loading of an engine."""
        if self.manifest.part == "language":
            return check_language_engine(self.file, self.vla)
        return check_engine(self.file, self.vla, self.pruner_file)


def small_engine(folder: Path, kind: str = "onnx") -> SmallEngine:
    """Two files of random bytes, a pruner file, and a manifest with every section filled."""
    random = np.random.default_rng(0)
    file = folder / ("vision.onnx" if kind == "onnx" else "vision.plan")
    names = [file.name] + ([f"{file.name}.data"] if kind == "onnx" else [])
    for name in names:
        (folder / name).write_bytes(random.bytes(300))
    pruner_file = folder / "reconpruner.safetensors"
    save_file({"scorer.weight": torch.ones(1, 8)}, pruner_file, {"config": "{}", "encoder": ENCODER})
    manifest = VisionManifest(
        kind=kind,
        files={name: file_info(folder / name) for name in names},
        graph=VisionGraphInfo(
            opset=18,
            precision="fp16",
            fp32_mlp=(3,),
            cameras=CAMERAS,
            image_size=(112, 224),
            grid=(4, 8),
            width=128,
            max_keep=192,
            encoder=ENCODER,
            pruner=pruner_fingerprint(pruner_file),
        ),
        source=SourceInfo(vla="/models/vla", pruner="/models/vla/reconpruner.safetensors"),
        versions={"torch": "2.13.0", "onnx": "1.23.2"},
        onnx={} if kind == "onnx" else {"vision.onnx": FileInfo(bytes=300, sha256=ENCODER)},
        target=None if kind == "onnx" else orin_target(flags={"optimization_level": 3}),
        parity=VisionParity(
            passed=True,
            images="synthetic",
            sets=2,
            cosine=0.9999,
            cosine_min=0.999,
            max_abs_error=0.01,
            runtime="runtime",
            score_max_abs_error=0.01,
            kept_overlap={"0.5": 1.0},
            plans_equal=True,
            plans_compared=2,
            plans_same=2,
            latency_ms={"reference": 2.0, "engine": 1.0},
        ),
    )
    manifest_path(file).write_text(manifest_text(manifest))
    spec = SimpleNamespace(cameras=CAMERAS, image_size=(112, 224))
    vla = SimpleNamespace(path=Path("/models/vla"), spec=spec, grid=(4, 8), width=128, encoder_fingerprint=ENCODER)
    return SmallEngine(file, manifest, vla, pruner_file)


def orin_target(tensorrt: str = "10.3.0.26", **changes) -> TargetInfo:
    values = {"compute_capability": "8.7", "device": "Orin", "driver": "540.4.0", "flags": {}}
    return TargetInfo(tensorrt=tensorrt, **(values | changes))


def language_parity(**changes) -> LanguageParity:
    """A comparison that passed."""
    values = {
        "passed": True,
        "images": "synthetic",
        "sets": 2,
        "cosine": 0.9999,
        "cosine_min": 0.999,
        "max_abs_error": 0.01,
        "runtime": "runtime",
        "steps": 50,
        "prefill_max_abs_error": 0.01,
        "same_tokens": 1.0,
        "answers_equal": True,
        "answers_compared": 2,
        "answers_same": 2,
        "latency_ms": dict.fromkeys(("reference_prefill", "engine_prefill", "reference_answer", "engine_answer"), 1.0),
    }
    return LanguageParity(**(values | changes))


def small_language_engine(folder: Path) -> SmallEngine:
    """As ``small_engine``, of a language model."""
    file = folder / "language.onnx"
    names = [file.name, f"{file.name}.data"]
    for name in names:
        (folder / name).write_bytes(np.random.default_rng(1).bytes(300))
    manifest = LanguageManifest(
        kind="onnx",
        files={name: file_info(folder / name) for name in names},
        graph=LanguageGraphInfo(
            opset=18,
            precision="fp16",
            fp32_mlp=(1,),
            layers=2,
            heads=4,
            kv_heads=2,
            head_dim=32,
            width=128,
            vocabulary=2048,
            language=ENCODER,
            part="language",
        ),
        source=SourceInfo(vla="/models/vla", pruner=""),
        versions={"torch": "2.13.0", "onnx": "1.23.2"},
        onnx={},
        target=None,
        parity=language_parity(),
    )
    manifest_path(file).write_text(manifest_text(manifest))
    sizes = {"layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 32, "width": 128, "vocabulary": 2048}
    vla = SimpleNamespace(
        path=Path("/models/vla"),
        family=SimpleNamespace(language_sizes=lambda config: sizes),
        config=None,
        language_fingerprint=ENCODER,
    )
    return SmallEngine(file, manifest, vla, folder / "no pruner")


def sealed(content: dict) -> str:
    """The text of a manifest whose content was changed, with a seal that fits."""
    content = {name: value for name, value in content.items() if name != "seal"}

    def text(data: dict) -> str:
        return json.dumps(data, indent=2, sort_keys=True) + "\n"

    return text({**content, "seal": hashlib.sha256(text(content).encode()).hexdigest()})
