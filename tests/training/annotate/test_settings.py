"""The configuration of an annotation."""

from __future__ import annotations

import pytest
import yaml

from fastdrive_node.errors import InputError
from fastdrive_training.annotate.settings import SHIPPED, load_settings


def test_shipped_groups_are_the_five_of_nuscenes_fg():
    shipped = load_settings()
    assert {group.name for group in shipped.groups} == {"human", "road", "vehicle", "traffic_sign", "traffic_barrier"}
    assert shipped.groups[0].name == "road"  # everything else stands on it
    assert shipped.labels["background"] == 0 and shipped.labels["ignore"] == 255
    assert sorted(shipped.labels.values()) == [0, 1, 2, 3, 4, 5, 255]


def test_single_keys_are_overridden(tmp_path):
    changed = load_settings(None, ["composition.accept=0.5", "models.segmenter=facebook/sam-vit-base"])
    assert changed.composition.accept == 0.5
    assert changed.models.segmenter == "facebook/sam-vit-base"
    assert changed.groups == load_settings().groups


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grops": []}, "unknown key grops"),
        ({"groups": None}, "groups: must be a valid list"),
        ({"groups": []}, "groups: at least one"),
        ({"groups": [{"name": "road"}]}, r"missing key groups\[0\]\.prompts"),
        ({"groups": [{"name": "road", "prompts": []}]}, "road needs at least one"),
        ({"groups": [{"name": "ignore", "prompts": ["x"]}]}, "name: lower-case"),
        ({"groups": [{"name": "../road", "prompts": ["x"]}]}, "name: lower-case"),
        ({"groups": [{"name": "road", "prompts": ["a road. a car"]}]}, "without a full stop"),
        ({"groups": [{"name": "road", "prompts": ["x"], "min_area": 0.9}]}, "min_area, max_area"),
        ({"groups": [{"name": "a", "prompts": ["x"]}, {"name": "b", "prompts": ["x"]}]}, "prompt 'x' is there twice"),
        ({"groups": [{"name": "a", "prompts": ["x"]}, {"name": "a", "prompts": ["y"]}]}, "name 'a' is there twice"),
        ({"composition": {"accept": 1.5}}, "accept: must be from 0 to 1"),
        ({"composition": {"band": 0.5}}, "band: must be from 0 to 0.1"),
        ({"detection": {"max_detections": 0}}, "max_detections: must be at least 1"),
    ],
)
def test_wrong_key_or_value_is_named_with_the_file(tmp_path, change, message):
    path = tmp_path / "groups.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(SHIPPED.read_text()), **change}))
    with pytest.raises(InputError, match=message) as failure:
        load_settings(path)
    assert "groups.yaml" in str(failure.value)


def test_unreadable_configuration_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read"):
        load_settings(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("groups: [")
    with pytest.raises(InputError, match=r"broken\.yaml: no valid YAML"):
        load_settings(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(InputError, match="must be a mapping"):
        load_settings(tmp_path / "list.yaml")
