"""One table: descriptors, checks, schema, and the shipped parameter file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from fastdrive_node.errors import InputError
from fastdrive_node.planning.checks import Band, PlanLimits
from fastdrive_node.planning.image_health import ImageLimits
from fastdrive_node.ros.parameter_files import ParameterFile, check_parameter_file, file_texts
from fastdrive_node.ros.parameters import PARAMETERS, Settings, descriptor, make_settings, validate
from fastdrive_node.sync.frames import FrameLimits
from fastdrive_node.sync.outcomes import WorkerLimits
from fastdrive_node.types import Vehicle

ROOT = Path(__file__).resolve().parents[2]


GENERATED = ("config/fastdrive.yaml", "config/fastdrive.schema.json", "config/vla.schema.json", "docs/node.md")


@pytest.mark.parametrize("name", GENERATED)
def test_generated_files_are_up_to_date(name):
    expected = file_texts(ROOT)[name]
    assert (ROOT / name).read_text() == expected, "write it again: python -m fastdrive_node.ros.parameter_files"


def test_the_shipped_file_has_every_parameter_with_its_default():
    assert check_parameter_file(ROOT / "config" / "fastdrive.yaml") == Settings().model_dump()


def test_every_parameter_is_described_and_its_default_is_valid():
    for name, value in Settings().model_dump().items():
        assert PARAMETERS[name]["description"] and validate(name, value) is None


def test_defaults_are_those_of_the_parts():
    settings = Settings()
    assert settings.frame_limits() == FrameLimits() and settings.worker_limits() == WorkerLimits()
    assert settings.image_limits() == ImageLimits()
    assert settings.plan_limits(settings.vehicle_wheel_base_m) == PlanLimits() and settings.vehicle() == Vehicle()


def test_vehicle_and_plan_limits_are_parameters():
    settings = make_settings({"vehicle_width_m": 2.5, "max_plan_speed_mps": 20.0})
    assert settings.vehicle().width_m == 2.5 and settings.plan_limits(2.0).speed == Band(36.0, 20.0)
    with pytest.raises(InputError, match="vehicle_height_m: no such parameter"):
        make_settings({"vehicle_height_m": 2.5})


def test_frame_ids_are_read_and_wrong_ones_are_refused():
    settings = make_settings({"camera_frame_ids": "CAM_FRONT=front_optical CAM_BACK=rear"})
    assert settings.input_limits().frame_ids == {"CAM_FRONT": "front_optical", "CAM_BACK": "rear"}
    with pytest.raises(InputError, match="camera_frame_ids: 'CAM_FRONT': 'CAM_FRONT' is not one frame_id"):
        make_settings({"camera_frame_ids": "CAM_FRONT"})


def test_the_actions_of_checks_reach_them():
    settings = make_settings({"image_noise_check": "off", "stamps_jump_check": "warn", "frame_id_check": "refuse"})
    assert settings.image_limits() == ImageLimits(noise_check="off")
    assert settings.frame_limits().stamps_jump == "warn" and settings.worker_limits().inputs.frame_id == "refuse"


def write(tmp_path, **values) -> Path:
    path = tmp_path / "parameters.yaml"
    path.write_text(yaml.safe_dump({"fastdrive": {"ros__parameters": values}}))
    return path


def test_a_parameter_file_may_have_some_parameters_and_the_clock(tmp_path):
    qos = {"/camera": {"subscription": {"reliability": "reliable"}}}
    file = write(tmp_path, drop=0.75, use_sim_time=True, qos_overrides=qos)
    assert check_parameter_file(file) == {"drop": 0.75}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"dropp": 0.5}, r"parameters\.yaml: fastdrive\.ros__parameters\.dropp: no such parameter; did you mean drop"),
        ({"brightness": 0.5}, "brightness: no such parameter; there are vla, "),
        ({"drop": 2.0}, "drop: 2.0"),
        ({"drop": "half"}, "drop: 'half'"),
        ({"image_transport": "jpeg"}, "image_transport: 'jpeg'"),
        ({"max_missing_cameras": 1.5}, "max_missing_cameras: 1.5"),
        ({"max_set_age_s": True}, "max_set_age_s: True: of type bool, not float"),
        ({"use_sim_time": "yes"}, "use_sim_time: 'yes'"),
    ],
)
def test_a_wrong_parameter_file_names_the_parameter(tmp_path, values, reason):
    with pytest.raises(InputError, match=reason):
        check_parameter_file(write(tmp_path, **values))


def test_an_integer_is_taken_for_a_double(tmp_path):
    values = check_parameter_file(write(tmp_path, max_set_age_s=1))
    assert values == {"max_set_age_s": 1.0} and type(values["max_set_age_s"]) is float
    assert validate("max_set_age_s", 1) is None


@pytest.mark.parametrize(
    ("name", "node"),
    [
        *[(name, "fastdrive") for name in ("/**", "fastdrive", "/fastdrive", "/**/fastdrive")],
        *[(name, "/car/fastdrive") for name in ("/**", "car/fastdrive", "/*/fastdrive", "/car/*", "/car/**")],
        ("/**/fastdrive", "/left/car/fastdrive"),
    ],
)
def test_sections_of_the_node_count(tmp_path, name, node):
    path = tmp_path / "parameters.yaml"
    sections = {name: {"ros__parameters": {"drop": 0.75}}, "/car/other": {"ros__parameters": {"drop": 0.25}}}
    path.write_text(yaml.safe_dump(sections))
    assert check_parameter_file(path, node)["drop"] == 0.75


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("/car/fastdrive", "fastdrive"),
        ("/*/fastdrive", "fastdrive"),
        ("/fastdrive", "/car/fastdrive"),
    ],
)
def test_a_section_of_another_namespace_is_none_of_the_node(tmp_path, name, node):
    path = tmp_path / "parameters.yaml"
    path.write_text(yaml.safe_dump({name: {"ros__parameters": {"drop": 0.75}}}))
    with pytest.raises(InputError, match="no section of the node /"):
        check_parameter_file(path, node)


@pytest.mark.parametrize("name", ["/a**/fastdrive", "/car*/fastdrive", "/***", "/fast(drive", ""])
def test_a_section_that_is_no_name_and_no_pattern_is_refused(tmp_path, name):
    path = tmp_path / "parameters.yaml"
    path.write_text(yaml.safe_dump({name: {"ros__parameters": {"drop": 0.75}}}))
    with pytest.raises(InputError, match=r"parameters\.yaml: "):
        check_parameter_file(path, "/car/fastdrive")


def test_a_file_for_another_node_is_refused(tmp_path):
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump({"/fastdriv": {"ros__parameters": {"drop": 0.75}}}))
    with pytest.raises(InputError, match=r"/fastdriv: no section of the node /fastdrive; name it /\*\*, or /fastdrive"):
        check_parameter_file(path)


def test_what_is_no_parameter_file_is_refused(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "broken.yaml").write_text("a: [")
    for name in ("list.yaml", "broken.yaml", "absent.yaml"):
        with pytest.raises(InputError, match=name):
            check_parameter_file(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("drop", -0.5, "-0.5: should be a pruning ratio of 0 to 0.95, or -1"),
        ("drop", 0.96, "0.96: should be less than or equal to 0.95"),
        ("drop", 1, "1: should be less than or equal to 0.95"),
        ("drop", True, "of type bool, not float"),
        ("drop", float("nan"), "nan: should be a finite number"),
        ("max_missing_cameras", True, "of type bool, not int"),
        ("device", "tpu", "'tpu': should be 'auto', 'cpu' or 'cuda'"),
        ("brightness", 1.0, "brightness: no such parameter; there are vla, pruner, drop,"),
        ("max_set_age", 1.0, "max_set_age: no such parameter; did you mean max_set_age_s"),
    ],
)
def test_a_bad_value_has_its_reason(name, value, reason):
    assert reason in validate(name, value)


def test_descriptors_carry_ranges_and_read_only_flags():
    pytest.importorskip("rcl_interfaces.msg", reason="ROS 2 messages are not installed")
    drop = descriptor("drop")
    assert not drop.read_only and drop.floating_point_range[0].to_value == 0.95
    assert descriptor("dtype").read_only and not descriptor("vla").read_only
    assert descriptor("max_missing_cameras").integer_range[0].to_value == 31
    assert "raw, compressed" in descriptor("image_transport").additional_constraints


def test_the_schema_is_a_schema():
    import jsonschema

    schema = ParameterFile.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid(yaml.safe_load((ROOT / "config" / "fastdrive.yaml").read_text()))
    assert not validator.is_valid({"/**": {"ros__parameters": {"dropp": 0.5}}})


def test_the_schema_of_vla_json_accepts_the_shipped_one_and_no_unknown_field():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((ROOT / "config" / "vla.schema.json").read_text())
    shipped = json.loads((ROOT / "models" / "tiny" / "vla.json").read_text())
    jsonschema.validate(shipped, schema)
    with pytest.raises(jsonschema.ValidationError, match="unexpected"):
        jsonschema.validate({**shipped, "camera": []}, schema)
