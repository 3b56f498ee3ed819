"""What the vehicle installs is pinned with hashes, and the bill of materials lists all of it."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from fastdrive_node.errors import InputError
from fastdrive_node.sbom import REQUIREMENTS, bill_of_materials, main, pins
from tests.packaging.source_imports import ROOT
from tests.packaging.test_dependencies import CONSTRAINTS, PROJECT

TEXT = (ROOT / REQUIREMENTS).read_text()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_requirement_of_the_vehicle_is_pinned_with_hashes_and_no_index_is_named():
    assert not re.search(r"https?://|file:|--(extra-)?index-url|--find-links", TEXT)
    pinned: dict[str, set[str]] = {}
    for name, version, _, sums in pins(TEXT):
        assert sums
        pinned.setdefault(_normal(name), set()).add(version)
    tested: dict[str, set[str]] = {}
    for line in CONSTRAINTS.read_text().splitlines():
        if "==" in line and not line.startswith("#"):
            name, _, version = line.partition("==")
            tested.setdefault(_normal(name), set()).add(version.partition(";")[0].strip())
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["export"]]
    for requirement in wanted:
        name = _normal(re.match(r"[\w.-]+", requirement)[0])
        assert pinned.get(name) == tested[name], f"{name}: run `make {REQUIREMENTS}`"


@pytest.mark.parametrize(
    "text",
    ["numpy==1.26.4\n", "numpy>=1.24 \\\n    --hash=sha256:" + 64 * "0" + "\n", "-e .\n", "numpy @ https://a/b\n"],
)
def test_a_requirement_without_version_or_hash_is_refused(text):
    with pytest.raises(InputError, match=r"requirements-vehicle.txt: .* needs a version and hashes"):
        list(pins(f"# a comment\n{text}"))


def test_the_bill_lists_every_package_once_with_its_identity(tmp_path):
    file = tmp_path / "sbom.cdx.json"
    assert main([str(file)]) == 0
    document = json.loads(file.read_text())
    assert (document["bomFormat"], document["specVersion"], document["version"]) == ("CycloneDX", "1.6", 1)
    references = [component["bom-ref"] for component in document["components"]]
    assert len(references) == len(set(references))
    assert document["dependencies"][0]["dependsOn"] == references
    packages = {component["purl"]: component for component in document["components"] if "purl" in component}
    assert len(packages) == len(list(pins(TEXT)))
    sums = [each["value"] for each in packages["pkg:pypi/rosbags@0.11.9"]["properties"] if "sha256" in each["name"]]
    assert sums and all(f"--hash=sha256:{each}" in TEXT for each in sums)
    assert {"rclpy", "cv_bridge"} <= {each["name"] for each in document["components"] if each.get("group") == "ros"}
    weights = (ROOT / "models/tiny/model.safetensors").read_bytes()
    model = next(each for each in document["components"] if each["name"] == "tiny/model.safetensors")
    assert model["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(weights).hexdigest()}]
    names = {each["name"] for each in document["components"]}
    assert {"tiny_drive/model.safetensors", "tiny_wide/model.safetensors"} <= names
    assert bill_of_materials(ROOT) == document  # the same checkout, the same file


def test_outside_of_a_checkout_the_missing_file_is_named(tmp_path, capsys):
    assert main([str(tmp_path / "out.json"), "--root", str(tmp_path)]) == 1
    assert "requirements-vehicle.txt" in capsys.readouterr().err and not (tmp_path / "out.json").exists()
