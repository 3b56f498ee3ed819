"""Commands where nothing is installed: help all the same, and else one line that says what to install."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.commands.test_cli import ABSENT, CHECKOUT

# Only the standard library, this project, and what the first argument names can be imported.
BARE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in known and not name.startswith("fastdrive_"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

known = {*sys.stdlib_module_names, sys.argv.pop(1)}
sys.meta_path.insert(0, Absent())
from fastdrive_node.cli import main
sys.exit(main())
"""
HELP_NEEDS = {"sim dataset": "numpy", "sim bag": "numpy"}  # rigs and worlds are made of arrays
INSTALLS = {"train": "'.[train]'", "export": "'.[export]'", "sim": "'.[sim]'", "replay": "'.[ros]'", "node": "-e ."}
OF_NODE = ("plan", "bench", "vla")


def run_bare(known: str, words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, CHECKOUT))}
    command = [sys.executable, "-c", BARE, known, *words.split()]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", ABSENT)
def test_help_is_shown_where_nothing_is_installed(name):
    found = run_bare(HELP_NEEDS.get(name, ""), f"{name} --help")
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith(f"usage: fastdrive {name} ") and "example" in found.stdout


@pytest.mark.parametrize("name", ABSENT)
def test_a_command_says_what_to_install_for_it(name):
    first = name.split()[0]
    found = run_bare("", f"{name} {ABSENT[name]}")
    kind = "node" if first in OF_NODE else first if first in INSTALLS else "train"
    assert found.returncode == 1 and found.stderr.count("\n") == 1, found.stderr
    assert found.stderr.startswith(f"fastdrive {first}: the Python package '")
    assert " is missing; install it with: " in found.stderr and INSTALLS[kind] in found.stderr
