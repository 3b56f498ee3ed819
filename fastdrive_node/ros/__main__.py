"""The node's program: a signal that comes before rclpy handles signals ends it at once, and with 0."""

from __future__ import annotations

import os
import signal
import sys


def main() -> int:
    """Run the node; see ``node.main``."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))  # nothing has started yet
    from fastdrive_node.ros.node import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
