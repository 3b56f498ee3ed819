"""One table: descriptors, checks, schema, and the shipped parameter file."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from fastdrive_node.errors import InputError
from fastdrive_node.ros.parameters import (
    BY_NAME,
    PARAMETERS,
    Settings,
    check_parameter_file,
    descriptor,
    json_schema,
    problem,
    schema_text,
)

CONFIG = Path(__file__).resolve().parents[2] / "config"


def test_the_schema_file_is_the_tables():
    again = "from fastdrive_node.ros.parameters import schema_text; print(schema_text(), end='')"
    assert (CONFIG / "fastdrive.schema.json").read_text() == schema_text(), f'write it again: python -c "{again}"'


def test_the_shipped_file_has_every_parameter_with_its_default():
    content = check_parameter_file(CONFIG / "fastdrive.yaml")
    assert content["/**"]["ros__parameters"] == {parameter.name: parameter.default for parameter in PARAMETERS}


def test_the_settings_are_those_of_the_table():
    assert [field.name for field in fields(Settings)] == [parameter.name for parameter in PARAMETERS]
    settings = Settings.defaults()
    assert all(type(getattr(settings, p.name)) is p.kind for p in PARAMETERS)
    assert all(problem(p.name, p.default) is None for p in PARAMETERS)
    assert all(p.description for p in PARAMETERS)


def write(tmp_path, **values) -> Path:
    path = tmp_path / "parameters.yaml"
    path.write_text(yaml.safe_dump({"fastdrive": {"ros__parameters": values}}))
    return path


def test_a_parameter_file_may_have_some_parameters_and_the_clock(tmp_path):
    check_parameter_file(write(tmp_path, drop=0.75, use_sim_time=True))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"dropp": 0.5}, "dropp"),
        ({"drop": 2.0}, "drop: 2.0"),
        ({"drop": "half"}, "drop: 'half'"),
        ({"image_transport": "jpeg"}, "image_transport: 'jpeg'"),
        ({"max_missing_cameras": 1.5}, "max_missing_cameras: 1.5"),
    ],
)
def test_a_wrong_parameter_file_names_the_parameter(tmp_path, values, reason):
    with pytest.raises(InputError, match=reason):
        check_parameter_file(write(tmp_path, **values))


def test_what_is_no_parameter_file_is_refused(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "broken.yaml").write_text("a: [")
    for name in ("list.yaml", "broken.yaml", "absent.yaml"):
        with pytest.raises(InputError, match=name):
            check_parameter_file(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("drop", 0.96, "0.96 is not in -1 ... 0.95"),
        ("drop", 1, "of type int, not float"),
        ("drop", float("nan"), "nan is not in"),
        ("max_missing_cameras", True, "of type bool, not int"),
        ("device", "tpu", "'tpu' is not one of auto, cpu, cuda"),
        ("brightness", 1.0, "no such parameter"),
    ],
)
def test_a_bad_value_has_its_reason(name, value, reason):
    assert reason in problem(name, value)


def test_descriptors_carry_ranges_and_read_only_flags():
    pytest.importorskip("rcl_interfaces.msg", reason="ROS 2 messages are not installed")
    drop = descriptor(BY_NAME["drop"])
    assert not drop.read_only and drop.floating_point_range[0].to_value == 0.95
    assert descriptor(BY_NAME["vla"]).read_only
    assert descriptor(BY_NAME["max_missing_cameras"]).integer_range[0].to_value == 5
    assert "raw, compressed" in descriptor(BY_NAME["image_transport"]).additional_constraints


def test_the_schema_is_a_schema():
    import jsonschema

    jsonschema.Draft202012Validator.check_schema(json_schema())
    json.dumps(json_schema())
