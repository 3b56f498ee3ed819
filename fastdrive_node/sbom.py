"""A software bill of materials for the vehicle: CycloneDX 1.6 in JSON, of what ``requirements-vehicle.txt`` pins.

``make sbom`` writes ``sbom.cdx.json``: every Python package with its hashes, the ROS packages of ``package.xml``, and
the shipped models. The same checkout gives the same file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from fastdrive_node import __version__
from fastdrive_node.errors import FastDriveError, InputError
from fastdrive_node.files import write_atomically

REQUIREMENTS, PACKAGE = "requirements-vehicle.txt", "package.xml"
MODELS = ("models/tiny", "models/tiny_drive", "models/tiny_wide")
SPEC_VERSION = "1.6"
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)\s*(?:;\s*([^\\]*?))?\s*(?:\\|$)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def bill_of_materials(root: Path) -> dict[str, Any]:
    """The CycloneDX document of a checkout.

    Raises:
        InputError: a file is missing, or a requirement has no version or no hash.
    """
    try:
        components = [
            *_python_packages((root / REQUIREMENTS).read_text(encoding="utf-8")),
            *_ros_packages(root / PACKAGE),
            *(file for model in MODELS for file in _model_files(root / model)),
        ]
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; run this in a checkout") from error
    reference = f"pkg:generic/fastdrive_node@{__version__}"
    project = {
        "type": "application",
        "bom-ref": reference,
        "name": "fastdrive_node",
        "version": __version__,
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    content = json.dumps([project, components], sort_keys=True)
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}",
        "version": 1,
        "metadata": {"component": project},
        "components": components,
        "dependencies": [{"ref": reference, "dependsOn": [each["bom-ref"] for each in components]}],
    }


def pins(text: str) -> Iterator[tuple[str, str, str, list[str]]]:
    """Name, version, marker and SHA-256 sums of each requirement in a file with hashes.

    Raises:
        InputError: a requirement has no version or no hash.
    """
    for block in re.split(r"\n(?=\S)", text):
        lines = [line for line in block.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        if not lines:
            continue
        found, sums = _PIN.match(lines[0]), _HASH.findall(block)
        if found is None or not sums:
            raise InputError(f"{REQUIREMENTS}: {lines[0][:80]!r} needs a version and hashes; run make {REQUIREMENTS}")
        yield found[1], found[2], found[3] or "", sums


def _python_packages(text: str) -> Iterator[dict[str, Any]]:
    for name, version, marker, sums in pins(text):
        purl = f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{version}"
        properties = [{"name": "fastdrive:marker", "value": marker}] if marker else []
        # One release has a file for each platform: the hashes are those of its files, not of one of them.
        properties += [{"name": "fastdrive:file:sha256", "value": each} for each in sums]
        component = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
        yield {**component, "properties": properties}


def _ros_packages(manifest: Path) -> Iterator[dict[str, Any]]:
    """Of the distribution that is sourced, so that there is no version."""
    for element in ElementTree.parse(manifest).iter("exec_depend"):
        name = element.text or ""
        if not name.startswith("python3-"):
            yield {"type": "library", "bom-ref": f"ros:{name}", "group": "ros", "name": name}


def _model_files(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(folder.glob("*.safetensors")):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        name = f"{folder.name}/{file.name}"
        hashes = [{"alg": "SHA-256", "content": digest}]
        yield {"type": "machine-learning-model", "bom-ref": f"model:{name}", "name": name, "hashes": hashes}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the document. Returns 0, or 1 where the checkout lacks something."""
    parser = argparse.ArgumentParser(prog="python -m fastdrive_node.sbom", description="CycloneDX JSON of a checkout")
    parser.add_argument("out", type=Path, help="file to write, e.g. sbom.cdx.json")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="the checkout")
    options = parser.parse_args(arguments)
    try:
        document = bill_of_materials(options.root)
    except FastDriveError as error:
        print(f"sbom: {error}", file=sys.stderr)
        return 1
    with write_atomically(options.out) as partial:
        partial.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
