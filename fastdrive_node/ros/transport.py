"""The Fast DDS profile as environment variables."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fastdrive_node.errors import InputError
from fastdrive_node.files import package_share_file

VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")  # up to Jazzy, and after it
SHIPPED = "config/fastdds.xml"
_SHM = Path("/dev/shm")
_SHM_BYTES = 3 * 134_217_728  # a segment for each of two participants, and one to spare


def profile_environment(profile: str | None = None) -> dict[str, str]:
    """The variables that set a Fast DDS profile.

    Args:
        profile: a file; None for the shipped one, "" for none.

    Returns:
        Empty where a profile is set already, or where the shipped one asks for more shared memory than there is (a
        container has 64 MB by default), for a segment that cannot grow ends the process.

    Raises:
        InputError: the file does not exist.
    """
    if profile == "" or (profile is None and any(os.environ.get(name) for name in VARIABLES)):
        return {}
    path = package_share_file(SHIPPED) if profile is None else Path(profile)
    if not path.is_file():
        raise InputError(f"{path}: no such Fast DDS profile; give an XML file, or '' for none")
    if profile is None and not has_shared_memory():
        return {}
    return dict.fromkeys(VARIABLES, str(path.resolve()))


def has_shared_memory() -> bool:
    """Whether /dev/shm has space for the shipped profile's segments."""
    return _SHM.is_dir() and shutil.disk_usage(_SHM).free >= _SHM_BYTES
