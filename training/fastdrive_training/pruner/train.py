"""Recipes of kind ``recon_pruner``: train a ReconPruner for the frozen vision tower of a VLA."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from fastdrive_node.cluster import Cluster
from fastdrive_node.devices import choose_device
from fastdrive_node.families import Vla, load_vla
from fastdrive_node.families.base import VISION
from fastdrive_node.families.loading import read_language_layer
from fastdrive_node.files import SHIPPED_PRUNER, write_atomically
from fastdrive_node.pruning.checkpoint import save_pruner
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_training.data.adapters import ImageSource, open_source
from fastdrive_training.data.sampling import evenly_spaced
from fastdrive_training.data.token_cache import build_token_cache, pixel_encoder
from fastdrive_training.engine.checkpoint import require_checkpoint, start_folder, write_recipe
from fastdrive_training.engine.config import RecipeError, parse_recipe
from fastdrive_training.engine.distributed import Processes, choose_precision
from fastdrive_training.engine.loop import own_parts
from fastdrive_training.pruner.collapse import CollapseError
from fastdrive_training.pruner.config import KIND, ReconRecipe
from fastdrive_training.pruner.data import ReconBatches, require_masks
from fastdrive_training.pruner.decoder import ReconDecoder, start_from_layers
from fastdrive_training.pruner.start import new_pruner
from fastdrive_training.pruner.trainer import Evaluate, ReconTrainer
from fastdrive_training.pruner.validate import evaluator, read_held_out

FIGURES_FILE = "figures.json"


@dataclass(frozen=True)
class ReconRun:
    """A run that is ready to start."""

    settings: ReconRecipe
    vla: Vla
    trainer: ReconTrainer
    processes: Processes


def train(recipe: dict, resume: bool = False) -> dict:
    """Train from a recipe's mapping; returns the final losses, held-out figures and ``images_per_s``.

    An earlier run in the same folder is archived unless it is resumed. Writes the pruner file only where the run came
    to its end without collapse. Under a launcher (``torchrun``, ``accelerate launch``) the processes share each batch,
    and the first of them writes.

    Raises:
        RecipeError, InputError, ModelError: the recipe, the data or the VLA cannot be used.
        TrainingError, CollapseError: see :class:`ReconTrainer`.
    """
    settings = parse_recipe(ReconRecipe, recipe)
    if resume:
        require_checkpoint(Path(settings.out))
    run = prepare(settings)
    trainer, folder, first = run.trainer, run.trainer.folder, run.processes.first
    if first and not resume:
        start_folder(folder, KIND, settings)
    try:
        figures = {**trainer.run(resume), "pruner": None, "encoder": run.vla.encoder_fingerprint}
    except CollapseError:
        if first:
            _write_figures(folder, {**trainer.last, "collapsed": trainer.health.collapsed, "pruner": None})
        raise
    if first and resume:
        write_recipe(folder, KIND, settings)  # a run may have been lengthened
    if run.settings.mask == "pruner" and not figures["collapsed"]:
        figures["pruner"] = str(folder / SHIPPED_PRUNER)
    if first:
        if figures["pruner"]:
            save_pruner(figures["pruner"], cast(ReconPruner, trainer.result), run.vla.encoder_fingerprint)
        _write_figures(folder, figures)
    return figures


def cache_tokens(recipe: dict, cluster: Cluster | None = None) -> dict:
    """Encode the training images of a recipe into its ``cache``, here or on a cluster, and stop.

    Returns ``cache`` (the folder), ``items`` and ``bytes``.
    Raises RecipeError, InputError, ModelError, ClusterError.
    """
    settings = parse_recipe(ReconRecipe, recipe)
    if settings.features != "cached":
        raise RecipeError(f"features: {settings.features}: nothing is cached; use cached")
    source = _open(settings, settings.dataset, settings.train_split, settings.masks)
    if cluster is None:
        device = choose_device(settings.device)
        precision = choose_precision(settings.precision, device)
    else:  # of its workers, which may have a GPU where this process has none
        device = torch.device(cluster.device)
        precision = "float32" if settings.precision == "float32" or device.type == "cpu" else "bfloat16"
    vla = _load_encoder(settings.vla, device if cluster is None else torch.device("cpu"), precision, device.type)
    load = partial(_load_encoder, settings.vla, device, precision)
    tokens = build_token_cache(source, vla, settings.cache, cluster, load)
    return {"cache": str(Path(str(tokens.filename)).parent), "items": len(tokens), "bytes": tokens.nbytes}


def prepare(settings: ReconRecipe) -> ReconRun:
    """Load the VLA, its tokens and the data, and build pruner, decoder and trainer. Raises as :func:`train`."""
    processes = Processes(settings.device)
    precision = choose_precision(settings.precision, processes.device)
    source = _open(settings, settings.dataset, settings.train_split, settings.masks)
    vla = _load_encoder(settings.vla, processes.device, precision)
    evaluate = _evaluator(settings, vla) if processes.first and settings.mask == "pruner" else None
    trainer = ReconTrainer(
        settings,
        *build_modules(settings, vla),
        _batches(settings, vla, source, processes),
        processes,
        precision,
        {"encoder": vla.encoder_fingerprint},
        evaluate,
        pixel_encoder(vla) if settings.features == "live" else None,
    )
    return ReconRun(settings, vla, trainer, processes)


def build_modules(settings: ReconRecipe, vla: Vla) -> tuple[ReconPruner, ReconDecoder]:
    """Pruner and decoder on the CPU, their weights from the recipe's seed and, where it says so, the VLA's layers."""
    torch.manual_seed(settings.seed)
    text_config = vla.config.text_config
    pruner = new_pruner(vla, settings.lite_width, settings.normalise)
    decoder = ReconDecoder(
        vla.family,
        text_config,
        settings.decoder_layers,
        vla.pixels_per_token,
        settings.loss.channels,
        settings.decoder_offset,
    )
    there = vla.family.language_sizes(vla.config)["layers"]
    read_layer = partial(read_language_layer, vla)
    try:
        start_from_layers(pruner, decoder, read_layer, there, settings.pruner_init, settings.decoder_init)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    return pruner, decoder


def _load_encoder(path: str, device: torch.device, precision: str, trained_on: str = "") -> Vla:
    """A VLA of which only the encoder is loaded, on the device, in bfloat16 where the GPU trains in it.

    ``trained_on`` is the type of the device that trains, where it is another.
    """
    on_gpu = (trained_on or device.type) == "cuda"
    dtype = torch.bfloat16 if precision == "bfloat16" and on_gpu else torch.float32
    vla = load_vla(path, "cpu", dtype, frozenset({VISION}))
    del vla.model.model.language_model  # its embeddings
    vla.torch_vision().to(device)  # it holds the VLA's own modules
    return vla


def _open(settings: ReconRecipe, root: str, split: str, masks: str | None) -> ImageSource:
    source = open_source(root, split, settings.dataset_kind, masks, settings.cameras)
    require_masks(source)
    return source


def _batches(settings: ReconRecipe, vla: Vla, source: ImageSource, processes: Processes) -> ReconBatches:
    tokens = None
    if settings.features == "cached":
        with processes.first_goes_ahead():
            tokens = build_token_cache(source, vla, settings.cache)
    return ReconBatches(
        source,
        tokens,
        vla.spec.sizes_of(source.cameras),
        vla.grids_of(source.cameras),
        settings.schedule.batch,
        settings.seed,
        evenly_spaced(len(source), settings.keyframes),
        processes.count * settings.schedule.accumulate,
        own_parts(processes, settings.schedule.accumulate),
    )


def _evaluator(settings: ReconRecipe, vla: Vla) -> Evaluate:
    root = settings.val_dataset or settings.dataset
    source = _open(settings, root, settings.val_split, settings.val_masks)
    return evaluator(read_held_out(source, vla, evenly_spaced(len(source), settings.val_keyframes)), Path(settings.out))


def _write_figures(folder: Path, figures: dict[str, Any]) -> None:
    with write_atomically(folder / FIGURES_FILE) as partial:
        partial.write_text(json.dumps(figures, indent=2) + "\n")
