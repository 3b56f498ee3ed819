"""FrameSet and ego history to a plan, with the time of every stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from fastdrive_node.errors import FrameSetError, ImageError, InputError, ModelError
from fastdrive_node.families.language_backend import LanguageBackend
from fastdrive_node.families.qwen2_5_vl.language import LanguageModel
from fastdrive_node.families.qwen2_5_vl.prompt import build_prompt
from fastdrive_node.families.qwen2_5_vl.tower import TorchVision
from fastdrive_node.families.vision_backend import VisionBackend
from fastdrive_node.families.vla import Vla
from fastdrive_node.planning.answer_format import parse_answer
from fastdrive_node.planning.checks import PlanLimits, check_plan
from fastdrive_node.planning.decode import Answer, decode
from fastdrive_node.planning.prefill import prefill, prune_prompt
from fastdrive_node.pruning.baselines import NoPruner
from fastdrive_node.pruning.calibration import Calibration
from fastdrive_node.pruning.layer_pruning import LayerPruner
from fastdrive_node.pruning.pruner import Pruner, PruningContext
from fastdrive_node.pruning.score_options import Refined, ScoreOptions, check_options, refine
from fastdrive_node.pruning.select import keep_count
from fastdrive_node.pruning.temporal import Moment, TemporalState
from fastdrive_node.types import CameraFrame, Command, EgoHistory, EgoState, FrameSet, KeptTokens, Plan

STAGES = ("load", "preprocess", "encode", "score", "select", "prefill", "decode", "parse", "total")
_STANDING = EgoState(stamp_ns=0, x_m=0.0, y_m=0.0, yaw_rad=0.0, speed_mps=0.0)


class StageTimes:
    """Wall time of named stages in milliseconds; waits for the GPU at the end of each, where there is one."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self.ms: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self._cuda:
            torch.cuda.synchronize()
        self.ms[name] = (time.perf_counter() - start) * 1e3


class Pipeline:
    """One VLA with its pruner; serves one caller at a time.

    Args:
        vla: from ``load_vla``.
        pruner: from ``make_pruner``; None keeps every token.
        drop: pruning ratio p in [0, 1): the share of visual tokens that the language model does not see. It may be
            set between plans.
        backend: images to tokens; None for torch on the VLA's device.
        limits: what a plan may ask of the vehicle.
        scores: what is done with the pruner's scores before the best are taken. With a threshold ``drop`` is the most
            that is kept. The temporal terms' state passes from a plan to the next one, never from a set without a plan.
        calibration: of the pruner, for the options that need one.
        language: runs the language half; None for torch on the VLA's device.

    Raises:
        InputError: ``drop`` is out of range.
        ModelError: the calibration is missing or lacks a camera, the backend's token grid is not the VLA's, or the
            pruner needs more than the visual tokens.
    """

    def __init__(
        self,
        vla: Vla,
        pruner: Pruner | None = None,
        drop: float = 0.0,
        backend: VisionBackend | None = None,
        limits: PlanLimits | None = None,
        scores: ScoreOptions | None = None,
        calibration: Calibration | None = None,
        language: LanguageBackend | None = None,
    ):
        self.vla = vla
        self.pruner = pruner or NoPruner()
        if isinstance(self.pruner, LayerPruner) or self.pruner.needs:
            raise ModelError(
                f"pruner {self.pruner.name}: chooses by more than the visual tokens, which the node does not give; "
                "compare it with `fastdrive evaluate`"
            )
        self.vision = backend or TorchVision(vla.model.model.visual, vla.spec.image_size, len(vla.spec.cameras))
        if tuple(self.vision.grid) != tuple(vla.grid):
            raise ModelError(f"vision backend: token grid {self.vision.grid}, but {vla.path} has {vla.grid}")
        self.language = language or LanguageModel(vla)
        self.limits = limits or PlanLimits()
        self.scores, self.calibration = scores or ScoreOptions(), calibration
        check_options(self.scores, calibration, vla.spec.cameras)
        self._state: TemporalState | None = None
        self.drop = drop

    @property
    def drop(self) -> float:
        return self._drop

    @drop.setter
    def drop(self, value: float) -> None:
        self._drop, self._keep = value, self.check_drop(value)

    def check_drop(self, value: float) -> int:
        """The number of tokens that a pruning ratio keeps, without a change of the present one.

        Raises:
            InputError: it is out of range, or it keeps more tokens than the engine gives, or it needs a pruner.
        """
        try:
            keep = keep_count(self.vla.tokens, value)
        except ValueError as error:
            raise InputError(str(error)) from error
        if keep > self.vision.max_keep:
            raise InputError(
                f"drop: {value:g} keeps {keep} of {self.vla.tokens} tokens, the engine gives {self.vision.max_keep}; "
                "give a larger drop, or build the engine with a larger --max-keep"
            )
        if value > 0 and self.pruner.name == "none":
            raise InputError(f"drop: {value:g}, but the model runs without a pruner; give 0")
        return keep

    @torch.inference_mode()
    def plan(self, frame_set: FrameSet, history: EgoHistory, command: Command = Command.NONE) -> Plan:
        """Plan one frame set.

        Args:
            frame_set: a frame of each of the VLA's cameras, in its order.
            history: ego states, newest (at t0) first.

        Raises:
            ImageError: an image cannot be decoded.
            FrameSetError: the cameras are not those of the VLA.
            EgoStateError: the ego state cannot be written.
            AnswerError: the answer follows not the grammar, or is no drivable plan.
            ModelError: the pruner's scores are not finite.
        """
        state, self._state = self._state, None  # a set that is refused leaves nothing to the next one
        self._check_cameras(frame_set)
        moment = Moment(frame_set.t0_ns, self.vla.spec.cameras, frame_set.missing, history.now)
        stage = StageTimes(self.vla.device)
        with stage("total"):
            with stage("load"):
                images = [load_image(frame) for frame in frame_set.frames]
            with stage("preprocess"):
                patches = self.vision.preprocess(images)
            with stage("encode"):
                tokens = self.vision.encode_patches(patches)
            kept, refined = self._prune(tokens, moment, stage, state)
            answer = self._answer(tokens, kept, history, command, stage)
            with stage("parse"):
                waypoints = parse_answer(answer.text, self.vla.spec.answer)
                check_plan(waypoints, self.vla.spec.answer.interval_s, history.now.speed_mps, self.limits)
        self._state = refined.state
        mode = f"degraded: no image of {', '.join(frame_set.missing)}" if frame_set.missing else "nominal"
        return Plan(
            t0_ns=frame_set.t0_ns,
            waypoints_m=waypoints,
            dt_s=self.vla.spec.answer.interval_s,
            text=answer.text,
            mode=mode,
            kept=kept,
            stage_ms={name: stage.ms[name] for name in STAGES},
        )

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Run every stage but the parsing once on black images, so that the first plan is not the slow one."""
        height, width = self.vla.spec.image_size
        black = np.zeros((len(self.vla.spec.cameras), height, width, 3), np.uint8)
        stage = StageTimes(self.vla.device)
        tokens = self.vision.encode(black)
        kept, _ = self._prune(tokens, Moment(0, self.vla.spec.cameras, (), _STANDING), stage)
        self._answer(tokens, kept, EgoHistory((_STANDING,), self.vla.spec.history.interval_s), Command.NONE, stage)

    def _check_cameras(self, frame_set: FrameSet) -> None:
        found = frame_set.cameras
        if found != self.vla.spec.cameras or len(found) != len(frame_set.frames):
            raise FrameSetError(
                f"frame set: cameras {', '.join(found) or 'none'}; the VLA reads {', '.join(self.vla.spec.cameras)}, "
                "in this order"
            )

    def _prune(
        self, tokens: torch.Tensor, moment: Moment, stage: StageTimes, state: TemporalState | None = None
    ) -> tuple[KeptTokens, Refined]:
        context = PruningContext(tokens, self.vla.grid)
        with stage("score"):
            scores = self.pruner.score(context)
        with stage("select"):
            try:
                refined = refine(scores, context, moment, self._keep, self.scores, self.calibration, state)
                indices = self.pruner.select(context, refined.scores, refined.keep)
            except ValueError as error:
                raise ModelError(f"pruner {self.pruner.name}: {error}") from error
            flat = None if refined.scores is None else refined.scores.float().cpu().flatten().numpy()
        return KeptTokens(indices.numpy(), flat, (tokens.shape[0], *context.grid), refined.temporal), refined

    def _answer(
        self, tokens: torch.Tensor, kept: KeptTokens, history: EgoHistory, command: Command, stage: StageTimes
    ) -> Answer:
        with stage("prefill"):
            indices = torch.from_numpy(kept.indices)
            prompt = prune_prompt(build_prompt(self.vla, history, command), indices)
            seen = tokens.flatten(0, 1)[indices.to(tokens.device)]
            logits, cache = prefill(self.language, [prompt], [seen], self.vla.spec.answer.max_new_tokens)
        with stage("decode"):
            return decode(self.language, self.vla, [prompt], logits, cache)[0]


def load_image(frame: CameraFrame) -> np.ndarray:
    """Decode a frame: uint8 RGB [H, W, 3].

    Raises:
        ImageError: it cannot be decoded; the text names the camera.
    """
    try:
        image = frame.load()
    except Exception as error:  # decoders raise many kinds for damaged data
        text = str(error).removeprefix(f"{frame.camera}: ")  # some loaders name the camera themselves
        raise ImageError(f"{frame.camera}: {text}") from error
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ImageError(f"{frame.camera}: expected a uint8 RGB image, got {kind}")
    if 0 in image.shape:
        raise ImageError(f"{frame.camera}: expected a uint8 RGB image, got an empty one, {image.shape}")
    return image
