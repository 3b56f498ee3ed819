import json

import pytest
import torch
from safetensors import safe_open

from fastdrive_node.errors import ModelError
from fastdrive_node.pruning.calibration import Calibration, CameraScale, FitRecord
from fastdrive_node.pruning.catalog import ScoreOptions, TemporalSettings
from fastdrive_node.pruning.checkpoint import load_calibration, load_pruner, save_calibration, save_pruner
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.pruning.registry import make_pruner

CAMERAS = ("CAM_FRONT", "CAM_BACK")
FIT = FitRecord("sim", "val", 800, 0.04, 0.01)
CALIBRATION = Calibration({"CAM_FRONT": CameraScale(2.0, -1.0), "CAM_BACK": CameraScale(0.5, 1.0)}, FIT)


@pytest.fixture
def file(tmp_path, tiny_vla):
    torch.manual_seed(0)
    pruner = ReconPruner(tiny_vla.family, tiny_vla.config.text_config)
    save_pruner(tmp_path / "pruner.safetensors", pruner, tiny_vla.encoder_fingerprint)
    return tmp_path / "pruner.safetensors"


def metadata(file):
    with safe_open(file, framework="pt") as stored:
        return dict(stored.metadata())


def test_each_camera_has_its_own_numbers():
    scores = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert CALIBRATION.logits(scores, CAMERAS).tolist() == [[-1.0, 1.0], [1.0, 1.5]]
    assert CALIBRATION.logits(scores, CAMERAS[::-1]).tolist() == [[1.0, 1.5], [-1.0, 1.0]]


def test_the_order_within_a_camera_stays():
    scores = torch.randn(2, 50)
    assert torch.equal(CALIBRATION.logits(scores, CAMERAS).argsort(), scores.argsort())


def test_half_precision_scores_give_float32():
    assert CALIBRATION.logits(torch.ones(2, 3, dtype=torch.bfloat16), CAMERAS).dtype == torch.float32


def test_a_camera_without_calibration_is_refused_by_name():
    with pytest.raises(ModelError, match=r"calibration: CAM_LEFT: was not calibrated .*CAM_FRONT, CAM_BACK"):
        CALIBRATION.logits(torch.zeros(1, 2), ("CAM_LEFT",))


def test_it_survives_its_file(file, tiny_vla):
    before = load_pruner(file, tiny_vla).state_dict()
    stored = metadata(file)
    save_calibration(file, CALIBRATION)
    assert load_calibration(file) == CALIBRATION
    after = load_pruner(file, tiny_vla).state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert {**stored, "calibration": metadata(file)["calibration"]} == metadata(file)
    assert list(file.parent.iterdir()) == [file]


def test_a_second_calibration_takes_the_place_of_the_first(file):
    save_calibration(file, CALIBRATION)
    other = Calibration({"CAM_FRONT": CameraScale(1.0, 0.0)}, FIT)
    save_calibration(file, other)
    assert load_calibration(file) == other


def test_another_file_may_take_it(file, tmp_path):
    save_calibration(file, CALIBRATION, tmp_path / "new" / "calibrated.safetensors")
    assert load_calibration(file) is None
    assert load_calibration(tmp_path / "new" / "calibrated.safetensors") == CALIBRATION


def test_a_file_without_calibration_has_none(file):
    assert load_calibration(file) is None


@pytest.mark.parametrize("options", [None, ScoreOptions(temporal=TemporalSettings())])
def test_a_pruner_whose_damaged_calibration_is_not_needed_loads_with_one_warning(file, tiny_vla, caplog, options):
    rewrite(file, "nonsense")
    make_pruner("reconpruner", tiny_vla, file, options=options)
    (message,) = caplog.messages
    assert message.startswith(f"{file}: calibration: not readable as JSON") and message.endswith("it is not used")


def test_a_damaged_calibration_that_an_option_needs_is_refused(file, tiny_vla):
    rewrite(file, "nonsense")
    with pytest.raises(ModelError, match="calibration: not readable as JSON"):
        make_pruner("reconpruner", tiny_vla, file, options=ScoreOptions(calibrated=True))


def test_no_pruner_file_is_named(tmp_path, tiny_dir):
    with pytest.raises(ModelError, match="none: no such pruner file"):
        load_calibration(tmp_path / "none")
    with pytest.raises(ModelError, match="not a pruner file"):
        load_calibration(tiny_dir / "model.safetensors")
    with pytest.raises(ModelError, match="not a pruner file"):
        save_calibration(tiny_dir / "model.safetensors", CALIBRATION, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def rewrite(file, text):
    from safetensors.torch import load_file, save_file

    save_file(load_file(file), file, {**metadata(file), "calibration": text})


def changed(**values):
    return json.dumps({**json.loads(CALIBRATION.to_json()), **values})


@pytest.mark.parametrize(
    "text,reason",
    [
        ("", "not readable as JSON"),
        ("[" * 10**5, "not readable as JSON"),
        ("[]", "must be an object"),
        (changed(cameras={}), "cameras"),
        (changed(cameras={"CAM_FRONT": {"scale": 0, "shift": 0}}), "scale"),
        (changed(cameras={"CAM_FRONT": {"scale": -1, "shift": 0}}), "scale"),
        (changed(cameras={"CAM_FRONT": {"scale": 1e9, "shift": 0}}), "scale"),
        (
            changed(cameras={"CAM_FRONT": {"scale": 1, "shift": float("nan")}}),
            "shift: nan: must be a finite number",
        ),
        (changed(cameras={"CAM_FRONT": {"scale": True, "shift": 0}}), "scale"),
        (changed(cameras={"CAM_FRONT": {"scale": 1, "shift": 0, "run": "x"}}), "run"),
        (changed(fit={}), "fit"),
        (changed(extra=1), "extra"),
    ],
)
def test_hostile_calibrations_are_refused_with_the_file(file, text, reason):
    rewrite(file, text)
    with pytest.raises(ModelError, match=rf"pruner\.safetensors: calibration: .*{reason}"):
        load_calibration(file)
