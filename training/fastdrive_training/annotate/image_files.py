"""One image of an annotation: its instances and its mask, as the content of files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from pycocotools import mask as coco

from fastdrive_training.annotate.compose import SURE, Composition, Instance
from fastdrive_training.annotate.settings import AnnotateSettings


@dataclass(frozen=True)
class ImageKey:
    """One image of the source."""

    index: int  # of the item
    name: str
    camera: str


@dataclass(frozen=True)
class AnnotatedImage:
    """What the files of an image hold."""

    key: ImageKey
    instances: bytes | None  # gzipped JSON; None where the stored ones stay
    png: bytes  # of the mask
    counts: dict  # for the journal

    @classmethod
    def of(
        cls,
        key: ImageKey,
        packed: bytes | None,
        instances: Sequence[Instance],
        made: Composition,
        settings: AnnotateSettings,
    ) -> AnnotatedImage:
        """Of an image whose mask was composed."""
        png = cv2.imencode(".png", made.labels, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()
        return cls(key, packed, png, _counts(made, instances, settings))


def pack_instances(instances: Sequence[Instance], size: tuple[int, int]) -> bytes:
    """Gzipped JSON of the instances of an image of ``size`` (height, width)."""
    rows = [
        {
            "group": one.group,
            "prompt": one.prompt,
            "box": list(one.box),
            "score": one.score,
            "quality": one.quality,
            "rle": cast(bytes, coco.encode(np.asfortranarray(one.mask.astype(np.uint8)))["counts"]).decode(),
        }
        for one in instances
    ]
    return gzip.compress(json.dumps({"size": list(size), "instances": rows}).encode(), mtime=0)


def unpack_instances(packed: bytes) -> tuple[list[Instance], tuple[int, int]]:
    """What :func:`pack_instances` was given."""
    content = json.loads(gzip.decompress(packed))
    size = tuple(content["size"])
    return [
        Instance(
            row["group"],
            row["prompt"],
            tuple(row["box"]),
            row["score"],
            row["quality"],
            coco.decode({"size": list(size), "counts": row["rle"].encode()}).astype(bool),
        )
        for row in content["instances"]
    ], size


def _counts(made: Composition, instances: Sequence[Instance], settings: AnnotateSettings) -> dict:
    """Pixels by label, and instances by group: how many are sure or in doubt, and the sum of the sure ones' scores."""
    pixels = np.bincount(made.labels.ravel(), minlength=256)
    groups = {group.name: {"sure": 0, "doubt": 0, "score": 0.0} for group in settings.groups}
    for one, verdict in zip(instances, made.verdicts, strict=True):
        groups[one.group]["sure" if verdict == SURE else "doubt"] += 1
        groups[one.group]["score"] += one.score if verdict == SURE else 0.0
    return {"pixels": {name: int(pixels[number]) for name, number in settings.labels.items()}, "instances": groups}
