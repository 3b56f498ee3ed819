"""The environment of node and drivers for large messages, their expected loss, and what killed processes leave."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

from fastdrive_node.errors import InputError
from fastdrive_node.files import package_share_file

VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")  # up to Jazzy, and after it
SHIPPED = "config/fastdds.xml"
LARGE_BYTES = 512 * 1024  # of a message; Fast DDS's own shared-memory segment holds no more
_SHM = Path("/dev/shm")
_RECEIVE_LIMIT = Path("/proc/sys/net/core/rmem_max")
_RECEIVE_BYTES = 10_000_000  # of a socket's buffer: what Cyclone DDS advises for large messages
_LOCK = re.compile(r"(fast(?:rtps|dds)_[0-9a-f]{16})_el")  # beside a segment; its owner holds it as long as it lives
_DEAD_S = 60.0  # age of a segment that is looked at, so that none is taken while its owner makes it
_SHM_BYTES = 3 * 134_217_728  # a segment for each of two participants, and one to spare
TUNABLES = "GLIBC_TUNABLES"
_MALLOC = {  # glibc.malloc, in bytes; the manual is "Memory Allocation Tunables" of the GNU C Library
    "hugetlb": 1,  # huge pages where the kernel has them
    "mmap_threshold": 32 << 20,  # an image below it is memory of the heap
    "trim_threshold": 256 << 20,  # which stays with the process
    "top_pad": 64 << 20,
}


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
    if profile == "" or (profile is None and profile_set()):
        return {}
    path = package_share_file(SHIPPED) if profile is None else Path(profile)
    if not path.is_file():
        raise InputError(f"{path}: no such Fast DDS profile; give an XML file, or '' for none")
    if profile is None and not has_shared_memory():
        return {}
    return dict.fromkeys(VARIABLES, str(path.resolve()))


def memory_environment() -> dict[str, str]:
    """The variable by which glibc keeps the memory of large messages.

    Else it gives the memory of each image back to the kernel, which clears it page by page for the next one.

    Returns:
        Empty where the variable is set already. Names that an older glibc does not know have no effect.
    """
    if os.environ.get(TUNABLES):
        return {}
    return {TUNABLES: ":".join(f"glibc.malloc.{name}={value}" for name, value in _MALLOC.items())}


def profile_set() -> bool:
    """Whether a Fast DDS profile is set for this process."""
    return any(os.environ.get(name) for name in VARIABLES)


def has_shared_memory() -> bool:
    """Whether /dev/shm has space for the shipped profile's segments."""
    return _SHM.is_dir() and shutil.disk_usage(_SHM).free >= _SHM_BYTES


def remove_dead_segments(folder: Path = _SHM) -> tuple[int, int]:
    """Remove the Fast DDS segments of processes that were killed, which nothing else removes; as `fastdds shm clean`.

    A segment is dead where nobody holds the lock of the file beside it. Those of other users are left.

    Returns:
        How many, and their bytes.
    """
    count = freed = 0
    for lock in folder.glob("fast*_el") if folder.is_dir() else ():
        found = _LOCK.fullmatch(lock.name)
        if found is None:
            continue
        segment = folder / found[1]
        with suppress(OSError):  # another user's, locked, or removed meanwhile
            state = segment.stat()
            if time.time() - state.st_mtime < _DEAD_S:
                continue
            file = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                segment.unlink()
                count, freed = count + 1, freed + state.st_size
                lock.unlink()
            finally:
                os.close(file)
    return count, freed


def loss_expected(middleware: str, message_bytes: int | None) -> str:
    """Why large messages to this process will be lost, and what helps; empty where nothing says so.

    What is known is the environment of this process. A publisher needs the same.

    Args:
        middleware: like rmw_fastrtps_cpp.
        message_bytes: of the largest image so far; None: raw images, none of which has come yet.
    """
    if message_bytes is not None and message_bytes <= LARGE_BYTES:
        return ""
    what = "raw images" if message_bytes is None else f"images of {message_bytes / 1e6:.1f} MB"
    if middleware.startswith("rmw_fastrtps") and not profile_set():
        cause = "" if has_shared_memory() else f", and {_SHM} is too small for it"
        return (
            f"large messages without shared memory: expect loss of {what}. No Fast DDS profile is set{cause}; "
            "start node and drivers with fastdrive_transport.launch.py (docs/transport.md)"
        )
    if middleware.startswith("rmw_cyclonedds") and (limit := _receive_limit()) < _RECEIVE_BYTES:
        return (
            f"large messages over sockets: expect loss of {what}. net.core.rmem_max is {limit}, give it at least "
            f"{_RECEIVE_BYTES} (docs/transport.md)"
        )
    return ""


def _receive_limit() -> int:
    """Bytes of the largest receive buffer that a socket can have."""
    try:
        return int(_RECEIVE_LIMIT.read_text())
    except (OSError, ValueError):
        return _RECEIVE_BYTES  # not known
