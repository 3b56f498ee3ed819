"""Repeated log records are told seldom."""

from __future__ import annotations

import logging

import pytest

from fastdrive_node import logs


@pytest.fixture
def log(caplog):
    log = logging.getLogger("of_this_test")
    caplog.handler.addFilter(added := logs.RepeatFilter())
    log.propagate, log.handlers = False, [caplog.handler]  # no other handler has the records
    yield log
    log.propagate, log.handlers = True, []
    caplog.handler.removeFilter(added)


def test_what_one_line_logs_again_and_again_is_told_once_and_counted_later(log, caplog, monkeypatch):
    now = 100.0
    monkeypatch.setattr(logs.time, "monotonic", lambda: now)
    for number in range(50):
        log.warning("frame %d", number)
        log.warning("another line")
        now += 0.11 * (number == 48) * 100
    assert [record.getMessage() for record in caplog.records] == [
        "frame 0",
        "another line",
        "frame 49 (48 more like it)",
        "another line (48 more like it)",
    ]


def test_the_set_up_filters_its_own_handler_and_leaves_others_alone():
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        logs.set_up()
        assert root.handlers == before  # pytest's
        root.handlers[:] = []
        logs.set_up()
        logs.set_up()
        (made,) = root.handlers
        assert [type(each) for each in made.filters] == [logs.RepeatFilter]
    finally:
        root.handlers[:] = before
        root.setLevel(level)
