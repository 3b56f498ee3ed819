"""``fastdrive export inspect``: the manifest and the layers of an engine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fastdrive_export.commands.options import plain, say
from fastdrive_node.cli import write_json
from fastdrive_node.commands.options import add_json_argument

if TYPE_CHECKING:
    from fastdrive_node.engines.manifest import Manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Check an engine against its manifest, and print both the manifest and a table of the network's parts."
    )
    parser.epilog = "example:\n  fastdrive export inspect engines/vision.onnx"
    parser.add_argument("file", type=Path, metavar="FILE", help="engine file")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Raises ModelError where engine and manifest do not belong together."""
    from fastdrive_node.engines.manifest import check_files, read_manifest

    manifest = read_manifest(args.file)
    check_files(args.file, manifest)
    layers = _layers(args.file, manifest)
    say(args, "\n".join([*_manifest_lines(manifest), "", *_layer_lines(layers)]))
    write_json({"manifest": manifest.model_dump(mode="json"), "layers": layers}, args.json)


def _layers(file: Path, manifest: Manifest) -> list[dict]:
    if manifest.kind == "onnx":
        from fastdrive_export.onnx_file import layer_table

        return layer_table(file)
    from fastdrive_export.tensorrt_build import plan_layers

    return plan_layers(file, manifest)


def _manifest_lines(manifest: Manifest) -> list[str]:
    content = manifest.model_dump(mode="json")
    lines = [f"{'kind':18} {manifest.kind}"]
    for name, info in manifest.files.items():
        lines.append(f"{'file':18} {name}, {info.bytes} bytes, SHA-256 {info.sha256[:12]}")
    for section in ("graph", "source", "versions", "target", "parity"):
        if content[section] is None:
            lines.append(f"{section:18} {'never compared with torch' if section == 'parity' else '-'}")
            continue
        for name, value in content[section].items():
            lines.append(f"{section + '.' + name:34} {plain(value)}")
    return lines


def _layer_lines(layers: list[dict]) -> list[str]:
    if layers and "parameters" not in layers[0]:
        return [f"{row['name'][:70]:70} {row['type'][:20]:20} {row['precision']}" for row in layers]
    lines = [f"{'part':20} {'nodes':>6} {'parameters':>12} {'GMAC':>9}  products in"]
    for row in layers:
        types = ", ".join(f"{name} x{count}" for name, count in row["types"].items()) or "-"
        lines.append(f"{row['part']:20} {row['nodes']:6} {row['parameters']:12,} {row['macs'] / 1e9:9.3f}  {types}")
    total = [sum(row[name] for row in layers) for name in ("nodes", "parameters", "macs")]
    return [*lines, f"{'all':20} {total[0]:6} {total[1]:12,} {total[2] / 1e9:9.3f}"]
