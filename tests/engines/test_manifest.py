"""What is refused before an engine runs, and with which message."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastdrive_export.files import LOCK_FILE, STAGE, builder_lock, file_info, publish, staging, write_manifest
from fastdrive_node.engines.manifest import MAX_MANIFEST_BYTES, manifest_path, manifest_text, read_manifest
from fastdrive_node.engines.vision_engine import EngineChoice, check_engine, choose_engine, open_engine
from fastdrive_node.errors import InputError, ModelError
from tests.engines.engine_fixtures import ENCODER, sealed, small_engine


@pytest.fixture(params=["onnx", "tensorrt"])
def engine(request, tmp_path):
    return small_engine(tmp_path, request.param)


def check(engine):
    return check_engine(engine.file, engine.vla, engine.pruner_file)


def change(engine, seal=True, **values):
    """Change dotted fields (``graph__grid``) of the manifest file."""
    path = manifest_path(engine.file)
    content = json.loads(path.read_text())
    for name, value in values.items():
        *parents, last = name.split("__")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
    path.write_text(sealed(content) if seal else json.dumps(content, indent=2, sort_keys=True) + "\n")


def test_a_whole_engine_of_this_vla_passes(engine):
    assert check(engine) == engine.manifest


def test_the_manifest_reads_back_as_it_was_written(engine):
    unverified = engine.manifest.model_copy(update={"parity": None})
    write_manifest(engine.file, unverified)
    assert read_manifest(engine.file) == unverified
    assert manifest_path(engine.file).read_text() == manifest_text(unverified)


def test_an_engine_without_a_manifest_is_refused(engine):
    manifest_path(engine.file).unlink()
    with pytest.raises(ModelError, match=r"\.json: missing; an engine is used only with its manifest; build it with: "):
        check(engine)


def test_an_absent_engine_is_refused_with_the_command(tmp_path):
    with pytest.raises(
        ModelError, match=r"no such engine file; build it with: fastdrive export build --backend tensorrt"
    ):
        read_manifest(tmp_path / "vision.plan")


def test_a_truncated_engine_is_refused_with_both_sizes(engine):
    engine.file.write_bytes(engine.file.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"bytes: the file has 299, its manifest says 300; .* --vla /models/vla"):
        check(engine)


def test_a_changed_byte_is_refused_by_its_hash(engine):
    data = bytearray(engine.file.read_bytes())
    data[5] ^= 1
    engine.file.write_bytes(data)
    with pytest.raises(ModelError, match=r"sha256: the file has [0-9a-f]{12}, its manifest says [0-9a-f]{12};"):
        check(engine)


def test_a_missing_data_file_is_refused(tmp_path):
    engine = small_engine(tmp_path)
    (tmp_path / "vision.onnx.data").unlink()
    with pytest.raises(ModelError, match=r"vision\.onnx\.data: missing, though the manifest names it"):
        check(engine)


def test_a_manifest_edited_by_hand_is_refused(engine):
    change(engine, seal=False, graph__precision="fp32")
    with pytest.raises(ModelError, match=r"seal: .* changed by hand"):
        check(engine)


def test_a_manifest_with_other_spacing_is_refused(engine):
    path = manifest_path(engine.file)
    path.write_text(path.read_text() + " ")
    with pytest.raises(ModelError, match="seal"):
        check(engine)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"format": "other"}, "format: 'other', expected 'fastdrive-engine'"),
        ({"version": 2}, "version: '2', expected 1"),
        ({"version": True}, "version: 'True', expected 1"),
        ({"kind": "openvino"}, "kind: 'openvino': must be 'onnx' or 'tensorrt'"),
        ({"kind": 10**400}, "kind: 1000.*: must be 'onnx' or 'tensorrt'"),
        ({"graph__grid": [4]}, r"graph\.grid\.1: is missing"),
        ({"graph__max_keep": 193}, r"graph\.max_keep: 193 of 192 tokens"),
        ({"graph__cameras": ["CAM_FRONT"] * 6}, r"graph\.cameras: a name is there twice"),
        ({"graph__width": -1}, r"graph\.width: -1: must be greater than or equal to 1"),
        ({"graph__width": "128"}, r"graph\.width: '128': must be a valid integer"),
        ({"graph__encoder": "\ud800"}, "not readable as JSON"),
        ({"files": {}}, "files: .*at least 1 item"),
        ({"files": {"../vision.onnx": {"bytes": 1, "sha256": "0" * 64}}}, r"files\.\.\./vision.onnx: .*match pattern"),
        ({"files": {"other.onnx": {"bytes": 1, "sha256": "0" * 64}}}, "files: .* lacks vision"),
        ({"inputs__images__shape": [6, 3, 112, 225]}, "inputs: they are not those of the manifest's graph"),
        ({"outputs__scores__dtype": "int32"}, "outputs: they are not those of the manifest's graph"),
        ({"parity__cosine": 2}, r"parity\.cosine: 2: must be less"),
        ({"comment": "mine"}, "comment: 'mine': is no field here"),
    ],
)
def test_a_wrong_field_is_named(engine, values, reason):
    change(engine, **values)
    with pytest.raises(ModelError, match=reason):
        check(engine)


def test_a_plan_needs_the_machine_that_it_was_built_on(tmp_path):
    engine = small_engine(tmp_path, "tensorrt")
    change(engine, target=None)
    with pytest.raises(ModelError, match="target: missing for kind tensorrt"):
        check(engine)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"\xff\xfe{}",
        b'{"a": NaN}',
        b"[" * 100_000,
        b" " * (MAX_MANIFEST_BYTES + 1),
        b'{"format": "fastdrive-engine", "version": 1, "a": 1e999}',
        b'{"format": "fastdrive-engine", "version": 1, "a": ' + b"[" * 900 + b"]" * 900 + b"}",
    ],
    ids=["empty", "cut", "list", "not UTF-8", "NaN", "deep", "large", "infinite", "nested"],
)
def test_what_is_no_manifest_is_refused(engine, content):
    manifest_path(engine.file).write_bytes(content)
    with pytest.raises(ModelError, match=r"not readable as a manifest|format|seal"):
        check(engine)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("width", 256, "width: the engine has 128, but /models/vla has 256"),
        ("grid", (8, 4), r"grid: the engine has \(4, 8\), but /models/vla has \(8, 4\)"),
        ("encoder_fingerprint", "f" * 64, "encoder: the engine has [0-9a-f]{12}, but /models/vla has ffffffffffff;"),
    ],
)
def test_an_engine_of_another_vla_is_refused_with_both_values(engine, name, value, reason):
    setattr(engine.vla, name, value)
    with pytest.raises(ModelError, match=reason):
        check(engine)


def test_other_cameras_or_their_order_are_refused(engine):
    engine.vla.spec.cameras = engine.vla.spec.cameras[::-1]
    with pytest.raises(ModelError, match="cameras: the engine has"):
        check(engine)


def test_another_pruner_is_refused_with_the_command(engine):
    save_file({"scorer.weight": torch.zeros(1, 8)}, engine.pruner_file, {"config": "{}"})
    with pytest.raises(
        ModelError, match=r"pruner: the engine has .*build it with: .* --pruner .*reconpruner\.safetensors"
    ):
        check(engine)
    engine.pruner_file.write_bytes(b"cut off")
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        check(engine)
    engine.pruner_file.unlink()
    with pytest.raises(ModelError, match="no such pruner file"):
        check(engine)
    assert check_engine(engine.file, engine.vla, None) == engine.manifest


def test_a_pruner_that_was_calibrated_since_is_the_same(engine):
    metadata = {"config": "{}", "encoder": ENCODER, "calibration": "{}"}
    save_file({"scorer.weight": torch.ones(1, 8)}, engine.pruner_file, metadata)
    assert check(engine) == engine.manifest


def test_an_engine_of_the_other_runtime_is_refused(engine):
    other = "tensorrt" if engine.manifest.kind == "onnx" else "onnxruntime"
    with pytest.raises(ModelError, match=r"kind: the file is for .* but the vision backend is"):
        open_engine(EngineChoice(other, engine.file), engine.vla, engine.pruner_file)


def test_an_engine_that_failed_its_comparison_is_refused(tmp_path):
    engine = small_engine(tmp_path)
    parity = engine.manifest.parity.model_copy(update={"passed": False, "cosine": 0.14})
    write_manifest(engine.file, engine.manifest.model_copy(update={"parity": parity}))
    with pytest.raises(ModelError, match=r"found a cosine of 0.1400"):
        open_engine(EngineChoice("onnxruntime", engine.file), engine.vla, engine.pruner_file)


def test_backend_and_engine_go_together(tmp_path):
    assert choose_engine("torch", "") is None
    assert choose_engine("onnxruntime", "vision.onnx").file == Path("vision.onnx")
    with pytest.raises(InputError, match=r"engine: .* vision_backend is torch"):
        choose_engine("torch", "vision.onnx")
    with pytest.raises(InputError, match="needs an engine file; build one with: fastdrive export build"):
        choose_engine("tensorrt", "")


def test_two_builders_cannot_write_the_same_folder(tmp_path):
    with builder_lock(tmp_path):
        with pytest.raises(InputError, match="another process builds or verifies"), builder_lock(tmp_path):
            pass
        with builder_lock(tmp_path / "other"):
            pass
    with builder_lock(tmp_path):
        assert (tmp_path / LOCK_FILE).exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: cannot be written"), builder_lock(tmp_path / "file"):
        pass


def test_a_build_that_fails_leaves_the_old_engine(engine):
    with pytest.raises(RuntimeError), builder_lock(engine.file.parent), staging(engine.file.parent) as stage:
        (stage / engine.file.name).write_bytes(b"half an engine")
        raise RuntimeError("power cut")
    assert check(engine) == engine.manifest and not (engine.file.parent / STAGE).exists()


def test_an_engine_without_its_new_manifest_is_refused(engine, monkeypatch):
    """The builder ends between the files and the manifest."""

    def end(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastdrive_export.files.write_manifest", end)
    with builder_lock(engine.file.parent), staging(engine.file.parent) as stage:
        for name in engine.manifest.files:
            (stage / name).write_bytes(os.urandom(300))
        files = {name: file_info(stage / name) for name in engine.manifest.files}
        with pytest.raises(KeyboardInterrupt):
            publish(stage, engine.file, engine.manifest.model_copy(update={"files": files}))
    with pytest.raises(ModelError, match="sha256"):
        check(engine)
