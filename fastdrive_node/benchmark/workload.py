"""What the implementations of a comparison are given: the frame sets of a bag, or noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fastdrive_node.families import Prompt, VisionBackend, VisualTokens, Vla, build_prompt
from fastdrive_node.planning.answer_format import answer_format
from fastdrive_node.planning.drafts import constant_turn
from fastdrive_node.planning.images import ImageDecoder
from fastdrive_node.replay.samples import PlanningSample
from fastdrive_node.types import CameraFrame, Command, EgoHistory, EgoState, FrameSet

_SEED = 0
_SPEED_MPS = 5.0


@dataclass(frozen=True)
class Workload:
    """One request."""

    vla: Vla
    vision: VisionBackend
    patches: torch.Tensor  # what ``vision.preprocess`` gives for the images
    prompt: Prompt
    frames: FrameSet | None = None  # that the patches are of; None: there is nothing to decode
    numbers: Sequence[float] = ()  # the draft of the answer
    threads: int | None = None  # of torch; None: as they are
    decoder: ImageDecoder | None = None  # of the frames; its threads stay, as in the node
    present: tuple[int, ...] | None = None  # of ``Vla.images``, those that the prompt has; None: all

    @property
    def cameras(self) -> list[int]:
        """The camera of each image in the prompt. Past images repeat those of t0."""
        images = self.vla.images
        return [images[place][0] for place in (range(len(images)) if self.present is None else self.present)]

    def encode(self, patches: torch.Tensor) -> VisualTokens:
        """The tokens of all images; as in a vehicle, only those of t0 are encoded."""
        visual = self.vision.encode(patches)
        if self.vla.spec.frames is None:
            return visual
        return VisualTokens.of_images([(visual, camera) for camera in self.cameras])

    def preprocess(self) -> torch.Tensor:
        """Decode and preprocess the frames again, as both implementations do it in the comparison."""
        assert self.frames is not None and self.decoder is not None
        images = self.decoder.decode(self.frames.frames)
        return self.vision.preprocess([image.pixels for image in images])


def noise_sample(vla: Vla) -> PlanningSample:
    """Random images at the VLA's size, a vehicle that drives straight, and nothing known of its past."""
    random = np.random.default_rng(_SEED)
    images = {name: random.integers(0, 256, (*size, 3), np.uint8) for name, size in vla.spec.size_by_camera.items()}
    frames = tuple(CameraFrame(camera, 0, 0, lambda image=image: image) for camera, image in images.items())
    history = EgoHistory((EgoState(0, 0.0, 0.0, 0.0, _SPEED_MPS),), vla.spec.history.interval_s)
    return PlanningSample(FrameSet(frames, 0), history, Command.STRAIGHT)


def workload(vla: Vla, vision: VisionBackend, sample: PlanningSample, threads: int | None = None) -> Workload:
    """A request from a frame set. ``threads``: of torch, for who measures it.

    Raises:
        ImageError: an image cannot be decoded.
    """
    form, answer = answer_format(vla), vla.spec.answer
    decoder = ImageDecoder(vla.spec.size_by_camera)
    images = [image.pixels for image in decoder.decode(sample.frames.frames)]
    draft = form.numbers(constant_turn(sample.history.now, answer.points, answer.interval_s))
    prompt = build_prompt(vla, sample.history, sample.command, form.prefix_ids)
    return Workload(vla, vision, vision.preprocess(images), prompt, sample.frames, draft, threads, decoder)
