"""Damaged manifests and files: every one is refused with a typed error, none crashes."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines.engine_fixtures import SmallEngine, sealed, small_engine, small_language_engine
from tests.engines.engine_toys import Toy, make_toy

pytest.importorskip("onnx", reason="onnx is not installed: pip install -e .[export]")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e .[export]")

import onnx

from fastdrive_export.build import GraphOptions, build_language, build_onnx
from fastdrive_export.files import file_info
from fastdrive_node.engines.language_engine import LanguageChoice, open_language_engine
from fastdrive_node.engines.manifest import manifest_path
from fastdrive_node.engines.vision_engine import EngineChoice, open_engine
from fastdrive_node.errors import ModelError
from fastdrive_node.families.prompt import build_prompt
from fastdrive_training.vla.tiny_model import TinySize
from tests.generation import generate

CASES = 3_000
RUNTIME_CASES = 150
JUNK = (None, True, False, 0, -1, 1, 2**63, 10**400, 1.5, -0.0, 1e308, "", "x", "0" * 64, "../../etc/passwd", "\0",
        "\ud800", [], [[]], [0] * 100, {}, {"a": {}}, "a" * 5000)  # fmt: skip
CHECKED = ("format", "version", "kind", "files", "inputs", "outputs")  # sections where every change must show
CHECKED_GRAPH = {
    "vision": ("cameras", "image_size", "grid", "width", "max_keep", "encoder", "pruner"),
    "language": ("part", "layers", "heads", "kv_heads", "head_dim", "width", "vocabulary", "language"),
}

Damage = Callable[[random.Random, SmallEngine, dict[str, bytes]], None]


def damage_bytes(rng: random.Random, data: bytes) -> bytes:
    """Another sequence of bytes."""
    start = rng.randrange(len(data))
    kind = rng.randrange(6)
    if kind == 0:
        changed = bytearray(data)
        changed[start] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if kind == 1:
        return data[:start]
    if kind == 2:
        return data[:start] + rng.randbytes(rng.randint(1, 40)) + data[start:]
    if kind == 3:
        return data[:start] + data[start + rng.randint(1, 60) :]
    if kind == 4:
        return data + rng.choice([b"\0", b" ", b"\n", b"}", data])
    return rng.randbytes(rng.randint(0, 400))


def damage_manifest_bytes(rng: random.Random, engine: SmallEngine, files: dict[str, bytes]) -> None:
    path = manifest_path(engine.file)
    path.write_bytes(damage_bytes(rng, files[path.name]))


def damage_file_bytes(rng: random.Random, engine: SmallEngine, files: dict[str, bytes]) -> None:
    name = rng.choice(list(engine.manifest.files))
    engine.file.with_name(name).write_bytes(damage_bytes(rng, files[name]))


def remove_or_replace(rng: random.Random, engine: SmallEngine, files: dict[str, bytes]) -> None:
    path = engine.file.with_name(rng.choice(list(files)))
    path.unlink()
    kind = rng.randrange(4)
    if kind == 1:
        path.mkdir()
    if kind == 2:
        path.symlink_to(path.name)
    if kind == 3:
        path.symlink_to("/dev/null")


def change_value(rng: random.Random, engine: SmallEngine, files: dict[str, bytes]) -> None:
    """Any value, the seal left as it is."""
    content = json.loads(files[manifest_path(engine.file).name])
    place, key = rng.choice(list(places(content)))
    if rng.randrange(4):
        place[key] = other_value(rng, place[key])
    else:
        del place[key]
    manifest_path(engine.file).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def change_checked_value(rng: random.Random, engine: SmallEngine, files: dict[str, bytes]) -> None:
    """A value that is compared with files, VLA or graph, with a seal that fits."""
    content = json.loads(files[manifest_path(engine.file).name])
    of_graph = CHECKED_GRAPH[engine.manifest.part]
    sections = [(content, name) for name in CHECKED] + [(content["graph"], name) for name in of_graph]
    inside = [
        pair for parent, name in sections if isinstance(parent[name], dict | list) for pair in places(parent[name])
    ]
    place, key = rng.choice(sections + inside)
    if rng.randrange(4):
        place[key] = other_value(rng, place[key])
    else:
        del place[key]
    manifest_path(engine.file).write_text(sealed(content))


def places(content) -> list[tuple[dict | list, str | int]]:
    """Every place in nested JSON that holds a value."""
    keys = content if isinstance(content, dict) else range(len(content))
    found = []
    for key in keys:
        found.append((content, key))
        if isinstance(content[key], dict | list):
            found += places(content[key])
    return found


def other_value(rng: random.Random, value):
    while True:
        junk = rng.choice(JUNK)
        if type(junk) is not type(value) or junk != value:
            return junk


DAMAGES: tuple[Damage, ...] = (
    damage_manifest_bytes,
    damage_file_bytes,
    remove_or_replace,
    change_value,
    change_checked_value,
)


def changed(engine: SmallEngine, files: dict[str, bytes]) -> list[Path]:
    paths = {engine.file.with_name(name): data for name, data in files.items()}
    return [path for path, data in paths.items() if not (path.is_file() and path.read_bytes() == data)]


def restore(paths: list[Path], files: dict[str, bytes]) -> None:
    for path in paths:
        if path.is_symlink():
            path.unlink()
        elif path.is_dir():
            path.rmdir()
        path.write_bytes(files[path.name])


@pytest.fixture
def memory_path(tmp_path):
    """A folder in memory where there is one: tens of thousands of small files are written."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def test_every_damage_is_refused_with_a_typed_error(memory_path):
    rng, reasons = random.Random(0), Counter()
    engines = []
    for kind in ("onnx", "tensorrt", "language"):
        folder = memory_path / kind
        folder.mkdir()
        engine = small_language_engine(folder) if kind == "language" else small_engine(folder, kind)
        engines.append((engine, {path.name: path.read_bytes() for path in folder.iterdir()}))
    for case in range(CASES):
        engine, files = engines[case % 3]
        damage = DAMAGES[case // 3 % len(DAMAGES)]
        damage(rng, engine, files)
        damaged = changed(engine, files)
        if not damaged:
            continue  # such as bytes cut out behind the end
        try:
            engine.check()
            pytest.fail(f"case {case}, {damage.__name__}: accepted {manifest_path(engine.file).read_text()}")
        except ModelError as refusal:
            assert "\n" not in str(refusal), f"case {case}: {refusal}"
        reasons[damage.__name__] += 1
        restore(damaged, files)
    assert min(reasons.values()) > 0.9 * CASES / len(DAMAGES), reasons


@pytest.fixture(scope="module")
def smallest(tmp_path_factory) -> tuple[Toy, Path]:
    """An engine that onnxruntime loads in milliseconds."""
    size = TinySize(image_height=56, image_width=56, tower_depth=1, tower_width=16, tower_intermediate=16,
                    full_attention_blocks=(0,), layers=1, width=32, heads=2, kv_heads=1, intermediate=16)  # fmt: skip
    toy = make_toy(tmp_path_factory.mktemp("smallest"), size)
    return toy, build_onnx(toy.vla.path, toy.pruner_file, tmp_path_factory.mktemp("engine"), GraphOptions())[0]


def damaged_copies(rng: random.Random, file: Path, copy: Path):
    """Write damaged copies of an engine one after another, each with a manifest whose hashes fit; gives nothing."""
    graph, content = file.read_bytes(), json.loads(manifest_path(file).read_text())
    for _ in range(RUNTIME_CASES):
        copy.write_bytes(damage_bytes(rng, graph))
        info = file_info(copy)
        content["files"] = {copy.name: {"bytes": info.bytes, "sha256": info.sha256}}
        manifest_path(copy).write_text(sealed(content))
        yield


def test_a_damaged_graph_with_a_manifest_that_fits_it_is_refused_or_runs(smallest, tmp_path):
    """Hashes cannot tell here. What still is a graph of the right form may run; what is not must not crash."""
    toy, file = smallest
    refused, copy = 0, tmp_path / file.name
    for _ in damaged_copies(random.Random(1), file, copy):
        try:
            engine = open_engine(EngineChoice("onnxruntime", copy, "cpu"), toy.vla, toy.pruner_file)
            engine.encode(engine.preprocess(toy.images))
        except ModelError:
            refused += 1
    assert refused > RUNTIME_CASES / 2


def test_a_damaged_language_graph_with_a_manifest_that_fits_it_is_refused_or_runs(smallest, tmp_path, ego_history):
    toy = smallest[0]
    file, _ = build_language(toy.vla.path, tmp_path / "whole")
    prompt, refused, copy = build_prompt(toy.vla, ego_history), 0, tmp_path / file.name
    for _ in damaged_copies(random.Random(2), file, copy):
        try:
            generate(open_language_engine(LanguageChoice(copy, "cpu"), toy.vla), toy.vla, toy.tokens, None, prompt)
        except ModelError:
            refused += 1
    assert refused > RUNTIME_CASES / 2


def test_an_engine_whose_tensors_or_facts_are_not_the_manifests_is_refused(smallest, tmp_path):
    toy, file = smallest
    copy = Path(shutil.copy(file, tmp_path))
    content = json.loads(manifest_path(file).read_text())

    def refusal(model: onnx.ModelProto) -> str:
        copy.write_bytes(model.SerializeToString())
        info = file_info(copy)
        content["files"] = {copy.name: {"bytes": info.bytes, "sha256": info.sha256}}
        manifest_path(copy).write_text(sealed(content))
        with pytest.raises(ModelError) as error:
            open_engine(EngineChoice("onnxruntime", copy, "cpu"), toy.vla, toy.pruner_file)
        return str(error.value)

    model = onnx.load(str(file))
    model.metadata_props[0].value = model.metadata_props[0].value.replace('"fp32"', '"fp16"')
    assert "precision: the graph says fp16, its manifest fp32" in refusal(model)
    model.metadata_props[0].value = "[" * 100
    assert "opset: the graph says" in refusal(model)
    model = onnx.load(str(file))
    model.graph.node[-1].output[0] = model.graph.output[-1].name = "other"
    assert "outputs.other" in refusal(model)
