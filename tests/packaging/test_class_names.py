"""One name, one thing: no two classes of the project have the same name."""

from __future__ import annotations

from collections import defaultdict

from tests.packaging.source_imports import classes, modules


def test_no_two_classes_have_the_same_name():
    found = defaultdict(list)
    for name in modules():
        for each, line in classes(name):
            found[each].append(f"{name}:{line}")
    assert {name: places for name, places in found.items() if len(places) > 1} == {}
