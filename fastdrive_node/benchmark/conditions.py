"""Conditions of the figures, read from what ran: load, engines, weights, and how transformers ran."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from fastdrive_node.benchmark.implementations import HfGenerate
from fastdrive_node.benchmark.timing import MIB
from fastdrive_node.engines.language_engine import EngineLanguage
from fastdrive_node.engines.vision_engine import EngineVision
from fastdrive_node.planning.pipeline import Pipeline
from fastdrive_node.pruning.pruner import Pruner

_IDLE = 0.25  # of the cores: what a machine at rest has at most
_MATERIALISED = "eager"  # transformers' name of attention that writes out its matrix


def machine_load() -> dict[str, Any]:
    """Processes that ran or wanted to, mean over the last minute. Call it before anything is measured."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0]
    return {"one_minute": round(load, 2), "cores": cores, "idle": load <= _IDLE * cores}


def load_warning(load: dict[str, Any]) -> str | None:
    """What a reader must know of a machine that was not idle."""
    if load["idle"]:
        return None
    return (
        f"the machine was not idle before the measurement: load {load['one_minute']:g} on {load['cores']} cores; "
        "take times again when nothing else runs"
    )


def engines_of(pipeline: Pipeline) -> list[EngineVision | EngineLanguage]:
    """The engines that a pipeline runs."""
    return [
        part
        for part in (pipeline.vision, pipeline.generator.language)
        if isinstance(part, EngineVision | EngineLanguage)
    ]


def identities(pipeline: Pipeline) -> dict[str, str]:
    """Of its engines, as in the node's diagnostics; runtime and version are in them."""
    return {name: value for engine in engines_of(pipeline) for name, value in engine.identity().items()}


def weights_mib(pipeline: Pipeline) -> float:
    """Weights of model and pruner in torch, and the files of engines."""
    files = sum(file.bytes for engine in engines_of(pipeline) for file in engine.manifest.files.values())
    return mib_of([pipeline.vla.model, *_modules(pipeline.pruner)]) + files / MIB


def mib_of(modules: Sequence[nn.Module]) -> float:
    """Parameters and buffers that are in memory, shared ones once."""
    tensors = {id(each): each for module in modules for each in (*module.parameters(), *module.buffers())}
    return sum(each.nbytes for each in tensors.values() if not each.is_meta) / MIB


def _modules(pruner: Pruner) -> Iterator[nn.Module]:
    """Of a pruner, and of the one that it refines."""
    for value in vars(pruner).values():
        if isinstance(value, nn.Module):
            yield value
        elif isinstance(value, Pruner):
            yield from _modules(value)


@torch.inference_mode()
def baseline(stock: HfGenerate) -> dict[str, Any]:
    """How transformers ran: attention of each part, and tokens of each forward of one ``generate``."""
    attention: dict[str, set[str]] = defaultdict(set)
    prefixes = stock.work.vla.family.encoder_prefixes
    for name, module in stock.model.named_modules():
        if type(module).__name__.endswith("Attention") and hasattr(module, "config"):
            part = "vision encoder" if name.startswith(prefixes) else "language model"
            attention[part].add(str(module.config._attn_implementation))
    lengths: list[int] = []

    def note(_, args: tuple, inputs: dict[str, Any]) -> None:
        lengths.append(inputs["input_ids"].shape[1])

    hook = stock.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        stock.end_to_end()
    finally:
        hook.remove()
    cache = stock.prefill(stock.encode()).past_key_values
    return {
        "attention": {part: sorted(found) for part, found in attention.items()},
        "forward_tokens": [lengths[0], max(lengths[1:], default=0)],  # of the first, and the most of a later one
        "forwards": len(lengths),
        "cached_positions": 0 if cache is None else int(cache.get_seq_length()),
        "dtype": str(stock.model.dtype).removeprefix("torch."),
    }


def attention_answer(found: dict[str, Any]) -> str:
    """Whether transformers' attention was fast, of ``baseline``."""
    kinds = [f"{', '.join(kinds)} in the {part}" for part, kinds in found["attention"].items()]
    slow = not kinds or any(_MATERIALISED in kinds for kinds in found["attention"].values())
    return f"{'NO' if slow else 'yes'}: {'; '.join(kinds) or 'no attention was found'}"


def cache_answer(found: dict[str, Any]) -> str:
    """Whether transformers' cache was on, of ``baseline``."""
    (first, later), positions = found["forward_tokens"], found["cached_positions"]
    on = later <= 1 and positions == first
    rest = f"then at most {later} in each of {found['forwards'] - 1} forwards"
    held = f"the cache of the prefill that is timed holds {positions} positions"
    return f"{'yes' if on else 'NO'}: generate ran {first} tokens, {rest}; {held}"
