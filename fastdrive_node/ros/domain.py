"""A private ROS domain, so that a replay neither receives from nor disturbs other nodes on the machine."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastdrive_node.errors import FastDriveError

DOMAINS = range(1, 102)  # 0 is the default; above 101 the ports of Linux's ephemeral range begin


@contextmanager
def own_domain() -> Iterator[int]:
    """A domain id that no other process has claimed; the claim ends with the context, or with the process.

    Raises:
        FastDriveError: all are claimed.
    """
    folder = Path("/tmp")  # one for all: TMPDIR may differ between the shells of a machine
    if not os.access(folder, os.W_OK):
        folder = Path(tempfile.gettempdir())
    first = os.getpid() % len(DOMAINS)
    for domain in [*DOMAINS[first:], *DOMAINS[:first]]:
        with suppress(OSError):
            lock = os.open(folder / f"ros_domain_{domain}.lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
                continue
            break
    else:
        raise FastDriveError(f"all ROS domains are claimed ({folder}/ros_domain_*.lock); end another replay first")
    try:
        yield domain
    finally:
        os.close(lock)
