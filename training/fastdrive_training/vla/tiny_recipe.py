"""Recipes of kind ``tiny_vla``: an untrained tiny VLA directory, the start of any training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from fastdrive_training.engine.config import RecipeError, parse_recipe
from fastdrive_training.vla.tiny_model import TinySize, build_tiny_vla


@dataclass(frozen=True)
class TinyRecipe:
    """Keys of the recipe."""

    out: str  # the VLA directory to write
    seed: int = 0
    size: TinySize = field(default_factory=TinySize)


def build(recipe: dict, resume: bool = False) -> dict:
    """Write the directory; returns its path and sizes. Raises RecipeError: a wrong key, or ``resume``."""
    if resume:
        raise RecipeError("kind: tiny_vla writes untrained weights at once; there is nothing to resume")
    settings = parse_recipe(TinyRecipe, recipe)
    path = build_tiny_vla(settings.out, settings.seed, settings.size)
    return {"vla": str(path), "seed": settings.seed, "size": asdict(settings.size)}
