"""A rig whose node is a process of its own, with the stand-in planner; it can be stopped and killed."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.ros import fake_planner
from tests.ros.conftest import Rig

SCRIPT = Path(fake_planner.__file__)


class ProcessRig(Rig):
    """As ``Rig``, without its ``node``; ``process`` in its place."""

    def __init__(self, rclpy: Any, parameters: dict[str, Any]):
        from rclpy.executors import SingleThreadedExecutor

        words = [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")]
        self.process = subprocess.Popen([sys.executable, str(SCRIPT), "--ros-args", *words], stderr=subprocess.DEVNULL)
        self.peer = rclpy.create_node("peer")
        self.messages = defaultdict(list)
        self.compressed = self._closing = False
        self._changed = threading.Condition()
        self._publishers = {}
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.peer)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def start(self) -> None:
        """The node starts by itself."""

    def is_connected(self) -> bool:
        return all(publisher.get_subscription_count() for publisher in self._publishers.values())

    def now_ns(self) -> int:
        return time.time_ns()

    def is_spinning(self) -> bool:
        return self._thread.is_alive() and self.process.poll() is None

    def close(self) -> None:
        self._closing = True
        self.process.kill()
        self.process.wait()
        self._executor.shutdown()
        self._thread.join()
        self.peer.destroy_node()
