"""The manifest of an engine file: what it was made from, its inputs and outputs, where it runs, how accurate it is.

``vision.onnx`` has ``vision.onnx.json``. The manifest holds the size and SHA-256 of each file of the engine, and a
seal: the SHA-256 of its own content. It has one canonical form, so any changed byte is found. This module only reads
and checks; it needs neither torch nor a runtime. Its terms:

    part      of the VLA that the engine holds: vision (vision tower, pruner, top-K) or language
    kind      format of the engine file: onnx or tensorrt
    backend   what runs files of a kind: onnxruntime or tensorrt; see ``BACKENDS``
    provider  what onnxruntime computes with: cpu, cuda or tensorrt
    runtime   backend, version and provider that ran an engine, as text for people
"""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, TypeAdapter, model_validator

from fastdrive_node.engines.graph_info import (
    Count,
    LanguageGraphInfo,
    Record,
    Sha256,
    TensorInfo,
    VisionGraphInfo,
)
from fastdrive_node.errors import ModelError
from fastdrive_node.validation import parse_json

FORMAT, VERSION = "fastdrive-engine", 1
BACKENDS = {"onnx": "onnxruntime", "tensorrt": "tensorrt"}  # by kind
DATA_SUFFIX = ".data"  # of the file with an ONNX file's weights
MAX_MANIFEST_BYTES = 1 << 20

_Text = Annotated[str, Field(max_length=4096)]
_Natural = Annotated[int, Field(ge=0)]
_Fraction = Annotated[float, Field(ge=0, le=1)]
_Cosine = Annotated[float, Field(ge=-1, le=1)]
_NonNegative = Annotated[float, Field(ge=0)]
_FileName = Annotated[str, Field(pattern="^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]


class FileInfo(Record):
    """One file of an engine."""

    bytes: _Natural
    sha256: Sha256


_Files = Annotated[dict[_FileName, FileInfo], Field(max_length=16)]  # by name, all in the manifest's folder


class TargetInfo(Record):
    """The machine that a TensorRT plan was built on, and how."""

    tensorrt: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+){1,4}[A-Za-z0-9.+-]{0,20}$")]
    compute_capability: Annotated[str, Field(pattern=r"^[0-9]{1,2}\.[0-9]$")]  # such as "8.7"
    device: _Text
    driver: _Text
    flags: Annotated[dict[str, bool | int | str], Field(max_length=64)]  # of the builder


class SourceInfo(Record):
    """Where the models were at the build; only ``fastdrive export verify`` and the hints of errors use it."""

    vla: _Text
    pruner: _Text  # empty for a language engine


class _Parity(Record):
    """An engine against torch in float32."""

    passed: bool
    images: _Text  # which
    sets: Count
    cosine: _Cosine  # mean over tokens, or over steps
    cosine_min: _Cosine
    max_abs_error: _NonNegative  # of tokens, or of logits
    runtime: _Text  # what ran the engine


class VisionParity(_Parity):
    """Tokens, scores, kept sets and answers on the same images."""

    score_max_abs_error: _NonNegative
    kept_overlap: Annotated[dict[str, _Fraction], Field(max_length=32)]  # by pruning ratio, mean: kept by both / kept
    plans_equal: bool | None  # None where none was compared
    plans_compared: _Natural
    plans_same: _Natural
    # medians of encoding and scoring one frame set; empty where a comparison ended before it was timed
    latency_ms: dict[Literal["reference", "engine"], _NonNegative]


class LanguageParity(_Parity):
    """Logits and answers on the same prompts; for the logits both are given the tokens of torch's answer."""

    steps: Count  # compared logits, those of the prefills included
    prefill_max_abs_error: _NonNegative  # of the logits at the end of the prompts
    same_tokens: _Fraction  # of the steps: those with the same most likely token
    answers_equal: bool | None  # each decodes by itself; None where none was compared
    answers_compared: _Natural
    answers_same: _Natural
    # medians of one prompt; empty where a comparison ended before it was timed
    latency_ms: dict[Literal["reference_prefill", "engine_prefill", "reference_answer", "engine_answer"], _NonNegative]


class _Manifest(Record):
    kind: Literal["onnx", "tensorrt"]
    files: Annotated[_Files, Field(min_length=1)]
    source: SourceInfo
    versions: Annotated[dict[str, _Text], Field(max_length=32)]  # of the packages that built it
    onnx: _Files  # of a plan: the ONNX files that it was built from
    target: TargetInfo | None

    @model_validator(mode="after")
    def _check_target(self) -> _Manifest:
        if (self.kind == "tensorrt") != (self.target is not None):
            raise ValueError(f"target: {'missing' if self.target is None else 'given'} for kind {self.kind}")
        return self

    @property
    def backend(self) -> str:
        return BACKENDS[self.kind]


class VisionManifest(_Manifest):
    part: ClassVar[str] = "vision"

    graph: VisionGraphInfo
    parity: VisionParity | None

    @model_validator(mode="after")
    def _check_operators(self) -> VisionManifest:
        if self.kind == "tensorrt" and self.graph.fused:
            raise ValueError(f"graph.operators: {self.graph.operators}, of which TensorRT reads none")
        return self


class LanguageManifest(_Manifest):
    part: ClassVar[str] = "language"

    graph: LanguageGraphInfo
    parity: LanguageParity | None


Manifest = VisionManifest | LanguageManifest


def manifest_path(file: str | Path) -> Path:
    """Of an engine file."""
    file = Path(file)
    return file.with_name(file.name + ".json")


def manifest_text(manifest: Manifest) -> str:
    """The file's content, sealed."""
    content = {**manifest.model_dump(mode="json"), **_tensors(manifest), "format": FORMAT, "version": VERSION}
    return _canonical({**content, "seal": _seal(content)})


def _tensors(manifest: Manifest) -> dict[str, dict]:
    """The sections that follow from the graph: people and other programs read them."""
    sections = {"inputs": manifest.graph.inputs(), "outputs": manifest.graph.outputs()}
    return {name: {key: asdict(info) for key, info in section.items()} for name, section in sections.items()}


def _canonical(content: dict) -> str:
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _seal(content: dict) -> str:
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def _is_sealed(content: dict, seal: object, text: str) -> bool:
    try:
        return text == _canonical({**content, "seal": seal}) and seal == _seal(content)
    except (ValueError, RecursionError):  # infinite numbers, or nested too deep to be written
        return False


def read_manifest(file: str | Path) -> Manifest:
    """Read and check the manifest of an engine file; the engine itself is not read.

    Raises:
        ModelError: the file or its manifest is missing or unreadable, or a field is wrong; the text names it.
    """
    file = Path(file)
    if not file.is_file():
        raise ModelError(f"{file}: no such engine file; {build_hint(file)}")
    path = manifest_path(file)
    if not path.is_file():
        raise ModelError(f"{path}: missing; an engine is used only with its manifest; {build_hint(file)}")
    content, text = _read_json(path, file)
    for name, expected in (("format", FORMAT), ("version", VERSION)):
        if json.dumps(content.get(name)) != json.dumps(expected):  # 1 is neither true nor 1.0
            raise ModelError(
                f"{path}: {name}: {str(content.get(name))[:40]!r}, expected {expected!r}; {build_hint(file)}"
            )
    seal = content.pop("seal", None)
    if not _is_sealed(content, seal, text):
        raise ModelError(
            f"{path}: seal: {short(seal)!r} does not match the content; it was changed by hand or is damaged; "
            f"{build_hint(file)}"
        )
    return _parse(path, file, content)


def _read_json(path: Path, file: Path) -> tuple[dict, str]:
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_MANIFEST_BYTES + 1)
        if len(raw) > MAX_MANIFEST_BYTES:
            raise ValueError(f"larger than {MAX_MANIFEST_BYTES} bytes")
        text = raw.decode("utf-8")
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(f"{path}: not readable as a manifest ({reason}); {build_hint(file)}") from error
    return content, text


def _parse(path: Path, file: Path, content: dict) -> Manifest:
    """The manifest of sealed content. Raises ModelError where a field is wrong."""
    graph = content.get("graph")
    kind = LanguageManifest if isinstance(graph, dict) and graph.get("part") == "language" else VisionManifest
    apart = {name: content.pop(name, None) for name in ("inputs", "outputs", "format", "version")}
    manifest = parse_json(TypeAdapter(kind), json.dumps(content), path, build_hint(file))
    if file.name not in manifest.files:
        raise ModelError(f"{path}: files: {sorted(manifest.files)} lacks {file.name}; {build_hint(file, manifest)}")
    for name, expected in _tensors(manifest).items():
        if _canonical(apart[name]) != _canonical(expected):
            raise ModelError(
                f"{path}: {name}: they are not those of the manifest's graph; {build_hint(file, manifest)}"
            )
    return manifest


def check_files(file: str | Path, manifest: Manifest) -> None:
    """Compare size and SHA-256 of every file of an engine with its manifest.

    Raises:
        ModelError: a file is missing, cut off or another one, or there are weights that the manifest does not name.
    """
    file = Path(file)
    hint = build_hint(file, manifest)
    data = file.name + DATA_SUFFIX
    if data not in manifest.files and file.with_name(data).exists():
        raise ModelError(f"{file}: files: {data} exists, but the manifest does not name it; {hint}")
    for name, info in manifest.files.items():
        path = file.with_name(name)
        try:
            if not path.is_file():
                raise ModelError(f"{path}: missing, though the manifest names it; {hint}")
            size = path.stat().st_size
            found = {"bytes": size, "sha256": file_digest(path) if size == info.bytes else ""}
        except OSError as error:
            raise ModelError(f"{path}: not readable ({error.strerror}); {hint}") from error
        for field, ours in found.items():
            stated = getattr(info, field)
            if ours != stated:
                raise ModelError(
                    f"{path}: {field}: the file has {short(ours)}, its manifest says {short(stated)}; it is cut off, "
                    f"damaged or of another build; {hint}"
                )


def check_tensors(
    file: Path, manifest: Manifest, inputs: dict[str, TensorInfo], outputs: dict[str, TensorInfo]
) -> None:
    """The inputs and outputs that a runtime finds in an engine are the manifest's.

    Raises:
        ModelError: one differs.
    """
    expected = {"inputs": manifest.graph.inputs(), "outputs": manifest.graph.outputs()}
    for section, found in (("inputs", inputs), ("outputs", outputs)):
        stated = expected[section]
        for name in sorted(found | stated):
            if found.get(name) != stated.get(name):
                raise ModelError(
                    f"{file}: {section}.{name}: the engine has {found.get(name)}, its manifest {stated.get(name)}; "
                    f"{build_hint(file, manifest)}"
                )


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def build_hint(
    file: Path, manifest: Manifest | None = None, vla: Path | None = None, pruner: Path | None = None
) -> str:
    """The command that makes a right engine, for an error's text."""
    backend = "tensorrt" if file.suffix == ".plan" else "onnxruntime"
    part = "language" if file.name.startswith("language") else None
    options = {"--part": part, "--vla": vla, "--pruner": pruner, "--backend": backend, "--out": file.parent}
    if manifest is not None:
        options["--part"] = None if manifest.part == "vision" else manifest.part
        options |= {"--backend": manifest.backend, "--precision": manifest.graph.precision}
        options["--vla"] = vla or manifest.source.vla
        options["--pruner"] = pruner or manifest.source.pruner
        if manifest.kind == "onnx" and manifest.graph.opset == 17:
            options["--opset"] = 17
        elif manifest.kind == "onnx" and manifest.graph.precision == "fp32":
            options["--operators"] = manifest.graph.operators
        if isinstance(manifest, VisionManifest) and manifest.graph.max_keep < manifest.graph.total:
            options["--max-keep"] = manifest.graph.max_keep
    given = " ".join(f"{name} {shlex.quote(str(value))}" for name, value in options.items() if value not in (None, ""))
    return f"build it with: fastdrive export build {given}"


def short(value: object) -> str:
    """A value for an error's text; hashes by their first digits."""
    text = str(value)
    return text[:12] if len(text) == 64 else text[:120]
