"""What a process opens towards the network: by Python, as audit events tell, and by anything else, as /proc tells."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from fastdrive_node.ros.planner_factory import LoadedPlanner
from fastdrive_node.ros.planner_factory import load_planner as load_real

_LOCAL = {int(socket.AF_UNIX), int(getattr(socket, "AF_NETLINK", -1))}
_NAMES = (
    "socket.connect",
    "socket.bind",
    "socket.sendto",
    "socket.sendmsg",
    "socket.getaddrinfo",
    "socket.gethostbyname",
)
_CONNECTED = ("http.client.connect", "urllib.Request", "ftplib.connect", "smtplib.connect")
_seen: list[str] = []


def _hook(event: str, arguments: tuple) -> None:
    if event in _CONNECTED or event in _NAMES:
        first = arguments[0] if arguments else None
        if isinstance(first, socket.socket) and int(first.family) in _LOCAL:
            return
        _seen.append(f"{event} {arguments!r:.120}")


def load_planner(settings) -> LoadedPlanner:
    """The real planner, for a planner's process: its identity has what the process has opened since now."""
    sys.addaudithook(_hook)
    loaded = load_real(settings)
    offline = os.environ.get("HF_HUB_OFFLINE", "")

    def identity() -> dict[str, str]:
        opened = [*_seen, *sockets("self")]
        return {**loaded.identity(), "network": "; ".join(opened) or "none", "hub_offline": offline}

    return replace(loaded, identity=identity)


def segments(process: int) -> list[Path]:
    """Shared memory of Fast DDS that a process owns: it holds the lock of the file beside each segment."""
    rows = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    held = {row[5].split(":")[2] for row in rows if row[4] == str(process)}
    found = []
    for lock in Path("/dev/shm").glob("fast*_el"):
        with suppress(FileNotFoundError):  # another test's
            if "port" not in lock.name and str(lock.stat().st_ino) in held:
                found.append(lock.with_name(lock.name.removesuffix("_el")))
    return found


def sockets(process: int | str) -> list[str]:
    """Sockets of the internet that a process holds, each as its protocol with the remote address."""
    held = set()
    for entry in Path(f"/proc/{process}/fd").iterdir():
        try:
            held.add(os.readlink(entry))
        except OSError:  # closed meanwhile
            continue
    found = []
    for protocol in ("tcp", "tcp6", "udp", "udp6"):
        table = Path(f"/proc/{process}/net/{protocol}")
        rows = [line.split() for line in table.read_text().splitlines()[1:]] if table.is_file() else []
        found += [f"{protocol} to {row[2]}" for row in rows if f"socket:[{row[9]}]" in held]
    return found
