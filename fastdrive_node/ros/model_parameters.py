"""Parameters of the model, its process and the pruner's scores; ``parameters.Settings`` has them with all others."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, field_validator

from fastdrive_node.pruning.catalog import ScoreOptions, TemporalSettings
from fastdrive_node.ros.check_parameters import exchanged, fixed, live
from fastdrive_node.supervision.supervisor import SupervisionLimits
from fastdrive_node.types import MAX_DROP, TEMPORAL_RANGES, DtypeName, OnnxProviderName, VisionBackendName


class ModelSettings(BaseModel):
    """What plans, and how."""

    vla: str = exchanged("", "VLA directory; tiny: the shipped toy model. It must be given", section="Model")
    pruner: str = exchanged(
        "",
        "a ReconPruner's file, or the name of a pruner: reconpruner, none, random, fastv, ... (docs/pruners.md); "
        "empty: reconpruner.safetensors in the VLA directory, where it is",
    )
    drop: float = live(-1.0, "pruning ratio p; -1: 0.5 with a pruner, 0 without", -1.0, MAX_DROP)
    deadline_ms: float = fixed(
        0.0,
        "time of a plan, from the start of planning: fewer tokens are kept where it would be longer, k_min at least; "
        "a set that has no time for them is refused with the code deadline; 0: off (docs/latency.md)",
        0.0,
        60_000.0,
    )
    vision_backend: VisionBackendName = exchanged("torch", "what runs vision encoder and pruner")
    engine: str = exchanged("", "engine file for vision_backend onnxruntime or tensorrt, from `fastdrive export build`")
    language_engine: str = exchanged(
        "", "engine file of the language model, from `fastdrive export build --part language`; empty: torch"
    )
    onnx_provider: OnnxProviderName = exchanged(
        "auto", "what onnxruntime runs on; auto: cuda where the model, onnxruntime and the engine allow it, else cpu"
    )
    device: Literal["auto", "cpu", "cuda"] = fixed("auto", "where the model runs; auto: cuda where there is a GPU")
    dtype: DtypeName = fixed("auto", "type of weights and activations; auto: bfloat16 on a GPU, float32 on a CPU")
    warm_up: bool = fixed(True, "plan once on black images before the node is ready")
    drafts: bool = fixed(
        True, "verify several tokens of an answer in one forward (docs/latency.md); the answers are the same without"
    )
    jpeg_scaling: bool = fixed(
        True,
        "decode JPEGs to the fraction of their size that the model needs: faster, values differ by 0.4 of 255 in the "
        "mean (docs/latency.md)",
    )
    decode_on_arrival: bool = fixed(
        False,
        "decode JPEGs as they arrive, on threads of the node: faster where cameras send one after the other, slower "
        "on two cores where they send at once; for jpeg_scaling (docs/latency.md)",
    )

    planner_process: bool = fixed(
        True,
        "plan in a process of its own, which is killed and started again when it hangs or dies; false: in the node's",
        section="Planner's process (docs/node.md)",
    )
    planner_load_deadline_s: float = fixed(
        SupervisionLimits.load_s, "time for loading the model, after which the planner's process is killed", 1.0, 3600.0
    )
    planner_restarts: int = fixed(
        SupervisionLimits.restarts, "restarts within planner_restart_window_s; after more the planner is down", 0, 1000
    )
    planner_restart_window_s: float = fixed(
        SupervisionLimits.window_s, "time in which restarts are counted", 1.0, 86400.0
    )
    planner_threads: int = fixed(
        SupervisionLimits.threads,
        "threads of the planner's process; 0: OMP_NUM_THREADS where it is set, else one for each core but one",
        0,
        256,
    )

    calibrated_scores: bool = fixed(
        False,
        "rank the tokens of all cameras by their probability of being foreground; needs a calibrated pruner file",
        section="Scores of the pruner (docs/temporal_and_calibrated.md)",
    )
    keep_threshold: float = fixed(
        0.0,
        "keep the tokens of at least this foreground probability, and at most as many as drop leaves; 0: off",
        0.0,
        0.999,
    )
    even_spacing: float = fixed(
        0.0,
        "fraction of the kept tokens that is spread evenly over each camera, the rest by score; 0: off",
        0.0,
        1.0,
    )
    pooled_cells: bool = fixed(
        False,
        "rank cells of 2x2 tokens by their mean score: the best keep their tokens, each other one becomes one token, "
        "their mean; for a VLA that has read averaged grids in its training (docs/pruners.md)",
    )
    k_min: int = fixed(16, "smallest number of tokens that keep_threshold and deadline_ms keep", 1, 100_000)
    camera_floor: int = fixed(
        0,
        "smallest number of tokens that is kept of each camera that is there, for pruners that take the best by score; "
        "0: none (docs/latency.md)",
        0,
        100_000,
    )
    temporal_change: float = fixed(
        0.0, "weight of what is new since the previous set; 0: off", *TEMPORAL_RANGES["change"]
    )
    temporal_memory: float = fixed(
        0.0, "weight of the previous set's score in a token's score; 0: off", *TEMPORAL_RANGES["memory"]
    )
    temporal_max_gap_s: float = fixed(
        0.25, "longest time between two sets that the temporal terms connect", *TEMPORAL_RANGES["max_gap_s"]
    )

    @field_validator("drop")
    @classmethod
    def _is_ratio(cls, value: float) -> float:
        if value < 0 and value != -1:
            raise ValueError(f"should be a pruning ratio of 0 to {MAX_DROP}, or -1")
        return value

    def score_options(self) -> ScoreOptions:
        """Raises InputError for a combination that the pruner's scores do not allow."""
        temporal = None
        if self.temporal_change or self.temporal_memory:
            temporal = TemporalSettings(self.temporal_change, self.temporal_memory, max_gap_s=self.temporal_max_gap_s)
        return ScoreOptions(
            self.calibrated_scores, self.keep_threshold, self.k_min, temporal, self.even_spacing, self.pooled_cells
        )
