"""The planner that a node runs, from its settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fastdrive_node.families.spec import REQUIRED, chosen_vla_dir, load_spec, required_file
from fastdrive_node.planning.drop_limits import DropLimits
from fastdrive_node.ros.parameters import Settings
from fastdrive_node.supervision.supervisor import SupervisedPlanner
from fastdrive_node.sync.outcomes import Planner
from fastdrive_node.types import PlannerState

# Read when transformers is imported: a VLA directory's files are all that is used, and the Hub is never asked.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


@dataclass(frozen=True)
class LoadedPlanner:
    """A planner and its properties that the node needs."""

    planner: Planner
    cameras: tuple[str, ...]  # in the model's order
    history_steps: int  # ego states before t0
    history_interval_s: float
    identity: Callable[[], dict[str, str]]  # for the diagnostics; empty until the model is loaded
    drop_limits: DropLimits | None = None  # None: any ratio
    image_sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # (height, width) px that it reads
    supervised: SupervisedPlanner | None = None  # the planner, where it has a process of its own

    def planner_state(self) -> PlannerState:
        return PlannerState() if self.supervised is None else self.supervised.state()

    def close(self) -> None:
        if self.supervised is not None:
            self.supervised.close()


PlannerFactory = Callable[[Settings], LoadedPlanner]


def make_planner(settings: Settings) -> LoadedPlanner:
    """The planner in a process of its own, which loads the model from now on, or in this one, loaded.

    Raises:
        ModelError: the VLA directory cannot be read, or, in this process, the model cannot be used.
        InputError: no VLA directory is given, or as ``load_planner``.
    """
    return supervise_planner(settings) if settings.planner_process else load_planner(settings)


def supervise_planner(settings: Settings, factory: str = f"{__name__}:load_planner") -> LoadedPlanner:
    """A planner in a process of its own, started. Of the model only ``vla.json`` is read here, without torch.

    Raises:
        InputError: no VLA directory is given.
        ModelError: it cannot be read, or lacks a file.
    """
    folder = chosen_vla_dir(settings.vla)
    spec = load_spec(folder)
    for name in (spec.prompt, *REQUIRED):
        required_file(folder, name)  # told now, not when torch is imported
    planner = SupervisedPlanner(factory, (settings,), settings.supervision_limits())
    planner.start()
    history = spec.history
    steps = max(history.steps, default=0)
    identity = planner.identity
    return LoadedPlanner(
        planner,
        tuple(spec.cameras),
        steps,
        history.interval_s,
        identity,
        image_sizes=spec.size_by_camera,
        supervised=planner,
    )


def load_planner(settings: Settings) -> LoadedPlanner:
    """Open the VLA and pruner that the settings name.

    Raises:
        ModelError: one of them cannot be used.
        InputError: the device is absent, or the drop ratio, a score option or ``camera_floor`` is out of range.
    """
    os.environ.update(OFFLINE)
    from fastdrive_node.devices import choose_device, choose_dtype
    from fastdrive_node.engines.language_engine import LanguageChoice
    from fastdrive_node.engines.vision_engine import choose_engine
    from fastdrive_node.planning.identity import Identity
    from fastdrive_node.planning.image_health import ImageHealth
    from fastdrive_node.planning.images import ImageDecoder
    from fastdrive_node.planning.loading import open_pipeline

    device = choose_device(settings.device)
    language = None
    if settings.language_engine:
        language = LanguageChoice(Path(settings.language_engine), settings.onnx_provider)
    pipeline = open_pipeline(
        chosen_vla_dir(settings.vla),
        settings.pruner or None,
        drop=None if settings.drop < 0 else settings.drop,
        device=device,
        dtype=choose_dtype(settings.dtype, device),
        engine=choose_engine(settings.vision_backend, settings.engine, settings.onnx_provider),
        scores=settings.score_options(),
        language_engine=language,
        limits=settings.plan_limits(settings.vehicle_wheel_base_m),
        drafts=settings.drafts,
        camera_floor=settings.camera_floor,
    )
    if settings.jpeg_scaling:
        pipeline.decoder = ImageDecoder(pipeline.vla.spec.size_by_camera)
    pipeline.image_health = ImageHealth(settings.image_limits())
    if settings.warm_up:
        pipeline.warm_up()
    if settings.deadline_ms:
        pipeline.set_deadline(settings.deadline_ms, settings.k_min)
    vla = pipeline.vla
    history = vla.spec.history
    return LoadedPlanner(
        pipeline,
        tuple(vla.spec.cameras),
        max(history.steps, default=0),
        history.interval_s,
        Identity(pipeline, settings.pruner),
        pipeline.drop_limits,
        vla.spec.size_by_camera,
    )
