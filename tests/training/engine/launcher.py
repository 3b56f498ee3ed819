"""Several processes of one training, as a launcher such as torchrun starts them: by variables of their environment.

Run as a program it imports a module, which takes longest, once, and forks the processes; each calls ``main(folder)``.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PARTS = (
    "commands.train",
    "data.nuscenes.keyframes",
    "distil.train",
    "pruner.train",
    "vla.train_tower",
)  # imported as they are needed


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(module: str, folder: Path, count: int) -> None:
    """Run a module's ``main`` in ``count`` processes; fails with what a failing one said."""
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(_free_port()), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen(
        [sys.executable, "-m", "tests.training.engine.launcher", module, str(folder), str(count)],
        cwd=ROOT,
        env={**os.environ, **shared, "ACCELERATE_USE_CPU": "true"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, said = parent.communicate(timeout=300)
        assert parent.returncode == 0, said[-3000:]
    finally:
        with suppress(ProcessLookupError):  # all have ended
            os.killpg(parent.pid, signal.SIGKILL)


def _fork(module: str, folder: Path, count: int) -> int:
    """Exit status 0 where all processes end with 0; with the first that fails this one ends, and then ``launch``."""
    run = import_module(module).main
    for name in PARTS:
        import_module(f"fastdrive_training.{name}")
    for rank in range(count):
        if os.fork() == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            run(folder)
            return 0
    for _ in range(count):
        _, status = os.wait()
        if status:  # the others would wait for it
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(_fork(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
