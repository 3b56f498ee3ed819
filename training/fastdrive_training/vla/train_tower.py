"""Recipes of kind ``vla_tower``: the first of two stages, whose order makes training a small VLA possible on a CPU.

Vision tower and language model learn together. The tower's tokens must name the class of each cell; the hidden states
of the language model must give the waypoints, the light ahead, the gaps, and the answer's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, cross_entropy

from fastdrive_node.errors import ModelError
from fastdrive_node.families import Vla, load_vla
from fastdrive_node.families.base import VISION
from fastdrive_node.families.spec import FramesSpec
from fastdrive_node.families.vla import first_line
from fastdrive_node.types import CAMERAS
from fastdrive_training.engine.checkpoint import require_checkpoint, start_folder
from fastdrive_training.engine.config import Count, parse_recipe, recipe_class
from fastdrive_training.engine.distributed import Processes, choose_precision
from fastdrive_training.vla.data import LABELS_PER_TOKEN, Arrays, ImageGroup, prepare
from fastdrive_training.vla.planner import (
    CLASSES,
    WEIGHTS,
    TrainablePlanner,
    VlaBatch,
    VlaBatches,
    VlaRecipe,
    VlaTrainer,
    save_vla,
    with_prompt,
)
from fastdrive_training.vla.targets import AnswerText
from fastdrive_training.vla.tiny_model import TinySize, build_tiny_vla

KIND = "vla_tower"
# Ranges of how a keyframe's images vary: contrast, red, green, blue, light added, share of the blurred image, noise.
JITTER = np.array([(0.7, 1.3), (0.9, 1.1), (0.9, 1.1), (0.9, 1.1), (-30.0, 30.0), (0.0, 1.0), (0.0, 8.0)])


@recipe_class
class TowerRecipe(VlaRecipe):
    """Keys of a ``vla_tower`` recipe."""

    size: TinySize = field(default_factory=TinySize)  # of the model and its images
    start: str | None = None  # a VLA directory whose tower is trained on; images may have another size than its own
    cameras: tuple[str, ...] = CAMERAS  # of the VLA, by the dataset's names
    # Tokens of these cameras carry gradient in every step, and those of one other, drawn anew; all would cost more.
    gradient_cameras: tuple[str, ...] = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT")
    image_sizes: dict[str, tuple[Count, Count]] = field(default_factory=dict)  # height, width in px where not 112, 224
    frames: FramesSpec | None = None  # past images that the VLA reads, as in vla.json; their tokens carry no gradient

    def __post_init__(self) -> None:
        for camera in self.image_sizes:
            if camera not in self.cameras:
                raise ValueError(f"image_sizes: {camera!r} is no camera of the VLA; use {', '.join(self.cameras)}")
        if self.image_sizes and len({self.image_sizes.get(camera) for camera in self.cameras}) == 1:
            raise ValueError("image_sizes: all cameras have one size; leave a camera out")
        for camera in self.gradient_cameras:
            if camera not in self.cameras:
                raise ValueError(f"gradient_cameras: {camera!r} is no camera of the VLA; use {', '.join(self.cameras)}")


class TowerBatches(VlaBatches):
    """Batches of pixels, their light and sharpness varied."""

    def __init__(
        self,
        data: Arrays,
        groups: Sequence[ImageGroup],
        answer: AnswerText,
        recipe: TowerRecipe,
        processes: Processes,
    ):
        super().__init__(data, groups, answer, recipe, processes)
        self._present = {  # camera: place of its image of t0 in the prompt
            group.cameras[column]: place
            for group in groups
            for place, column, step in zip(group.places, group.columns, group.steps, strict=True)
            if step == 0
        }
        self._always = [recipe.cameras.index(camera) for camera in recipe.gradient_cameras]

    def visual(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        pixels = tuple(map(torch.from_numpy, self.gather(self.data.pixels, indices)))
        jitter = torch.from_numpy(rng.uniform(JITTER[:, 0], JITTER[:, 1], (len(indices), len(JITTER)))).float()
        others = [camera for camera in sorted(self._present) if camera not in self._always]
        drawn = [int(rng.choice(others))] if others else []
        learning = tuple(self._present[camera] for camera in (*self._always, *drawn))
        return {"visual": pixels, "learning": learning, "jitter": jitter, "grain_seed": int(rng.integers(1 << 62))}


class TowerPlanner(TrainablePlanner):
    """The losses of the first stage."""

    def forward(self, batch: VlaBatch) -> dict[str, Tensor]:
        pixels = cast(tuple[Tensor, ...], batch.visual)
        if batch.jitter is not None:
            pixels = [jittered(each, batch.jitter, batch.grain_seed) for each in pixels]
        with self.autocast():
            tokens = self.encode(pixels, batch.learning)
            plan = self.plan_losses(tokens, batch)
        return {"dense": WEIGHTS["dense"] * self.dense_loss(tokens, batch.labels, batch.learning), **plan}

    def encode(self, pixels: Sequence[Tensor], learning: Sequence[int]) -> Tensor:
        """Tokens [B, N, D] in the prompt's order; those of the images ``learning`` carry gradient.

        Args:
            pixels: [B, n, 3, H, W] of each image size.
        """
        found: dict[int, Tensor] = {}
        for group, vision, images in zip(self.groups, self.visions, pixels, strict=True):
            chosen = [place for place in learning if place in group.places]
            resting = [place for place in group.places if place not in learning]
            if chosen:
                found |= self._encode_images(group, vision, images, chosen)
            if resting:
                with torch.no_grad():
                    found |= self._encode_images(group, vision, images, resting)
        dtype = found[learning[0]].dtype
        return torch.cat([found[place].to(dtype) for place in sorted(found)], 1)

    def _encode_images(
        self, group: ImageGroup, vision: Any, images: Tensor, places: Sequence[int]
    ) -> dict[int, Tensor]:
        """Tokens [B, rows * columns, D] by place, of images [B, n, 3, H, W] of a group."""
        columns = [group.places.index(place) for place in places]
        patches = vision.patches(images[:, columns].flatten(0, 1))
        tokens = vision.encode_patches(patches).unflatten(0, (len(images), len(columns)))
        return {place: tokens[:, index] for index, place in enumerate(places)}

    def dense_loss(self, tokens: Tensor, labels: Sequence[Tensor], learning: Sequence[int]) -> Tensor:
        """Cross entropy of the class of each fine cell of the images ``learning``.

        Args:
            tokens: [B, N, D].
            labels: [B, n, rows, columns] of each image size.
        """
        fine, scores, cells = LABELS_PER_TOKEN, [], []
        counts = {place: group.grid[0] * group.grid[1] for group in self.groups for place in group.places}
        by_place = tokens.split([counts[place] for place in sorted(counts)], 1)
        for group, of_group in zip(self.groups, labels, strict=True):
            chosen = [place for place in learning if place in group.places]
            if not chosen:
                continue
            (rows, columns), shape = group.grid, (len(tokens), len(chosen))
            picked = torch.stack([by_place[place] for place in chosen], 1).float()
            scores.append(self.classes(picked).reshape(*shape, rows, columns, fine, fine, CLASSES).flatten(0, 5))
            own = of_group[:, [group.places.index(place) for place in chosen]]
            cells.append(own.reshape(*shape, rows, fine, columns, fine).transpose(3, 4).flatten())
        return cross_entropy(torch.cat(scores), torch.cat(cells).long())


def train(recipe: dict, resume: bool) -> dict[str, Any]:
    """Train from a recipe's mapping; returns the final losses and ``images_per_s``.

    Writes a VLA directory whose tower is trained to ``<out>/vla``. An earlier run in the folder is archived unless it
    is resumed.

    Raises:
        RecipeError, InputError: the recipe or the data cannot be used.
        TrainingError: no checkpoint to resume, one of another recipe, or a loss that is not finite.
    """
    settings = parse_recipe(TowerRecipe, recipe)
    folder = Path(settings.out)
    if resume:
        require_checkpoint(folder)
    with TemporaryDirectory() as untrained:
        build_tiny_vla(untrained, settings.seed, settings.size, settings.cameras, settings.image_sizes, settings.frames)
        processes = Processes(settings.device)  # only now: in a group, transformers saves in the first process alone
        precision = choose_precision(settings.precision, processes.device)
        vla = with_prompt(load_vla(untrained, processes.device), settings.prompt)
        if settings.start is not None:
            take_tower(vla, settings.start)
        with processes.first_goes_ahead():
            source = settings.open_data(vla.spec.cameras)
            data = prepare(vla, source, Path(settings.cache), settings.workers, settings.other_speeds)
        vla.model.requires_grad_(True)
        torch.manual_seed(settings.seed)
        planner = TowerPlanner(vla, precision)
        batches = TowerBatches(data, planner.groups, AnswerText.of(vla), settings, processes)
        trainer = VlaTrainer(planner, batches, settings, {}, processes)
        if processes.first and not resume:
            start_folder(folder, KIND, settings)
        figures = trainer.run(resume)
        if processes.first:
            save_vla(vla, Path(untrained), folder / "vla")
            planner.save_heads(folder)
    return figures


def take_tower(vla: Vla, start: str | Path) -> None:
    """Give the VLA the tower of another one; its positions are those of the patches, so images of any size fit.

    Raises ModelError: the towers have different sizes, or ``start`` cannot be loaded.
    """
    other = load_vla(start, "cpu", parts=frozenset({VISION}))
    try:
        vla.model.model.visual.load_state_dict(other.model.model.visual.state_dict())
    except RuntimeError as error:
        raise ModelError(f"{start}: start: its tower has other sizes than the recipe's ({first_line(error)})") from None


@torch.no_grad()
def jittered(pixels: Tensor, jitter: Tensor, grain_seed: int) -> Tensor:
    """Images whose light, exposure, color cast, sharpness and sensor noise vary by keyframe.

    Args:
        pixels: uint8 [B, n, 3, H, W].
        jitter: float32 [B, 7], drawn from the ranges ``JITTER``.
        grain_seed: of the noise, which all keyframes share: enough, and much cheaper.

    Returns:
        uint8 [B, n, 3, H, W].
    """
    contrast, cast_r, cast_g, cast_b, light, softness, grain = jitter[..., None, None, None, None].unbind(1)
    color = torch.cat([cast_r, cast_g, cast_b], 2)
    values = (pixels.float() - 128) * contrast * color + 128 + light
    soft = avg_pool2d(values.flatten(0, 2), 3, stride=1, padding=1, count_include_pad=False).view_as(values)
    values = torch.lerp(values, soft, softness)
    generator = torch.Generator(pixels.device).manual_seed(grain_seed)
    noise = torch.randn(values.shape[1:], generator=generator, device=pixels.device)
    return (values + noise * grain).clamp(0, 255).to(torch.uint8)
