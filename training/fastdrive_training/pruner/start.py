"""An untrained pruner as a recipe asks for it."""

from __future__ import annotations

from collections.abc import Sequence

from fastdrive_node.families import Vla
from fastdrive_node.pruning.lite import narrow_sizes
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_training.engine.config import RecipeError


def new_pruner(vla: Vla, lite_width: int | None, normalise: bool, cameras: Sequence[str] = ()) -> ReconPruner:
    """A pruner with random weights for a VLA's tokens, on the CPU in float32; with ``lite_width`` a lite one.

    Raises RecipeError: the layer cannot have this width.
    """
    if lite_width is None:
        return ReconPruner(vla.family, vla.config.text_config, normalise, cameras)
    try:
        sizes = narrow_sizes(vla.family, vla.config.text_config, lite_width)
    except ValueError as error:
        raise RecipeError(f"lite_width: {error}") from None
    return ReconPruner(vla.family, sizes, normalise, cameras, vla.width)
