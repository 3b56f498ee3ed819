"""What an earlier run left in its folder is kept: hours of training are never overwritten by a repeated command."""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path


def set_aside(folder: Path) -> Path | None:
    """Rename a folder that holds anything to the first free of ``NAME.1``, ``NAME.2``, ... beside it.

    Returns the new name; None where there was nothing to keep.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    kept = next(path for number in count(1) if not (path := folder.with_name(f"{folder.name}.{number}")).exists())
    folder.rename(kept)
    print(f"{folder}: held an earlier run, which is now {kept}; --resume would have gone on with it", file=sys.stderr)
    return kept
