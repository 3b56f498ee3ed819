"""What the source files import, read without running them."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "fastdrive_node": ROOT / "fastdrive_node",
    "fastdrive_training": ROOT / "training" / "fastdrive_training",
    "fastdrive_export": ROOT / "export" / "fastdrive_export",
    "fastdrive_sim": ROOT / "ros2_ws" / "src" / "fastdrive_sim" / "fastdrive_sim",
    "benchmarks": ROOT / "benchmarks",
}


@dataclass(frozen=True)
class Import:
    """One imported module: ``fastdrive_node.ros.node`` (the importer) imports ``rclpy.node``, at a line of a file."""

    importer: str
    module: str
    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


@cache
def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    found = {}
    for package, folder in PACKAGES.items():
        for file in sorted(folder.rglob("*.py")):
            parts = (package, *file.relative_to(folder).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


@cache
def _read(name: str) -> tuple[tuple[Import, ...], tuple[tuple[str, int], ...]]:
    """Imports of a module, and its classes with their lines. The tree is not kept: half a million nodes in all."""
    imported, classes = [], []
    for node in ast.walk(ast.parse(modules()[name].read_text(), str(modules()[name]))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported += _imports(name, node)
        elif isinstance(node, ast.ClassDef):
            classes.append((node.name, node.lineno))
    return tuple(imported), tuple(classes)


def classes(name: str) -> tuple[tuple[str, int], ...]:
    """Names of a module's classes wherever they stand, with their lines."""
    return _read(name)[1]


@cache
def imports(package: str) -> tuple[Import, ...]:
    """The imports of a package wherever they stand: at the top, in functions, and below TYPE_CHECKING."""
    return tuple(found for name in modules() if name.split(".")[0] == package for found in _read(name)[0])


def _imports(name: str, node: ast.Import | ast.ImportFrom) -> list[Import]:
    file = modules()[name]
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        if node.level:
            raise AssertionError(f"{file}:{node.lineno}: relative import; imports are absolute here")
        module = node.module or ""
        # `from package import module` imports the module; `from module import name` imports the module named first
        names = sorted({full if (full := f"{module}.{alias.name}") in modules() else module for alias in node.names})
    return [Import(name, module, file, node.lineno) for module in names]
