"""The planner that a node runs, from its settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastdrive_node.ros.parameters import Settings
from fastdrive_node.types import ModelError
from fastdrive_node.worker import Planner


@dataclass(frozen=True)
class LoadedPlanner:
    """A planner and what the node must know of it."""

    planner: Planner
    cameras: tuple[str, ...]  # in the model's order
    history_steps: int  # ego states before t0
    history_interval_s: float
    can_drop: bool  # has a pruner
    identity: Callable[[], dict[str, str]]  # for the diagnostics


PlannerFactory = Callable[[Settings], LoadedPlanner]


def load_planner(settings: Settings) -> LoadedPlanner:
    """Open the VLA and pruner that the settings name.

    Raises:
        ModelError: one of them cannot be used, or the device is absent.
        InputError: the drop ratio is out of range.
    """
    import torch

    from fastdrive_node.models import open_pipeline

    device = _device(settings.device)
    pipeline = open_pipeline(
        settings.vla or None,
        settings.pruner or None,
        None if settings.drop < 0 else settings.drop,
        device,
        getattr(torch, settings.dtype),
    )
    if settings.warm_up:
        pipeline.warm_up()
    vla, pruner = pipeline.vla, pipeline.pruner.name
    fixed = {
        "vla": str(vla.path),
        "encoder": vla.encoder_fingerprint[:12],
        "pruner": pruner if pruner == "none" else f"{pruner} {settings.pruner or '(beside the VLA)'}",
        "device": device,
        "dtype": settings.dtype,
        "torch": torch.__version__,
    }
    if device == "cuda":
        fixed["GPU"] = torch.cuda.get_device_name()

    def identity() -> dict[str, str]:
        facts = {**fixed, "drop": f"{pipeline.drop:g}"}
        if device == "cuda":
            facts["GPU memory MB"] = f"{torch.cuda.memory_allocated() / 1e6:.0f}"
        return facts

    history = vla.spec.history
    return LoadedPlanner(
        pipeline, tuple(vla.spec.cameras), max(history.steps, default=0), history.interval_s, pruner != "none", identity
    )


def _device(name: str) -> str:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("device: 'cuda', but torch finds no GPU; set device to 'cpu' or 'auto'")
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
