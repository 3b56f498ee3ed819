"""The node's program: a signal that comes before rclpy handles signals ends it at once, and with 0."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the node and exit; see ``program.main``."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))  # nothing has started yet
    from fastdrive_node.ros.program import main as run

    code = run()
    sys.stdout.flush()
    os._exit(code)  # a planner in this process may hang, and would keep it


if __name__ == "__main__":
    main()
