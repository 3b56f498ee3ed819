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

from fastdrive_node.engines.fingerprint import pruner_fingerprint
from fastdrive_node.engines.language_engine import check_language_engine
from fastdrive_node.engines.language_info import LanguageFacts, LanguageParity
from fastdrive_node.engines.manifest import (
    FileFacts,
    GraphFacts,
    Manifest,
    ParityFacts,
    SourceFacts,
    TargetFacts,
    file_digest,
    manifest_path,
    manifest_text,
)
from fastdrive_node.engines.vision_engine import check_engine
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
    parity = ParityFacts(
        True,
        "synthetic",
        2,
        0.9999,
        0.999,
        0.01,
        0.01,
        {"0.5": 1.0},
        True,
        2,
        2,
        "runtime",
        {"reference": 2.0, "engine": 1.0},
    )
    target = TargetFacts("10.3.0.26", "8.7", "Orin", "540.4.0", {"optimization_level": 3})
    graph = GraphFacts(
        18, "fp16", (3,), CAMERAS, (112, 224), (4, 8), 128, 192, ENCODER, pruner_fingerprint(pruner_file)
    )
    manifest = Manifest(
        kind=kind,
        files={name: FileFacts(300, file_digest(folder / name)) for name in names},
        graph=graph,
        source=SourceFacts("/models/vla", "/models/vla/reconpruner.safetensors"),
        versions={"torch": "2.13.0", "onnx": "1.23.2"},
        onnx={} if kind == "onnx" else {"vision.onnx": FileFacts(300, ENCODER)},
        target=None if kind == "onnx" else target,
        parity=parity,
    )
    manifest_path(file).write_text(manifest_text(manifest))
    spec = SimpleNamespace(cameras=CAMERAS, image_size=(112, 224))
    vla = SimpleNamespace(path=Path("/models/vla"), spec=spec, grid=(4, 8), width=128, encoder_fingerprint=ENCODER)
    return SmallEngine(file, manifest, vla, pruner_file)


def small_language_engine(folder: Path) -> SmallEngine:
    """As ``small_engine``, of a language model."""
    file = folder / "language.onnx"
    names = [file.name, f"{file.name}.data"]
    for name in names:
        (folder / name).write_bytes(np.random.default_rng(1).bytes(300))
    times = dict.fromkeys(("reference_prefill", "engine_prefill", "reference_answer", "engine_answer"), 1.0)
    manifest = Manifest(
        kind="onnx",
        files={name: FileFacts(300, file_digest(folder / name)) for name in names},
        graph=LanguageFacts(18, "fp16", (1,), 2, 4, 2, 32, 128, 2048, ENCODER),
        source=SourceFacts("/models/vla", ""),
        versions={"torch": "2.13.0", "onnx": "1.23.2"},
        parity=LanguageParity(True, "synthetic", 2, 50, 0.9999, 0.999, 0.01, 0.01, 1.0, True, 2, 2, "runtime", times),
    )
    manifest_path(file).write_text(manifest_text(manifest))
    text = SimpleNamespace(
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=128, vocab_size=2048
    )
    vla = SimpleNamespace(
        path=Path("/models/vla"),
        model=SimpleNamespace(config=SimpleNamespace(text_config=text)),
        language_fingerprint=ENCODER,
    )
    return SmallEngine(file, manifest, vla, folder / "no pruner")


def sealed(content: dict) -> str:
    """The text of a manifest whose content was changed, with a seal that fits."""
    content = {name: value for name, value in content.items() if name != "seal"}

    def text(data: dict) -> str:
        return json.dumps(data, indent=2, sort_keys=True) + "\n"

    return text({**content, "seal": hashlib.sha256(text(content).encode()).hexdigest()})
