"""The folder that an annotation fills, from one process or many.

- ``manifest.json``: source and split, prompts, thresholds, models with the digests of their weights, label table.
- ``masks/<camera>/<name>.png``: 8 bits, 0 background, 1.. groups, 255 in doubt.
- ``instances/<camera>/<name>.json.gz``: every instance with prompt, box, score, quality and its mask as COCO RLE, so
  that masks can be composed anew without the models.
- ``journal/<shard>.jsonl``: one line for each finished image, with checksums and counts. An image is finished where its
  line is, belongs to this manifest, and the files have these checksums.
- ``images.jsonl``: the lines of all images in order, written when none is left.
- ``samples.html``: a page to look at.

Files are written by one rename, lines by one append; shards share nothing else, so they may run at once and anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from fastdrive_node.errors import InputError
from fastdrive_node.files import write_atomically
from fastdrive_training.annotate.compose import Instance
from fastdrive_training.annotate.image_files import AnnotatedImage, ImageKey, unpack_instances
from fastdrive_training.annotate.settings import IGNORE, AnnotateSettings, short_digest
from fastdrive_training.data.adapters import ImageSource
from fastdrive_training.data.adapters.base import digest
from fastdrive_training.data.masks import INDEX, MANIFEST, annotated_split

FORMAT = 1
ROLES = ("detector", "segmenter")
DONE, COMPOSE, FIND = "done", "compose", "find"  # what an image still needs


class MaskStore:
    """Raises InputError where ``root`` holds masks of another source, split, prompts or thresholds.

    Args:
        recompose: other composition settings than the manifest's are taken over, and masks made with the old ones
            count as not done.
    """

    def __init__(
        self, root: Path, source: ImageSource, settings: AnnotateSettings, shard: str, recompose: bool = False
    ):
        self.root, self.settings = root, settings
        self._journal = root / "journal" / f"{shard}.jsonl"
        self._metadata = {
            "format": FORMAT,
            "source": {
                "kind": source.kind,
                "split": source.split,
                "cameras": list(source.cameras),
                "items": len(source),
                "names_sha256": digest(source.names),
            },
            "detection": settings.detection_metadata(),
            "composition": settings.composition_metadata(),
            "labels": settings.labels,
            "ignore": IGNORE,
            "foreground_groups": {group.name: [group.name] for group in settings.groups},
        }
        self.models: dict = {}  # identities, once known
        self._detection_id = self._composition_id = ""
        if (root / MANIFEST).exists():
            self._join(recompose)
        elif root.is_dir() and any(not path.name.startswith(".") for path in root.iterdir()):
            raise InputError(f"{root}: is not empty and holds no {MANIFEST}; choose another folder for the masks")
        self._entries = self._read_journals()

    def set_models(self, models: dict) -> None:
        """Begin the manifest with these identities, or check them against it. Raises InputError: other weights."""
        if not self.models and (self.root / MANIFEST).exists():
            self._join(recompose=False)  # another shard was quicker
        if not self.models:
            self._know_models(models)
            self._write_manifest()
        for role in ROLES:
            known, name = self.models[role], models[role]["name"]
            if known["weights_sha256"] != models[role]["weights_sha256"]:
                raise InputError(
                    f"{self.root / MANIFEST}: was begun with other weights of the {role} ({known.get('name')}), not "
                    f"those of {name}; use the same, or choose another folder for the masks"
                )

    def state(self, key: ImageKey) -> str:
        """DONE; COMPOSE where only the mask must be made again; FIND where the models are needed."""
        entry = self._entries.get((key.camera, key.name))
        if entry is None or entry["detection"] != self._detection_id:
            return FIND
        if _sha256(self._instances_path(key)) != entry["instances_sha256"]:
            return FIND
        fresh = entry["composition"] == self._composition_id and _sha256(self.mask_path(key)) == entry["mask_sha256"]
        return DONE if fresh else COMPOSE

    def mask_path(self, key: ImageKey) -> Path:
        return self.root / "masks" / key.camera / f"{key.name}.png"

    def stored_instances(self, key: ImageKey) -> bytes:
        """The file of an image's instances. Call where :meth:`state` found it whole."""
        return self._instances_path(key).read_bytes()

    def read_instances(self, key: ImageKey) -> tuple[list[Instance], tuple[int, int]]:
        """As :func:`unpack_instances`. Call where :meth:`state` found the file whole."""
        return unpack_instances(self.stored_instances(key))

    def write(self, image: AnnotatedImage) -> None:
        """Write an image's files and the journal's line, which makes it a finished one."""
        key = image.key
        if image.instances is not None:
            write_file(self._instances_path(key), image.instances)
        write_file(self.mask_path(key), image.png)
        entry = {
            "camera": key.camera,
            "name": key.name,
            "detection": self._detection_id,
            "composition": self._composition_id,
            "time": time.time(),
            "mask_sha256": hashlib.sha256(image.png).hexdigest(),
            "instances_sha256": _sha256(self._instances_path(key)),
            **image.counts,
        }
        self._entries[key.camera, key.name] = entry
        self._append(entry)

    def finish(self, keys: Sequence[ImageKey]) -> list[dict]:
        """The lines of the finished images of all shards, in order; writes the index where none is left."""
        self._entries = self._read_journals()
        lines = []
        for key in keys:
            entry = self._entries.get((key.camera, key.name))
            if entry and entry["composition"] == self._composition_id and self.mask_path(key).exists():
                lines.append(entry)
        if len(lines) == len(keys):
            rows = ({key: value for key, value in line.items() if key != "time"} for line in lines)
            write_file(self.root / INDEX, "".join(json.dumps(row) + "\n" for row in rows).encode())
        return lines

    def _know_models(self, models: dict) -> None:
        """From here on the digests hold that tie an image's line to what it was made with."""
        self.models = models
        weights = {role: models[role]["weights_sha256"] for role in ROLES}
        metadata = {"source": self._metadata["source"], "detection": self._metadata["detection"], "models": weights}
        self._detection_id = short_digest(metadata)
        self._composition_id = short_digest({"detection": self._detection_id, "of": self._metadata["composition"]})

    def _instances_path(self, key: ImageKey) -> Path:
        return self.root / "instances" / key.camera / f"{key.name}.json.gz"

    def _join(self, recompose: bool) -> None:
        """Take part in an annotation that was begun."""
        path = self.root / MANIFEST
        split = annotated_split(self.root)
        own = self._metadata["source"]["split"]
        if split != own:
            raise InputError(
                f"{path}: holds masks of split {split or 'none'}, not of {own or 'none'}: "
                "splits do not mix; choose another folder"
            )
        stored = json.loads(path.read_text())
        try:
            self._know_models(stored["models"])
        except (KeyError, TypeError, AttributeError):
            raise InputError(f"{path}: names no models; choose another folder for the masks") from None
        for part in ("format", "source", "detection", "labels"):
            if stored.get(part) != self._metadata[part]:
                raise InputError(
                    f"{path}: was begun with another {part} ({_difference(stored.get(part), self._metadata[part])}); "
                    "use the same, or choose another folder for the masks"
                )
        if stored.get("composition") != self._metadata["composition"]:
            if not recompose:
                changed = _difference(stored.get("composition"), self._metadata["composition"])
                raise InputError(
                    f"{path}: was begun with another composition ({changed}); --recompose makes its masks "
                    "anew from the stored instances, without the models"
                )
            (self.root / INDEX).unlink(missing_ok=True)
            self._write_manifest()

    def _write_manifest(self) -> None:
        write_file(self.root / MANIFEST, json.dumps({**self._metadata, "models": self.models}, indent=2).encode())

    def _read_journals(self) -> dict[tuple[str, str], dict]:
        """The newest line of each image over all journals, lines of this composition before others."""
        entries: dict[tuple[str, str], dict] = {}
        ranks: dict[tuple[str, str], tuple[bool, float]] = {}
        for path in sorted((self.root / "journal").glob("*.jsonl")):
            for line in path.read_bytes().splitlines():
                entry = _parse_entry(line)
                if entry is None:
                    continue
                place = entry["camera"], entry["name"]
                rank = entry["composition"] == self._composition_id, entry["time"]
                if place not in ranks or rank >= ranks[place]:
                    entries[place], ranks[place] = entry, rank
        return entries

    def _append(self, entry: dict) -> None:
        self._journal.parent.mkdir(parents=True, exist_ok=True)
        with open(self._journal, "a+b", buffering=0) as file:
            torn = file.tell() > 0 and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"
            file.write((b"\n" if torn else b"") + json.dumps(entry).encode() + b"\n")


def _parse_entry(line: bytes) -> dict | None:
    """None for a line that was cut off; its image is done again."""
    try:
        entry = json.loads(line)
        texts = [
            entry[key] for key in ("camera", "name", "detection", "composition", "mask_sha256", "instances_sha256")
        ]
        whole = all(isinstance(text, str) for text in texts) and isinstance(entry["time"], float)
        return entry if whole and isinstance(entry["pixels"], dict) and isinstance(entry["instances"], dict) else None
    except (ValueError, KeyError, TypeError):
        return None


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with write_atomically(path) as partial:
        partial.write_bytes(content)


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def _difference(stored, wanted) -> str:
    """The first key in which two entries differ, with both values."""
    if not isinstance(stored, dict) or not isinstance(wanted, dict):
        return f"{stored!r} before, {wanted!r} now"
    for key in [*stored, *wanted]:
        if stored.get(key) != wanted.get(key):
            return f"{key}: {_difference(stored.get(key), wanted.get(key))}"
    return "order of keys"
