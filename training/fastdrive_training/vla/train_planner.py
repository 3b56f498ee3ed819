"""Recipes of kind ``vla_language``: the second stage of training a small VLA.

The tower is frozen, its tokens are computed once, and the language model learns the text from them: from whole and
pruned sets, or, with ``sets``, from sets of other sizes and cameras of which no token is dropped, or, with ``packed``,
from the tokens of a TokenPacker that is trained with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm import tqdm

from fastdrive_node.errors import InputError
from fastdrive_node.families import Vla, load_vla
from fastdrive_node.files import TOKEN_PACKER_FILE, write_atomically
from fastdrive_node.pruning.token_packer import TokenPacker, cells_of_vla, load_packer, save_packer
from fastdrive_training.engine.checkpoint import require_checkpoint, start_folder
from fastdrive_training.engine.config import Fraction, parse_recipe, recipe_class
from fastdrive_training.engine.distributed import Processes, choose_precision
from fastdrive_training.vla.arrangement import SetForms
from fastdrive_training.vla.data import LABELS_PER_TOKEN, Arrays, ImageGroup, prepare
from fastdrive_training.vla.planner import (
    HEADS_FILE,
    TrainablePlanner,
    VlaBatch,
    VlaBatches,
    VlaRecipe,
    VlaTrainer,
    save_vla,
    with_prompt,
)
from fastdrive_training.vla.targets import AnswerText

KIND = "vla_language"
FOREGROUND_LABELS = (2, 3, 8, 9, 10, 11, 12)  # of the simulator: road, marks, vehicles, people, lights, signs, barriers
CHUNK = 16  # keyframes encoded at a time


@recipe_class
class LanguageRecipe(VlaRecipe):
    """Keys of a ``vla_language`` recipe."""

    tower_run: str = "runs/tiny_tower"  # ``out`` of the tower's recipe, or of one of this kind to go on from
    start: str | None = None  # a VLA directory to go on from in place of tower_run's; the heads of training begin anew
    pruned_by: Literal["foreground", "random", "mixed", "none"] = "foreground"  # which tokens pruned samples show
    unpruned: Fraction = 0.35  # of the samples show all tokens to the language model
    drop: tuple[Fraction, Fraction] = (0.1, 0.8)  # least and most of the tokens that the other samples go without
    pruned_alike: bool = False  # samples of a batch keep equally many tokens: the rest is not computed, which is faster
    sets: SetForms = field(default_factory=SetForms)
    packed: bool = False  # the language model reads packed tokens only, a quarter; the packer is trained with it

    def __post_init__(self) -> None:
        if not self.drop[0] <= self.drop[1] < 1:
            raise ValueError(f"drop: {list(self.drop)} is no range below 1; give the least, then the most")
        if self.sets.active and self.pruned_by != "none":
            raise ValueError("sets: sets of other forms are never pruned; set pruned_by to none")
        if self.packed and (self.sets.active or self.pruned_by != "none"):
            raise ValueError(
                "packed: packed sets are never pruned or of other forms; set pruned_by to none and leave sets out"
            )

    @property
    def identity(self) -> dict[str, Any]:
        found = super().identity
        if not self.packed:  # checkpoints of before the key was there serve on
            del found["packed"]
        return found


class LanguageBatches(VlaBatches):
    """Batches of the frozen tower's tokens, some of them pruned."""

    def __init__(
        self,
        data: Arrays,
        groups: Sequence[ImageGroup],
        answer: AnswerText,
        recipe: LanguageRecipe,
        processes: Processes,
        tokens: np.ndarray,
    ):
        super().__init__(data, groups, answer, recipe, processes)
        self._tokens, self._pruned_by, self._sets = tokens, recipe.pruned_by, recipe.sets
        self._recipe = recipe
        self._steps, self._places = token_places(groups)
        self._cameras = sum(len(group.cameras) for group in groups)

    def visual(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        kept = None
        if self._pruned_by != "none":
            share = foreground_share(self.gather(self.data.labels, indices), self.groups)
            kept = keep_some(share, rng, self._recipe)
        arrangement = self._sets.draw(self._cameras, rng)
        sets = self._tokens[self.data.rows[indices]]  # [B, T, tokens of a set, D]
        visual = torch.from_numpy(sets[:, self._steps, self._places]).float()
        return {"visual": visual, "kept": kept, "arrangement": arrangement}


class LanguagePlanner(TrainablePlanner):
    """The losses of the second stage.

    Args:
        packer: packs the tokens of each batch, and is trained with the rest; None: they are read as they are.
    """

    def __init__(self, vla: Vla, precision: str = "float32", packer: TokenPacker | None = None):
        super().__init__(vla, precision)
        self.packer = packer
        self.members, self.present = (part.to(vla.device) for part in cells_of_vla(vla))

    def forward(self, batch: VlaBatch) -> dict[str, Tensor]:
        with self.autocast():
            tokens = cast(Tensor, batch.visual)
            if self.packer is None:
                return self.plan_losses(tokens, batch)
            first = self.members[:, 0]
            packed = self.packer(tokens[:, self.members], self.present)
            kept = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device).index_fill(1, first, True)
            return self.plan_losses(tokens.index_copy(1, first, packed.to(tokens.dtype)), replace(batch, kept=kept))


def train(recipe: dict, resume: bool) -> dict[str, Any]:
    """Train from a recipe's mapping and the first stage's run.

    Returns the final losses, ``images_per_s``, and ``left_out``: which files of the VLA that it began from the new one
    does not have, and why.

    Writes the finished VLA directory to ``<out>/vla``. An earlier run in the folder is archived unless it is resumed.

    Raises:
        RecipeError, InputError, ModelError: the recipe, the data or the first stage's run cannot be used.
        TrainingError: no checkpoint to resume, one of another recipe or tower, or a loss that is not finite.
    """
    settings = parse_recipe(LanguageRecipe, recipe)
    folder, tower = Path(settings.out), Path(settings.tower_run)
    begin = tower / "vla" if settings.start is None else Path(settings.start)
    if resume:
        require_checkpoint(folder)
    if settings.start is None and not (tower / HEADS_FILE).exists():
        raise InputError(f"{tower / HEADS_FILE}: missing; finish the training of the recipe that tower_run names")
    processes = Processes(settings.device)
    precision = choose_precision(settings.precision, processes.device)
    vla = with_prompt(load_vla(begin, processes.device), settings.prompt)
    settings.sets.check(vla)
    torch.manual_seed(settings.seed)
    packer = trainable_packer(vla) if settings.packed else None
    planner = LanguagePlanner(vla, precision, packer)
    with processes.first_goes_ahead():
        source = settings.open_data(vla.spec.cameras)
        data = prepare(vla, source, Path(settings.cache), settings.workers, settings.other_speeds)
        tokens = cached_tokens(planner, data, vla.encoder_fingerprint)
    if settings.start is None:
        for name, state in torch.load(tower / HEADS_FILE, map_location="cpu", weights_only=True).items():
            getattr(planner, name).load_state_dict(state)
    vla.model.model.language_model.requires_grad_(True)
    planner.classes.requires_grad_(False)  # of the first stage
    batches = LanguageBatches(data, planner.groups, AnswerText.of(vla), settings, processes, tokens)
    trainer = VlaTrainer(planner, batches, settings, {"encoder": vla.encoder_fingerprint}, processes)
    if processes.first and not resume:
        start_folder(folder, KIND, settings)
    figures = trainer.run(resume)
    if processes.first:
        figures["left_out"] = save_vla(vla, begin, folder / "vla")
        if packer is not None:
            save_packer(folder / "vla", packer)
            figures["left_out"].pop(TOKEN_PACKER_FILE, None)  # there is a new one
        planner.save_heads(folder)  # another run of this stage may go on from here
    return figures


def trainable_packer(vla: Vla) -> TokenPacker:
    """The packer beside a VLA, to go on from; a new one where it has none. Raises ModelError: an unusable file."""
    if (vla.path / TOKEN_PACKER_FILE).exists():
        return load_packer(vla).requires_grad_(True)
    return TokenPacker(vla.width, vla.config.text_config.num_attention_heads)


def token_places(groups: Sequence[ImageGroup]) -> tuple[np.ndarray, np.ndarray]:
    """Of each visual token of the prompt: its step before t0, and its index among its set's tokens."""
    counts = {camera: group.grid[0] * group.grid[1] for group in groups for camera in group.cameras}
    starts = dict(zip(sorted(counts), np.cumsum([0, *(counts[camera] for camera in sorted(counts))]), strict=False))
    images = {
        place: (group.cameras[column], step)
        for group in groups
        for place, column, step in zip(group.places, group.columns, group.steps, strict=True)
    }
    ordered = [images[place] for place in sorted(images)]
    steps = [np.full(counts[camera], step) for camera, step in ordered]
    places = [np.arange(starts[camera], starts[camera] + counts[camera]) for camera, _ in ordered]
    return np.concatenate(steps), np.concatenate(places)


def foreground_share(labels: Sequence[np.ndarray], groups: Sequence[ImageGroup]) -> np.ndarray:
    """Share of foreground in the cell of each visual token of the prompt, float [B, N].

    Args:
        labels: uint8 [B, n, rows, columns] of each image size, class of each fine cell.
    """
    found: dict[int, np.ndarray] = {}
    for group, each in zip(groups, labels, strict=True):
        (rows, columns), fine = group.grid, LABELS_PER_TOKEN
        cells = np.isin(each, FOREGROUND_LABELS).reshape(*each.shape[:2], rows, fine, columns, fine)
        share = cells.mean((3, 5)).reshape(*each.shape[:2], -1)
        found |= {place: share[:, index] for index, place in enumerate(group.places)}
    return np.concatenate([found[place] for place in sorted(found)], 1)


def keep_some(share: np.ndarray, rng: np.random.Generator, recipe: LanguageRecipe) -> Tensor:
    """Which visual tokens a sample's language model sees: all in some samples, a part in the others.

    Args:
        share: of foreground in each token's cell, float [B, N].
        recipe: how many, by ``unpruned``, ``drop`` and ``pruned_alike``, and which, by ``pruned_by``: "foreground"
            keeps those of most foreground, with some noise; "random" any; "mixed" draws one of the two for each sample.

    Returns:
        bool [B, N].
    """
    batch = len(share)
    by_foreground = {"foreground": 1.0, "random": 0.0, "mixed": 0.5}[recipe.pruned_by]
    score = share + rng.uniform(0.05, 1.5, (batch, 1)) * rng.random(share.shape)
    if by_foreground < 1:  # the draws above stay those of a run by foreground alone
        score = np.where(rng.random((batch, 1)) < by_foreground, score, rng.random(score.shape))
    drop = np.where(rng.random(batch) < recipe.unpruned, 0.0, rng.uniform(*recipe.drop, batch))
    drop = drop[:1] if recipe.pruned_alike else drop
    rank = score.argsort(1).argsort(1)  # 0 is the lowest
    return torch.from_numpy(rank >= (drop * score.shape[1])[:, None])


@torch.inference_mode()
def cached_tokens(planner: TrainablePlanner, data: Arrays, fingerprint: str) -> np.ndarray:
    """The frozen tower's tokens of every set of images, camera after camera, float16 [I, tokens of a set, D].

    They are computed once and kept beside the pixels.
    """
    path = Path(str(data.pixels[0].filename)).with_name(f"tokens-{fingerprint[:16]}.npy")
    if not path.exists():
        device = planner.form.visual.device
        counts = {camera: group.grid[0] * group.grid[1] for group in planner.groups for camera in group.cameras}
        shape = (len(data.pixels[0]), sum(counts.values()), planner.classes.in_features)
        with write_atomically(path) as partial:
            tokens = open_memmap(partial, "w+", np.float16, shape)
            for start in tqdm(range(0, shape[0], CHUNK), desc="encode", unit="batch"):
                found: dict[int, Tensor] = {}
                for group, vision, array in zip(planner.groups, planner.visions, data.pixels, strict=True):
                    pixels = torch.from_numpy(np.array(array[start : start + CHUNK])).to(device)
                    encoded = vision.encode_patches(vision.patches(pixels.flatten(0, 1)))
                    encoded = encoded.unflatten(0, (len(pixels), -1))
                    found |= {camera: encoded[:, column] for column, camera in enumerate(group.cameras)}
                ordered = torch.cat([found[camera] for camera in sorted(found)], 1)
                tokens[start : start + CHUNK] = ordered.cpu().numpy()
            tokens.flush()
    return np.load(path, mmap_mode="r")
