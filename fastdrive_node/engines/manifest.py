"""The manifest beside an engine file: what it was made from, what goes in and out, where it may run, how right it is.

``vision.onnx`` has ``vision.onnx.json``. The manifest holds the size and SHA-256 of each file of the engine and a seal,
the SHA-256 of its own content; it is written in one canonical form, so that any change of a byte shows. This module
only reads and checks; it needs none of the runtimes.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

import jsonschema

from fastdrive_node.engines.graph_info import FileFacts, TensorFacts
from fastdrive_node.engines.language_info import LanguageFacts, LanguageParity
from fastdrive_node.engines.manifest_schema import FORMAT, SCHEMAS, VERSION
from fastdrive_node.errors import ModelError
from fastdrive_node.families.spec import refuse_constant

IMAGES, TOKENS, INDICES, SCORES = "images", "tokens", "indices", "scores"  # the engine's tensors
METADATA_KEY = "fastdrive.graph"  # in an ONNX file: the manifest's graph section
KINDS = {"onnx": "onnxruntime", "tensorrt": "tensorrt"}  # kind of file -> backend that runs it
DATA_SUFFIX = ".data"  # of the file that an ONNX file's weights lie in
MAX_MANIFEST_BYTES = 1 << 20
_BLOCK = 1 << 20
_VALIDATORS = {part: jsonschema.Draft202012Validator(schema) for part, schema in SCHEMAS.items()}


@dataclass(frozen=True)
class GraphFacts:
    """The network of a vision engine. It is the same for an ONNX file and the plan that was built of it."""

    part: ClassVar[str] = "vision"  # a language engine's facts have it as a field

    opset: int
    precision: str  # fp32, fp16, bf16
    fp32_mlp: tuple[int, ...]  # blocks whose gated product and down projection are float32
    cameras: tuple[str, ...]
    image_size: tuple[int, int]  # height, width in px
    grid: tuple[int, int]  # token rows, columns of an image
    width: int  # D
    max_keep: int  # K_max
    encoder: str  # fingerprint of the vision tower
    pruner: str  # fingerprint of the pruner

    @property
    def total(self) -> int:
        """N, tokens of all cameras."""
        return len(self.cameras) * self.grid[0] * self.grid[1]

    def faults(self) -> dict[str, tuple[bool, str]]:
        """What the schema cannot say: by field, whether it is wrong, and why."""
        return {"graph.max_keep": (self.max_keep > self.total, f"{self.max_keep} of {self.total} tokens")}

    def inputs(self) -> dict[str, TensorFacts]:
        return {IMAGES: TensorFacts("uint8", (len(self.cameras), 3, *self.image_size))}

    def outputs(self) -> dict[str, TensorFacts]:
        return {
            TOKENS: TensorFacts("float32", (self.max_keep, self.width)),
            INDICES: TensorFacts("int32", (self.max_keep,)),
            SCORES: TensorFacts("float32", (len(self.cameras), self.grid[0] * self.grid[1])),
        }


@dataclass(frozen=True)
class TargetFacts:
    """The machine that a TensorRT plan was built on, and how."""

    tensorrt: str
    compute_capability: str  # such as "8.7"
    device: str
    driver: str
    flags: dict[str, bool | int | str]  # of the builder


@dataclass(frozen=True)
class SourceFacts:
    """Where the models lay at the build; only ``fastdrive export verify`` looks there."""

    vla: str
    pruner: str  # empty for a language engine


@dataclass(frozen=True)
class ParityFacts:
    """The engine against torch in float32 on the same images."""

    passed: bool
    images: str  # which
    sets: int
    cosine: float  # mean over tokens
    cosine_min: float
    max_abs_error: float  # of the tokens
    score_max_abs_error: float
    kept_overlap: dict[str, float]  # by pruning ratio: mean share of kept tokens in common
    plans_equal: bool
    plans_compared: int
    plans_same: int
    runtime: str  # what ran the engine
    latency_ms: dict[str, float]  # reference, engine: medians of encode and score


@dataclass(frozen=True)
class Manifest:
    """See the module's text and ``manifest_schema``."""

    kind: str  # a key of KINDS
    files: dict[str, FileFacts]  # by name, all in the manifest's folder
    graph: GraphFacts | LanguageFacts
    source: SourceFacts
    versions: dict[str, str]  # of the packages that built it
    onnx: dict[str, FileFacts] = field(default_factory=dict)  # for a plan: the ONNX files that it was built of
    target: TargetFacts | None = None
    parity: ParityFacts | LanguageParity | None = None

    @property
    def part(self) -> str:
        """Of the VLA: a key of ``manifest_schema.SCHEMAS``."""
        return self.graph.part


_KINDS_OF_FACTS = {"vision": (GraphFacts, ParityFacts), "language": (LanguageFacts, LanguageParity)}


def manifest_path(file: str | Path) -> Path:
    """Of an engine file."""
    file = Path(file)
    return file.with_name(file.name + ".json")


def manifest_text(manifest: Manifest) -> str:
    """The file's content, sealed."""
    content = asdict(manifest)
    content |= {"format": FORMAT, "version": VERSION, "inputs": {}, "outputs": {}}
    for name in ("inputs", "outputs"):
        content[name] = {key: asdict(facts) for key, facts in getattr(manifest.graph, name)().items()}
    return _canonical({**content, "seal": _seal(content)})


def _canonical(content: dict) -> str:
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _seal(content: dict) -> str:
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def _is_sealed(content: dict, seal: object, text: str) -> bool:
    try:
        return seal == _seal(content) and text == _canonical({**content, "seal": seal})
    except (ValueError, RecursionError):  # infinite numbers, or too deep to be written
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
        if content.get(name) != expected:
            raise ModelError(
                f"{path}: {name}: {str(content.get(name))[:40]!r}, expected {expected!r}; {build_hint(file)}"
            )
    seal = content.pop("seal", None)
    if not _is_sealed(content, seal, text):
        raise ModelError(
            f"{path}: seal: {short(seal)!r} is not the content's; it was changed by hand or is damaged; "
            f"{build_hint(file)}"
        )
    fault = jsonschema.exceptions.best_match(_VALIDATORS[_part_of(content)].iter_errors(content))
    if fault is not None:
        where = " ".join(fault.json_path.removeprefix("$.").split())[:100]
        raise ModelError(f"{path}: {where}: {fault.message[:200]}; {build_hint(file)}")
    manifest = _parse(content)
    _check_consistent(path, file, manifest, content)
    return manifest


def _read_json(path: Path, file: Path) -> tuple[dict, str]:
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_MANIFEST_BYTES + 1)
        if len(raw) > MAX_MANIFEST_BYTES:
            raise ValueError(f"larger than {MAX_MANIFEST_BYTES} bytes")
        text = raw.decode("utf-8")
        content = json.loads(text, parse_constant=refuse_constant)
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(f"{path}: not readable as a manifest ({reason}); {build_hint(file)}") from error
    return content, text


def _part_of(content: dict) -> str:
    """A vision engine's graph has no field ``part``; what has another value fails the schema."""
    graph = content.get("graph")
    return "language" if isinstance(graph, dict) and graph.get("part") == "language" else "vision"


def _parse(content: dict) -> Manifest:
    facts, figures = _KINDS_OF_FACTS[_part_of(content)]
    graph = {name: tuple(value) if isinstance(value, list) else value for name, value in content["graph"].items()}
    return Manifest(
        kind=content["kind"],
        files={name: FileFacts(**facts) for name, facts in content["files"].items()},
        graph=facts(**graph),
        source=SourceFacts(**content["source"]),
        versions=content["versions"],
        onnx={name: FileFacts(**facts) for name, facts in content["onnx"].items()},
        target=None if content["target"] is None else TargetFacts(**content["target"]),
        parity=None if content["parity"] is None else figures(**content["parity"]),
    )


def _check_consistent(path: Path, file: Path, manifest: Manifest, content: dict) -> None:
    """What the schema cannot say."""
    graph = manifest.graph
    faults = {
        "files": (file.name not in manifest.files, f"{sorted(manifest.files)} lacks {file.name}"),
        "target": (
            (manifest.kind == "tensorrt") != (manifest.target is not None),
            f"{'missing' if manifest.target is None else 'given'} for kind {manifest.kind}",
        ),
        **graph.faults(),
    }
    for name in ("inputs", "outputs"):
        stated = {key: TensorFacts(each["dtype"], tuple(each["shape"])) for key, each in content[name].items()}
        faults[name] = (stated != getattr(graph, name)(), "they are not those of the manifest's graph")
    for name, (wrong, text) in faults.items():
        if wrong:
            raise ModelError(f"{path}: {name}: {text}; {build_hint(file, manifest)}")


def check_files(file: str | Path, manifest: Manifest) -> None:
    """Compare size and SHA-256 of every file of an engine with its manifest.

    Raises:
        ModelError: a file is missing, cut off or another one, or weights lie beside that the manifest does not name.
    """
    file = Path(file)
    beside = file.name + DATA_SUFFIX
    if beside not in manifest.files and file.with_name(beside).exists():
        raise ModelError(
            f"{file}: files: {beside} lies beside, but the manifest does not name it; {build_hint(file, manifest)}"
        )
    for name, facts in manifest.files.items():
        path = file.with_name(name)
        try:
            size = path.stat().st_size if path.is_file() else None
            found = FileFacts(size, file_digest(path)) if size == facts.bytes else FileFacts(size or 0, "")
        except OSError as error:
            raise ModelError(f"{path}: not readable ({error.strerror}); {build_hint(file, manifest)}") from error
        if size is None:
            raise ModelError(f"{path}: missing, though the manifest names it; {build_hint(file, manifest)}")
        for field_name in ("bytes", "sha256"):
            ours, stated = getattr(found, field_name), getattr(facts, field_name)
            if ours != stated:
                raise ModelError(
                    f"{path}: {field_name}: the file has {short(ours)}, its manifest says {short(stated)}; it is cut "
                    f"off, damaged or of another build; {build_hint(file, manifest)}"
                )


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def build_hint(
    file: Path, manifest: Manifest | None = None, vla: Path | None = None, pruner: Path | None = None
) -> str:
    """The command that makes a right engine, for an error's text."""
    backend = "tensorrt" if file.suffix == ".plan" else "onnxruntime"
    part = "language" if file.name.startswith("language") else None
    words = {"--part": part, "--vla": vla, "--pruner": pruner, "--backend": backend, "--out": file.parent}
    if manifest is not None:
        words["--part"] = None if manifest.part == "vision" else manifest.part
        words |= {"--backend": KINDS[manifest.kind], "--precision": manifest.graph.precision}
        words["--vla"] = words["--vla"] or manifest.source.vla
        words["--pruner"] = words["--pruner"] or manifest.source.pruner
        if manifest.part == "vision" and manifest.graph.max_keep < manifest.graph.total:
            words["--max-keep"] = manifest.graph.max_keep
    given = " ".join(f"{name} {shlex.quote(str(value))}" for name, value in words.items() if value not in (None, ""))
    return f"build it with: fastdrive export build {given}"


def short(value: object) -> str:
    """A value for an error's text; hashes by their first digits."""
    text = str(value)
    return text[:12] if len(text) == 64 else text[:120]
