"""Files that ship beside the code, and files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastdrive_node.errors import InputError

# Pruners' files in a VLA directory, beside those of ``catalog.FILES``.
SHIPPED_PRUNER = "reconpruner.safetensors"
VIEW_WEIGHTS_FILE, GEOMETRY_FILE = "prune2drive.json", "camera_geometry.json"
TOKEN_PACKER_FILE = "tokenpacker.safetensors"


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; it replaces ``path`` when the block ends, and is deleted where it fails.

    Readers see the old file or the whole new one, also after a crash. The folder is made where it is missing.
    The temporary name keeps the suffix, because numpy and others append their own to names without it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def package_share_file(name: str) -> Path:
    """A shipped file by its path, e.g. ``config/fastdds.xml``: in a checkout, or in ``share/fastdrive_node``.

    Raises:
        InputError: it is in neither place.
    """
    here = Path(__file__).resolve()
    places = [here.parents[1] / name, *(parent / "share" / "fastdrive_node" / name for parent in here.parents)]
    for place in places:
        if place.is_file():
            return place
    raise InputError(f"{name}: not found in {here.parents[1]} nor in share/fastdrive_node; install the package again")
