"""Which package may import which; the rules are those of ARCHITECTURE.md."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter

import pytest

from fastdrive_node.families.loading import MODEL_TYPES
from tests.packaging.source_imports import PACKAGES, Import, imports, modules

# Edges that still close a cycle. Only ever remove from these lists: an entry that is no longer needed fails the test.
CYCLE_EXCEPTIONS = {}
FAMILY_EXCEPTIONS: set[str] = {
    "benchmarks.perf.random_models",
    "benchmarks.perf.random_source",
    "benchmarks.perf.vision_path",
    "benchmarks.studies.pruner_memory",
}
FAMILY_NAMES = {re.sub(r"[_0-9].*", "", name) for name in MODEL_TYPES}  # "qwen", "llava", ...


def _package_graph() -> dict[str, set[str]]:
    """For each package of the project (``fastdrive_node.ros``) or top-level module, the ones that it imports."""
    graph: dict[str, set[str]] = defaultdict(set)
    for package in PACKAGES:
        for found in imports(package):
            importer, module = (".".join(name.split(".")[:2]) for name in (found.importer, found.module))
            if module.split(".")[0] in PACKAGES and importer != module:
                graph[importer].add(module)
    return graph


def _find_cycle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_packages_import_one_another_without_cycles():
    graph = {
        importer: {module for module in found if (importer, module) not in CYCLE_EXCEPTIONS}
        for importer, found in _package_graph().items()
    }
    assert not (cycle := _find_cycle(graph)), " <- ".join(cycle)


@pytest.mark.parametrize("edge", sorted(CYCLE_EXCEPTIONS))
def test_every_exception_to_the_import_order_is_still_needed(edge):
    graph = _package_graph()
    kept = {importer: {m for m in found if (importer, m) not in CYCLE_EXCEPTIONS} for importer, found in graph.items()}
    assert edge[1] in graph[edge[0]], f"remove {edge}: it is no longer imported"
    kept[edge[0]].add(edge[1])
    assert _find_cycle(kept), f"remove {edge}: it closes no cycle"


def _violations(package: str, forbidden: tuple[str, ...], allowed_importers: tuple[str, ...] = ()) -> list[Import]:
    return [
        found
        for found in imports(package)
        if found.module.split(".")[0] in forbidden and not found.importer.startswith(allowed_importers or "\0")
    ]


def test_the_node_imports_neither_training_nor_export_nor_the_simulator():
    assert not _violations("fastdrive_node", ("fastdrive_training", "fastdrive_export", "fastdrive_sim", "benchmarks"))


@pytest.mark.parametrize("package", ["fastdrive_training", "fastdrive_export", "fastdrive_sim"])
def test_only_benchmarks_import_benchmarks(package):
    assert not _violations(package, ("benchmarks",))


@pytest.mark.parametrize("package", PACKAGES)
def test_only_ros_and_the_player_of_replay_import_rclpy(package):
    replay = ("fastdrive_node.replay.player", "fastdrive_node.replay.connection")
    allowed = ("fastdrive_node.ros.", *replay, "benchmarks.robustness.")
    assert not _violations(package, ("rclpy",), allowed)


@pytest.mark.parametrize("package", PACKAGES)
def test_only_the_tensorrt_modules_import_tensorrt(package):
    assert not _violations(package, ("tensorrt",), ("fastdrive_node.engines.tensorrt_", "fastdrive_export"))


@pytest.mark.parametrize("package", PACKAGES)
def test_names_of_transformers_are_imported_from_the_modules_that_define_them(package):
    """``from transformers import`` makes pyright read all models that there are: twice as many files in all."""
    assert not [str(found) for found in imports(package) if found.module == "transformers"]


def _code(name: str) -> str:
    """Source of a module without comments and docstrings, in lower case."""
    tree = ast.parse(modules()[name].read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            node.body[0] = ast.Pass()
    return ast.unparse(tree).lower()


def _names_a_family(name: str) -> bool:
    if not any(family in modules()[name].read_text().lower() for family in FAMILY_NAMES):
        return False
    code = _code(name)
    return any(family in code for family in FAMILY_NAMES)


def test_only_families_name_a_vla_family():
    families = ("fastdrive_node.families.", "fastdrive_export.families.", "fastdrive_training.families.")
    outside = {name for name in modules() if not f"{name}.".startswith(families)}
    assert {name for name in outside if _names_a_family(name)} - FAMILY_EXCEPTIONS == set()


@pytest.mark.parametrize("name", sorted(FAMILY_EXCEPTIONS))
def test_every_module_excepted_from_the_family_rule_still_names_one(name):
    assert name in modules() and _names_a_family(name), f"remove {name} from FAMILY_EXCEPTIONS"
