"""One name, one thing: no two classes of the project have the same name."""

from __future__ import annotations

import ast
from collections import defaultdict

from tests.packaging.source_imports import modules, tree


def test_no_two_classes_have_the_same_name():
    found = defaultdict(list)
    for name in modules():
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(f"{name}:{node.lineno}")
    assert {name: places for name, places in found.items() if len(places) > 1} == {}
