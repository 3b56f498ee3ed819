"""What a drive refuses before it starts a node."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fastdrive_node.cli import main
from fastdrive_node.errors import InputError, ModelError
from fastdrive_node.files import package_share_file
from fastdrive_sim.drive.command import DRIVING_VLA, DriveOptions, drive_suite
from fastdrive_sim.drive.preflight import check_pruners, node_settings, read_engines
from fastdrive_sim.drive.types import DriveRow
from tests.engines.engine_fixtures import SmallEngine, file_info, manifest_path, manifest_text, small_engine

VLA = package_share_file(f"{DRIVING_VLA}/vla.json").parent


def test_the_oracle_is_refused_and_not_among_those_that_can_drive(tmp_path, capsys):
    assert main(["sim", "drive", "--out", str(tmp_path / "out"), "--pruners", "none,oracle"]) == 2
    told = capsys.readouterr().err
    assert "--pruners oracle: needs the masks of a dataset, which a drive does not have; " in told
    assert "random" in told.partition("; ")[2] and "oracle" not in told.partition("; ")[2]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("pruner", "told"),
    [
        (VLA / "README.md", "not a readable safetensors file"),
        (VLA / "model.safetensors", "format: not a pruner file"),
        (package_share_file("models/tiny_wide/reconpruner.safetensors"), "encoder: trained on the vision encoder"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_file_that_is_no_pruner_of_the_vla_is_told_before_anything_is_driven(tmp_path, pruner, told):
    options = DriveOptions(tmp_path / "out", families=("bend",), runs=1, pruners=("none", str(pruner)))
    with pytest.raises(ModelError, match=rf"^--pruners {pruner.name}: {pruner}: {told}"):
        drive_suite(options)
    assert not list(options.out.rglob("*.jsonl"))


@pytest.fixture
def bare(tmp_path) -> Path:
    """A VLA directory without files of pruners."""
    folder = shutil.copytree(VLA, tmp_path / "vla")
    for file in (*folder.glob("reconpruner*"), folder / "camera_geometry.json"):
        file.unlink()
    return folder


@pytest.mark.parametrize(
    ("pruner", "told"),
    [
        ("reconpruner", r"reconpruner\.safetensors: no such pruner file"),
        ("reconpruner-plan", r"reconpruner_plan\.safetensors: no such pruner file"),
        ("reconpruner-even50", r"reconpruner\.safetensors: no such pruner file"),
        ("ring-view", r"camera_geometry\.json: missing"),
        ("tokenpacker", r"tokenpacker\.safetensors: missing"),
    ],
)
def test_a_pruner_whose_file_the_vla_lacks_is_told(bare, pruner, told):
    with pytest.raises(ModelError, match=told):
        check_pruners(bare, [DriveRow("random", 0.5), DriveRow(pruner, 0.5)], node_settings(None))


def test_pruners_that_the_node_can_open_are_not_refused():
    variants = (f"reconpruner-{name}" for name in ("plan", "even50", "pooled"))
    names = ("expert", "none", "random", "reconpruner", *variants, "ring-view", "fastv")
    check_pruners(VLA, [DriveRow(name, 0.5) for name in names], node_settings(None))


def written(path: Path, **values: object) -> Path:
    text = ", ".join(f"{name}: {value}" for name, value in values.items())
    path.write_text(f"/**: {{ros__parameters: {{{text}}}}}")
    return path


def test_options_of_scores_are_refused_for_a_pruner_without_scores(tmp_path):
    settings = node_settings(written(tmp_path / "node.yaml", even_spacing=0.5))
    check_pruners(VLA, [DriveRow("reconpruner", 0.5)], settings)
    with pytest.raises(ModelError, match=r"--pruners random: .*are for ReconPruner, but the pruner is 'random'"):
        check_pruners(VLA, [DriveRow("reconpruner", 0.5), DriveRow("random", 0.5)], settings)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"language_engine": "FOLDER/none.onnx"}, r"none\.onnx: no such engine file"),
        ({"language_engine": "FOLDER/vision.onnx"}, "part: it is a vision engine, but a language engine is needed"),
        ({"vision_backend": "onnxruntime"}, "vision_backend onnxruntime needs an engine file"),
        ({"engine": "FOLDER/vision.onnx"}, "vision_backend is torch"),
    ],
)
def test_engines_of_the_parameter_file_are_looked_at(tmp_path, values, told):
    small_engine(tmp_path)
    values = {name: value.replace("FOLDER", str(tmp_path)) for name, value in values.items()}
    options = DriveOptions(tmp_path / "out", pruners=(), params=written(tmp_path / "node.yaml", **values))
    with pytest.raises((InputError, ModelError), match=told):
        drive_suite(options)
    assert not options.out.exists()


def build_again(engine: SmallEngine) -> None:
    """Other weights in the same files."""
    names = engine.manifest.files
    for name in names:
        (engine.file.parent / name).write_bytes(b"built again" + name.encode())
    files = {name: file_info(engine.file.parent / name) for name in names}
    manifest_path(engine.file).write_text(manifest_text(engine.manifest.model_copy(update={"files": files})))


def test_an_engine_that_was_built_again_needs_a_new_folder(tmp_path):
    engine = small_engine(tmp_path)
    params = written(tmp_path / "node.yaml", vision_backend="onnxruntime", engine=engine.file)
    options = DriveOptions(tmp_path / "out", families=("bend",), runs=1, pruners=(), params=params)
    figures = drive_suite(options)
    assert list(figures["settings"]["engines"]) == ["engine"]
    unverified = engine.manifest.model_copy(update={"parity": None})
    manifest_path(engine.file).write_text(manifest_text(unverified))  # the engine is the same
    assert drive_suite(options)["rows"] == figures["rows"]
    build_again(engine)
    with pytest.raises(InputError, match=r"\(settings\.json: engines\.engine: \w{64} there, \w{64} now\); give a new"):
        drive_suite(options)
    drive_suite(replace(options, out=tmp_path / "new"))


def test_a_vision_engine_of_another_vla_is_told(tmp_path):
    engine = small_engine(tmp_path)
    settings = node_settings(written(tmp_path / "node.yaml", vision_backend="onnxruntime", engine=engine.file))
    with pytest.raises(ModelError, match=r"--pruners none: .*vision\.onnx: encoder: the engine has"):
        check_pruners(VLA, [DriveRow("none")], settings, read_engines(settings))
