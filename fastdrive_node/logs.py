"""Logging of a process that runs for days: what repeats is told every few seconds, not for every message."""

from __future__ import annotations

import logging
import sys
import time

REPEAT_S = 5.0


class RepeatFilter(logging.Filter):
    """Passes what one line of code logs once in ``REPEAT_S``, with the number of records that were left out."""

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[tuple[str, int], tuple[float, int]] = {}  # by place: when, and how many since

    def filter(self, record: logging.LogRecord) -> bool:
        place, now = (record.pathname, record.lineno), time.monotonic()
        before, omitted = self._told.get(place, (-REPEAT_S, 0))
        if now - before < REPEAT_S:
            self._told[place] = (before, omitted + 1)
            return False
        self._told[place] = (now, 0)
        if omitted:
            record.msg, record.args = f"{record.getMessage()} ({omitted} more like it)", ()
        return True


def set_up() -> None:
    """Warnings and errors to stderr, repeated ones seldom; nothing where logging is set up already."""
    root = logging.getLogger()
    if root.handlers:
        return
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    root.handlers[0].addFilter(RepeatFilter())
