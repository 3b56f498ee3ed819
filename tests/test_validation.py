"""Files from outside are read within limits of size and depth."""

from __future__ import annotations

import re

import pytest

from fastdrive_node.errors import EgoStateError, InputError, ModelError
from fastdrive_node.families.images import HALF, read_normalisation
from fastdrive_node.families.loading import read_config
from fastdrive_node.families.spec import SPEC_FILE, load_spec
from fastdrive_node.ros.parameter_files import check_parameter_file
from fastdrive_node.ros.topics import load_topic_map
from fastdrive_node.sync.ego_file import read_history
from fastdrive_node.validation import MAX_BYTES, read_bytes, read_json, read_yaml

TEN = ", ".join(["*a{0}"] * 10)
BOMB = "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{TEN.format(i)}]\n" for i in range(12))  # 10^12 values


def test_a_device_that_never_ends_is_read_up_to_the_limit():
    with pytest.raises(ValueError, match="larger than 1000 bytes"):
        read_bytes("/dev/zero", 1000)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("[1]", "not a JSON object"), ('{"a": ' + "[" * 100_000, "nested too deep"), ("{", "Expecting property name")],
)
def test_json_that_is_no_object_or_too_deep_is_refused(tmp_path, text, reason):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_json(file)


def test_yaml_that_expands_without_bound_is_refused():
    with pytest.raises(ValueError, match="more than 1000000 values"):
        read_yaml(BOMB)
    with pytest.raises(ValueError, match="an alias within its own anchor"):
        read_yaml("a: &a [*a]")
    assert read_yaml("a: &a [1, 2]\nb: *a") == {"a": [1, 2], "b": [1, 2]}
    assert read_yaml("") is None


def test_a_parameter_file_with_such_yaml_is_refused(tmp_path):
    file = tmp_path / "parameters.yaml"
    file.write_text(f"{BOMB}/**:\n  ros__parameters:\n    vla: *a12\n")
    with pytest.raises(InputError, match="more than 1000000 values"):
        check_parameter_file(file)


@pytest.mark.parametrize(
    ("name", "read", "error"),
    [
        (SPEC_FILE, lambda file: load_spec(file.parent), ModelError),
        ("config.json", lambda file: read_config(file.parent), ModelError),
        ("preprocessor_config.json", lambda file: read_normalisation(file.parent, HALF), ModelError),
        ("history.json", lambda file: read_history(file, 1, 0.5), EgoStateError),
        ("parameters.yaml", check_parameter_file, InputError),
        ("topics.yaml", load_topic_map, InputError),
    ],
)
def test_a_file_of_absurd_size_is_named_and_not_read(tmp_path, name, read, error):
    file = tmp_path / name
    with file.open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)  # a hole, which takes no space
    with pytest.raises(error, match=f"{re.escape(str(file))}: .*larger than"):
        read(file)
