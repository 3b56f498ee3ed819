"""Where the files that ship beside the code lie."""

from __future__ import annotations

from pathlib import Path

from fastdrive_node.types import InputError


def shared_file(name: str) -> Path:
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
