"""FrameSet and ego history to a plan, with the time of every stage."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch

from fastdrive_node.errors import AnswerError, FrameSetError, InputError, ModelError
from fastdrive_node.families import LanguageModel, Prompt, VisionBackend, VisualTokens, Vla
from fastdrive_node.planning.camera_floor import CameraFloor
from fastdrive_node.planning.checks import LastPlan, PlanLimits, check_plan
from fastdrive_node.planning.deadline import Deadline
from fastdrive_node.planning.drafts import constant_turn
from fastdrive_node.planning.drop_limits import DropLimits
from fastdrive_node.planning.frames import FrameMemory
from fastdrive_node.planning.generator import Answer, Generator, Progress
from fastdrive_node.planning.image_health import ImageHealth
from fastdrive_node.planning.images import ImageDecoder
from fastdrive_node.planning.reuse import TokenReuse
from fastdrive_node.pruning.baselines.simple import NoPruner
from fastdrive_node.pruning.pruner import ContextField, Pruner, Selection
from fastdrive_node.pruning.score_pruner import RefinedPruner
from fastdrive_node.pruning.select import keep_count
from fastdrive_node.pruning.temporal import FrameContext, TemporalState
from fastdrive_node.types import (
    Command,
    EgoHistory,
    EgoState,
    FrameSet,
    KeptTokens,
    ModelOutput,
    Plan,
    Trajectory,
)

STAGES = ("load", "preprocess", "encode", "prompt", "score", "select", "prefill", "decode", "parse", "total")
DEFAULT_DROP = 0.5
_BEHIND_ENCODER = ("prompt", "score", "select", "prefill", "decode")
_AT_REST = EgoState(stamp_ns=0, x_m=0.0, y_m=0.0, yaw_rad=0.0, speed_mps=0.0)


class StageTimes:
    """Wall time of named stages in milliseconds; waits for the GPU at the end of each, where there is one.

    Args:
        progress: called with a stage's name as it begins.
    """

    def __init__(self, device: torch.device, progress: Progress | None = None):
        self._cuda = device.type == "cuda"
        self._progress = progress
        self._begun = time.perf_counter()
        self.ms: dict[str, float] = dict.fromkeys(STAGES, 0.0)

    @property
    def elapsed_ms(self) -> float:
        """Since the stages began."""
        return (time.perf_counter() - self._begun) * 1e3

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if self._progress is not None:
            self._progress(name)
        start = time.perf_counter()
        try:
            yield
        finally:  # a refusal tells its times too
            if self._cuda:
                torch.cuda.synchronize()
            self.ms[name] = (time.perf_counter() - start) * 1e3


class Pipeline:
    """One VLA with its pruner; serves one caller at a time.

    Args:
        vla: from ``load_vla``.
        pruner: from ``make_pruner``; None keeps every token. One that reads ground truth is refused.
        drop: pruning ratio p: the fraction of visual tokens that the language model does not see; None for
            ``default_drop``. It may be set between plans.
        vision: images to visual tokens; None for torch on the VLA's device.
        limits: what a plan may ask of the vehicle.
        language: runs the language model; None for torch on the VLA's device.
        drafts: verify several tokens of an answer in one forward; the answers are those of plain greedy decoding.
        camera_floor: tokens that are kept of each camera that is there, whatever their scores; 0: none.

    Raises:
        InputError: ``drop`` or ``camera_floor`` is out of range, or the one leaves too few for the other.
        ModelError: the backend's token grid is not the VLA's, or the pruner needs what is not there, or it or the
            engine cannot keep ``camera_floor``.
    """

    def __init__(
        self,
        vla: Vla,
        pruner: Pruner | None = None,
        drop: float | None = 0.0,
        vision: VisionBackend | None = None,
        limits: PlanLimits | None = None,
        language: LanguageModel | None = None,
        drafts: bool = True,
        camera_floor: int = 0,
    ):
        self.vla, self.drafts = vla, drafts
        self.threads = torch.get_num_threads()  # of torch, that suit this pipeline
        self.pruner = pruner or NoPruner()
        self.vision = vision or vla.torch_vision()
        grids = getattr(self.vision, "grids", (tuple(self.vision.grid),) * len(vla.spec.cameras))
        if grids != vla.grids:
            raise ModelError(f"vision backend: token grid {self.vision.grid}, but {vla.path} has {vla.grids[0]}")
        self.generator = Generator(vla, language, keep_head=True)
        self.limits = limits or PlanLimits()
        self.camera_floor = CameraFloor(vla, camera_floor)
        self._check_pruner()
        self._encoder = TokenReuse(self.vision, ContextField.TOWER_ATTENTION in self.pruner.needs)
        self._state: TemporalState | None = None
        self._frames = FrameMemory(vla)
        self._last = LastPlan()
        self.decoder = ImageDecoder()
        self._deadline: Deadline | None = None
        self.image_health: ImageHealth | None = None  # looks at the images of every set, where there is one
        self._image_warnings: tuple[str, ...] = ()
        self.drop = self.default_drop if drop is None else drop

    def _check_pruner(self) -> None:
        pruner, total = self.pruner, self.vla.tokens
        if ContextField.COVERAGE in pruner.needs:
            raise ModelError(f"pruner {pruner.name}: reads the ground truth; compare it with `fastdrive evaluate`")
        if self.vla.spec.frames and self.vision.max_keep < self.vla.set_tokens:
            raise ModelError(
                f"{self.vla.path}: reads several frames, and the engine gives {self.vision.max_keep} of the "
                f"{self.vla.set_tokens} tokens of each; build it without --max-keep"
            )
        if self._max_keep < total and not pruner.ranks_by_engine:
            option = pruner.options.reads_all if isinstance(pruner, RefinedPruner) else None
            name = f"{pruner.name} with {option}" if option else pruner.name
            raise ModelError(
                f"pruner {name}: reads all {total} visual tokens, the engine gives {self.vision.max_keep}; "
                "build it with a larger --max-keep, or set vision_backend to torch"
            )
        self.generator.check_pruner(pruner)
        self.camera_floor.check(pruner, self.vision.max_keep)

    @property
    def default_drop(self) -> float:
        """0.5 with a pruner, or more where an engine gives fewer tokens; 0 without."""
        if self.pruner.name == "none":
            return 0.0
        return max(DEFAULT_DROP, 1 - self._max_keep / self.vla.tokens)

    @property
    def _max_keep(self) -> int:
        """Tokens of all images that the vision backend can give."""
        return self.vla.tokens if self.vla.spec.frames else self.vision.max_keep

    @property
    def drop(self) -> float:
        return self._drop

    @drop.setter
    def drop(self, value: float) -> None:
        self._drop, self._keep = value, self.check_drop(value)

    def check_drop(self, value: float) -> int:
        """The number of tokens that a pruning ratio keeps, without a change of the present one.

        Raises:
            InputError: it is out of range, or it keeps more tokens than the engine gives or fewer than the pruner can,
                or it needs a pruner.
        """
        return self.drop_limits.keep(value)

    @property
    def drop_limits(self) -> DropLimits:
        vla, has_pruner, floors = self.vla, self.pruner.name != "none", self.camera_floor.keep
        gives = self.vision.max_keep
        return DropLimits(vla.tokens, self._max_keep, gives, has_pruner, self._least_keep, vla.set_tokens, floors)

    @property
    def _least_keep(self) -> int:
        """The fewest tokens of all images that the pruner can keep."""
        return self.pruner.least_keep(self.vla.image_grids())

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
            AnswerError: the answer does not follow the format, or is no drivable plan.
            ModelError: the pruner's scores are not finite.
            PlannerError: code ``deadline``: too little time is left for a plan.
        """
        state, self._state = self._state, None  # a set that is refused leaves nothing to the next one
        stage = StageTimes(self.vla.device, self.generator.progress)
        with stage("total"):
            visual, present = self._frames.gather(frame_set.t0_ns, self._see(frame_set, stage, history.now.speed_mps))
            read = self._cameras_of(present)
            frame = FrameContext(frame_set.t0_ns, read, frame_set.missing, history.now)
            keep = self._keep if visual.total == self.vla.tokens else keep_count(visual.total, self._drop)
            choice = None
            if self._deadline is not None:
                encode_ms, encoded = stage.ms["encode"], self._encoder.encoded
                choice = self._deadline.choose(keep, stage.elapsed_ms, encode_ms, encoded)
                keep = choice.keep
            prompt, answer, selection = self._answer(visual, history, command, stage, frame, state, present, keep)
            kept = _kept_tokens(selection, visual, self._current(present))
            output = ModelOutput(
                self.vla.short_prompt(prompt.text), answer.text, answer.ids, kept, stage.ms, answer.forwards
            )
            with stage("parse"):
                trajectory, warnings = self._parse(output, history)
        if self._deadline is not None and choice is not None:
            total_ms = stage.ms["total"]
            in_time = self._deadline.finish(choice, total_ms, len(selection.indices))
            warnings += () if in_time else (f"deadline: the plan took {total_ms:.0f} ms of {choice.deadline_ms:g}",)
        self._state = selection.state
        mode = f"degraded: no image of {', '.join(frame_set.missing)}" if frame_set.missing else "nominal"
        plan = Plan(
            t0_ns=frame_set.t0_ns,
            waypoints_m=trajectory.waypoints_m,
            dt_s=trajectory.dt_s,
            text=answer.text,
            mode=mode,
            kept=kept,
            stage_ms=stage.ms,
            headings_rad=trajectory.headings_rad,
            speeds_mps=trajectory.speeds_mps,
            derived=prompt.derived,
            output=output,
            warnings=self._image_warnings + warnings,
            deadline=choice,
            reused_cameras=sum(self.vla.spec.cameras[c] not in frame_set.missing for c in self._encoder.reused),
        )
        self._last.keep(plan, history.now)
        return plan

    @torch.inference_mode()
    def remember(self, frame_set: FrameSet) -> None:
        """Encode a set without planning it, for a VLA that reads past images. Raises as ``plan``."""
        self._see(frame_set, StageTimes(self.vla.device, self.generator.progress))

    def _see(self, frame_set: FrameSet, stage: StageTimes, speed_mps: float = 0.0) -> VisualTokens:
        self._check_cameras(frame_set)
        with stage("load"):
            loaded = self.decoder.decode(frame_set.frames)
            images = [image.pixels for image in loaded]
            if self.image_health is not None:
                pairs = zip(frame_set.frames, loaded, strict=True)
                real = [pair for pair in pairs if pair[0].camera not in frame_set.missing]
                self._image_warnings = self.image_health.check(real, speed_mps)
        with stage("preprocess"):
            inputs = self.vision.preprocess(images)
        visual = self._encode(inputs, stage)
        self._frames.add(frame_set.t0_ns, visual, frame_set.missing)
        return visual

    def _cameras_of(self, present: Sequence[int]) -> tuple[str, ...]:
        """The camera of each image that is read."""
        return tuple(self.vla.spec.cameras[self.vla.images[place][0]] for place in present)

    def _current(self, present: Sequence[int]) -> tuple[int, ...] | None:
        """See ``KeptTokens.current``."""
        if self.vla.spec.frames is None:
            return None
        places = {self.vla.images[place]: image for image, place in enumerate(present)}
        return tuple(places[camera, 0] for camera in range(len(self.vla.spec.cameras)))

    def _parse(self, output: ModelOutput, history: EgoHistory) -> tuple[Trajectory, tuple[str, ...]]:
        """The trajectory and what it is warned of."""
        try:
            found = self.generator.answer.parse(output.answer_ids)
            apart = self._last.distance(found.waypoints_m, found.dt_s, history.now)
            speed = history.now.speed_mps
            warnings = check_plan(found.waypoints_m, found.dt_s, speed, self.limits, found.rounding_m, apart)
        except AnswerError as error:
            error.output = output
            raise
        return found, warnings

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Run every stage but the parsing once on black images, so that the first plan is not the slow one.

        Then see for which numbers of cameras tokens may be used again, see ``TokenReuse.verify``.
        """
        self._run_black(self._keep)
        self._encoder.verify(self.vla.spec.sizes)

    def _run_black(self, keep: int) -> StageTimes:
        black = [np.zeros((*size, 3), np.uint8) for size in self.vla.spec.sizes]
        stage = StageTimes(self.vla.device)
        visual = self._encode(self.vision.preprocess(black), stage, alone=True)
        if self.vla.spec.frames:
            visual = VisualTokens.of_images([(visual, camera) for camera, _ in self.vla.images])
        present = range(len(self.vla.images))
        frame = FrameContext(0, self._cameras_of(present), (), _AT_REST)
        history = EgoHistory((_AT_REST,), self.vla.spec.history.interval_s)
        self._answer(visual, history, Command.NONE, stage, frame, None, present, keep)
        return stage

    def set_deadline(self, deadline_ms: float, k_min: int) -> None:
        """Keep fewer tokens than the pruning ratio says where a plan would take longer than ``deadline_ms``.

        Measures the stages on black images, nine times with the warm-up.

        Raises:
            ModelError: there is no pruner.
            InputError: the pruner or ``camera_floor`` cannot keep as few as ``k_min``.
        """
        if self.pruner.name == "none":
            raise ModelError("deadline_ms: the model runs without a pruner; give a pruner, or deadline_ms 0")
        if k_min < self._least_keep:
            raise InputError(
                f"k_min: {k_min} with deadline_ms {deadline_ms:g}, but pruner {self.pruner.name} keeps at least "
                f"{self._least_keep} of {self.vla.tokens} tokens; give a larger k_min, another pruner, or deadline_ms 0"
            )
        self.camera_floor.check_least(k_min, f"deadline_ms {deadline_ms:g}")
        deadline, times, encodes = Deadline(deadline_ms, k_min), {}, []
        least = min(k_min, self._keep)
        for keep in {least, (least + self._keep) // 2, self._keep}:
            runs = [self._run_black(keep) for _ in range(3)]
            times[keep] = median(sum(run.ms[name] for name in _BEHIND_ENCODER) for run in runs)
            encodes += [run.ms["encode"] for run in runs]
        deadline.learn(times, median(encodes))
        self._deadline = deadline

    def _check_cameras(self, frame_set: FrameSet) -> None:
        found = frame_set.cameras
        if found != self.vla.spec.cameras or len(found) != len(frame_set.frames):
            raise FrameSetError(
                f"frame set: cameras {', '.join(found) or 'none'}; the VLA reads {', '.join(self.vla.spec.cameras)}, "
                "in this order"
            )

    def _encode(self, inputs: Any, stage: StageTimes, alone: bool = False) -> VisualTokens:
        """``alone``: every camera is encoded, whatever the set before was."""
        with stage("encode"):
            encoder = self._encoder
            visual = encoder.encode_all(inputs) if alone else encoder.encode(inputs)
        if not bool(torch.isfinite(visual.rows).all()):
            encoder.forget()
            raise ModelError("vision encoder: visual tokens that are not finite; check the weights of the vision tower")
        return visual

    def _answer(
        self,
        visual: VisualTokens,
        history: EgoHistory,
        command: Command,
        stage: StageTimes,
        frame: FrameContext,
        state: TemporalState | None,
        present: Sequence[int],
        keep: int,
    ) -> tuple[Prompt, Answer, Selection]:
        with stage("prompt"):
            prompt = self.generator.prompt(history, command, present)
        floors = self.camera_floor.floors(visual, frame)
        context = self.generator.context(self.pruner, visual, prompt, frame=frame, state=state, floors=floors)
        try:
            selection = self.pruner.choose(context, keep, stage)
        except ValueError as error:
            raise ModelError(f"pruner {self.pruner.name}: {error}") from error
        if frame.missing and not self.pruner.acts_inside:
            selection = replace(selection, indices=_of_cameras(selection.indices, visual, frame))
        draft = self._draft(history)
        done = self.generator.generate(self.pruner, [context], [prompt], keep, [selection], stage, draft)[0]
        return prompt, done.answer, replace(selection, indices=done.kept)

    def _draft(self, history: EgoHistory) -> list[float] | None:
        """What an answer states where the vehicle goes on turning and accelerating as it does."""
        if not self.drafts:
            return None
        answer = self.vla.spec.answer
        return self.generator.answer.numbers(constant_turn(history.now, answer.points, answer.interval_s))


def _of_cameras(indices: torch.Tensor, visual: VisualTokens, frame: FrameContext) -> torch.Tensor:
    """The kept tokens without those of missing cameras: the language model shall not take black for a view.

    Raises:
        FrameSetError: none is left.
    """
    spans = zip(visual.spans, frame.cameras, strict=True)
    real = torch.cat([torch.full((span.stop - span.start,), name not in frame.missing) for span, name in spans])
    left = indices[real[indices]]
    if not len(left):
        raise FrameSetError(f"frame set: no token is left without {', '.join(frame.missing)}; give a smaller drop")
    return left


def _kept_tokens(selection: Selection, visual: VisualTokens, current: tuple[int, ...] | None) -> KeptTokens:
    scores = None if selection.scores is None else selection.scores.float().cpu().flatten().numpy()
    return KeptTokens(selection.indices.cpu().numpy(), scores, visual.grid, selection.temporal, current, visual.grids)
