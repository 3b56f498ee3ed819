"""``fastdrive train``: VLA or pruner training from a recipe."""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
from pathlib import Path
from types import ModuleType

from fastdrive_node.cli import write_json
from fastdrive_node.cluster import open_cluster
from fastdrive_node.commands.options import add_ray_argument
from fastdrive_node.errors import UsageError
from fastdrive_training.commands.options import KEPT, interrupted_with

# kind -> module, recipe class, function (recipe: dict, resume: bool) -> figures
KINDS = {
    "recon_pruner": ("fastdrive_training.pruner.train", "ReconRecipe", "train"),
    "distil": ("fastdrive_training.distil.train", "DistilRecipe", "train"),
    "vla_tower": ("fastdrive_training.vla.train_tower", "TowerRecipe", "train"),
    "vla_language": ("fastdrive_training.vla.train_planner", "LanguageRecipe", "train"),
    "tiny_vla": ("fastdrive_training.vla.tiny_model", "TinyRecipe", "build"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train from a YAML recipe. Paths in a recipe are relative to the working directory. --resume with a larger\n"
        "schedule.steps lengthens a run; the learning rate then follows the longer schedule."
    )
    parser.epilog = (
        "example:\n  fastdrive train recon_tiny --set seed=1 --set schedule.steps=500 --json -\n"
        "  fastdrive train recon_3b --cache-only --ray auto    # encode on a Ray cluster; then train\n\n"
        f"kinds of recipes: {', '.join(KINDS)}"
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint of the recipe's run")
    parser.add_argument(
        "--cache-only", action="store_true", help="encode the images of a recon_pruner recipe, and stop (for --ray)"
    )
    add_ray_argument(parser)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key; repeatable")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of the recipe's kind and exit")
    parser.add_argument("--json", metavar="FILE", help="write the figures here; - is standard output")


def run(args: argparse.Namespace) -> None:
    """Raises RecipeError that names the file and key, UsageError, and what the training itself raises."""
    from fastdrive_training.engine.config import RecipeError, load_recipe, recipe_schema, set_keys

    if args.ray and not args.cache_only:
        raise UsageError("--ray: a cluster encodes images only; use it with --cache-only, then train without")
    path, recipe = load_recipe(args.recipe)
    set_keys(recipe, args.set)
    kind = recipe.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise RecipeError(f"{path}: kind: must be one of {', '.join(KINDS)}, is {kind!r}")
    name, recipe_kind, function = KINDS[kind]
    module = importlib.import_module(name)
    if args.schema:
        write_json(recipe_schema(getattr(module, recipe_kind)), "-")
        return
    try:
        if args.cache_only:
            with interrupted_with(KEPT.format("items")):
                write_json(_cache(module, recipe, kind, args.ray), args.json)
            return
        with interrupted_with("--resume goes on from the last checkpoint, where there is one"):
            figures = getattr(module, function)(recipe, args.resume)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error
    if os.environ.get("RANK", "0") == "0":  # one of several processes that a launcher started
        if figures.get("pruner"):
            print(next_steps(recipe, figures["pruner"]), file=sys.stderr)
        for file, reason in figures.get("left_out", {}).items():
            print(f"{Path(recipe['out']) / 'vla'}: without {file}: {reason}", file=sys.stderr)
        write_json(figures, args.json)


def _cache(module: ModuleType, recipe: dict, kind: str, address: str | None) -> dict:
    if not hasattr(module, "cache_tokens"):
        raise UsageError(f"--cache-only: a recipe of kind {kind} has no cache; use it with recon_pruner")
    with open_cluster(address, str(recipe.get("device", "auto")).split(":")[0]) as cluster:
        figures = module.cache_tokens(recipe, cluster)
    print(f"cache: {figures['cache']}, {figures['items']} items, {figures['bytes'] / 1e9:.3g} GB", file=sys.stderr)
    return figures


def next_steps(recipe: dict, pruner: str) -> str:
    """Where the pruner of a finished run is, and the commands that judge it."""
    data = shlex.quote(str(recipe.get("val_dataset") or recipe["dataset"]))
    split = f"--split {shlex.quote(recipe.get('val_split', 'val'))}"
    if recipe.get("val_masks"):
        split += f" --masks {shlex.quote(recipe['val_masks'])}"
    files = f"--vla {shlex.quote(recipe['vla'])} --pruner {shlex.quote(pruner)}"
    return (
        f"pruner: {pruner}\nnext:\n  fastdrive train-report {shlex.quote(recipe['out'])}\n"
        f"  fastdrive score {data} {split} {files}\n"
        f"  fastdrive evaluate {data} {split} {files} --pruners none,random,reconpruner"
    )
