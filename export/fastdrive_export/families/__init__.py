"""The graphs of VLA families: one module a family, named as its ``model_type``; nothing else here names a family."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

from fastdrive_export.graph_writer import GraphWriter, Value
from fastdrive_export.precision import Precision
from fastdrive_export.source import Source
from fastdrive_node.engines.graph_info import LanguageGraphInfo
from fastdrive_node.errors import ModelError
from fastdrive_node.families import Vla


class FamilyNetworks(Protocol):
    """What a family's module has. The writers write a whole graph and return its outputs, in the order of its info."""

    def tower_blocks(self, source: Source) -> int:
        """Blocks of the vision tower, for ``--fp32-mlp``."""
        ...

    def write_vision(self, graph: GraphWriter, source: Source, precision: Precision, max_keep: int) -> Sequence[Value]:
        """Images to the ``max_keep`` best tokens, their indices, and all scores.

        Raises:
            ModelError: the tower has parts that the graph does not.
        """
        ...

    def write_language(
        self, graph: GraphWriter, vla: Vla, info: LanguageGraphInfo, precision: Precision
    ) -> Sequence[Value]:
        """Prompts and single tokens to logits, new keys and new values; see ``networks.language``."""
        ...


def networks_of(vla: Vla) -> FamilyNetworks:
    """The graphs of a VLA's family.

    Raises:
        ModelError: there are none.
    """
    name = f"{__name__}.{vla.family.model_type}"
    try:
        module: Any = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ModelError(
            f"{vla.path}: config.json: model_type: no engines can be built for {vla.family.model_type!r}; "
            "use the torch backend"
        ) from error
    return module
