"""What both stages of VLA training share: the model with its losses, batches, recipe keys, and the trainer."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, smooth_l1_loss

from fastdrive_node.errors import ModelError
from fastdrive_node.families import Vla
from fastdrive_node.families.fingerprint import WEIGHTS as MODEL_WEIGHTS
from fastdrive_node.families.fingerprint import WEIGHTS_INDEX, indexed_weights
from fastdrive_node.families.prompt import check_prompt
from fastdrive_node.files import TOKEN_PACKER_FILE, VIEW_WEIGHTS_FILE
from fastdrive_node.pruning.catalog import FILES
from fastdrive_training.data.adapters import ImageSource, open_source
from fastdrive_training.data.adapters.joined import JoinedSource
from fastdrive_training.engine.config import Count, Fraction, Positive, RecipeError, Seed, Steps, recipe_class
from fastdrive_training.engine.distributed import Processes
from fastdrive_training.engine.loop import LoopOptions, Losses, StepBatches, Trainer, learning_rate
from fastdrive_training.vla.arrangement import Arrangement, PromptForm, arrange_tokens, arranged
from fastdrive_training.vla.changing import SharedBatches, changes
from fastdrive_training.vla.data import (
    GAPS,
    IGNORE,
    LABELS_PER_TOKEN,
    LIGHTS,
    NO_GAP_M,
    Arrays,
    ImageGroup,
    image_groups,
)
from fastdrive_training.vla.targets import AnswerText

CLASSES = 16  # at least the simulator's labels
WAYPOINT_SCALE_M = 5.0
KNOWN_HISTORY = 0.88  # of the samples; the others stand for a vehicle that has just started
WEIGHTS = {"numbers": 0.3, "words": 0.3, "waypoints": 3.0, "light": 0.3, "gaps": 1.0, "dense": 0.5}
HEADS = ("waypoints", "ahead")  # of the planner, which the second stage takes over from the first
HEADS_FILE = "heads.pt"
OF_ONE_LANGUAGE_MODEL = {  # files of a VLA directory that are true of its own language model alone, and why
    "README.md": "the card of another VLA",
    TOKEN_PACKER_FILE: "no other language model was trained with its tokens; `packed` of a recipe trains a new one",
    VIEW_WEIGHTS_FILE: "searched with the plans of another language model; find new ones with `fastdrive view-weights`",
    FILES["reconpruner-plan"]: "learned from the answers of another language model; train a new one with "
    "`fastdrive train distil_tiny_plan`, or give the old file by its path",
}
# Keys that change where and how fast a run goes, not what it computes; a run may be resumed with others.
FREE_KEYS = (
    *("dataset", "more_datasets", "dataset_kind", "out", "cache", "tower_run"),
    *("device", "workers", "tensorboard", "log_every", "checkpoint_every"),
)


@recipe_class
class VlaRecipe:
    """Keys of both stages. Paths are relative to the working directory."""

    dataset: str
    out: str  # folder of the run: recipe.yaml, checkpoint.pt, log.jsonl, vla/
    more_datasets: tuple[str, ...] = ()  # of the same cameras, which are read as one with ``dataset``
    dataset_kind: str = "auto"  # its layout: nuscenes, folder, kitti, waymo; it must have ego motion
    split: str = "train"
    prompt: str | None = None  # the template to train with, which the new VLA gets; None: that of the VLA at the start
    # Fraction of a batch whose plan is not constant velocity: braking, starting, turning. None: as the data have them.
    changing: Fraction | None = None
    other_speeds: bool = False  # train on the keyframes at other speeds too, where the dataset has labels for them
    cache: str = "runs/vla_cache"
    seed: Seed = 0
    steps: Count = 3000
    batch: Count = 16  # samples per step, over all processes
    rate: Positive = 1e-3  # the learning rate; linear warm-up, cosine decay to a fiftieth
    warmup_steps: Steps = 200
    device: str = "auto"  # cpu, cuda, cuda:<index>; auto is cuda where there is one
    precision: Literal["auto", "float32", "bfloat16"] = "bfloat16"
    workers: Steps = 2  # processes that read batches, for each training process; 0: it reads them itself
    tensorboard: bool = True  # events beside log.jsonl, where the package is installed
    log_every: Count = 50
    checkpoint_every: Count = 250

    def open_data(self, cameras: tuple[str, ...]) -> ImageSource:
        """The items to train on. Raises InputError as ``open_source`` does, or where datasets do not go together."""
        roots = (self.dataset, *self.more_datasets)
        sources = [open_source(root, self.split, self.dataset_kind, cameras=cameras) for root in roots]
        return JoinedSource(sources) if len(sources) > 1 else sources[0]

    @property
    def identity(self) -> dict[str, Any]:
        """The keys that say what the run computes; a checkpoint serves the recipe that it was made by."""
        found = {key: value for key, value in asdict(self).items() if key not in FREE_KEYS}
        if not self.other_speeds:  # checkpoints of before the key was there serve on
            del found["other_speeds"]
        return found


@dataclass(frozen=True)
class VlaBatch:
    """B keyframes, everything random drawn; N visual tokens in a prompt, n images of each size in it."""

    visual: Tensor | tuple[Tensor, ...]  # pixels uint8 [B, n, 3, H, W] of each size; second stage: tokens [B, N, D]
    text: Tensor  # int64 [B, L + A - 1], the prompts, and the answers as they are shown
    answers: Tensor  # int64 [B, A], the true tokens
    futures: Tensor  # float32 [B, points, 2] m
    lights: Tensor  # int64 [B] index in LIGHTS, IGNORE where unknown
    gaps: Tensor  # float32 [B, 3] m
    labels: tuple[Tensor, ...]  # uint8 [B, n, rows, columns] of each size, the class of each fine cell
    kept: Tensor | None = None  # bool [B, N], the tokens that the language model sees; None: all
    learning: tuple[int, ...] = ()  # places in the prompt of the images whose tokens carry gradient
    jitter: Tensor | None = None  # float32 [B, 7], how the pixels are varied; see ``train_tower.jittered``
    grain_seed: int = 0  # of the sensor noise of the whole batch
    arrangement: Arrangement | None = None  # the form in which the language model sees the set; None: the VLA's own

    def change(self, function) -> VlaBatch:
        """The batch with ``function`` applied to each tensor."""
        changed: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                changed[name] = function(value)
            elif isinstance(value, tuple) and any(isinstance(each, Tensor) for each in value):
                changed[name] = tuple(function(each) for each in value)
        return replace(self, **changed)


class VlaBatches(StepBatches):
    """Batches of keyframes; a stage gives their visual part.

    Args:
        data: of the dataset.
        groups: of the VLA's images.
        answer: how the VLA writes answers, on the CPU.
    """

    def __init__(
        self,
        data: Arrays,
        groups: Sequence[ImageGroup],
        answer: AnswerText,
        recipe: VlaRecipe,
        processes: Processes,
    ):
        super().__init__(len(data), recipe.batch, recipe.seed, recipe.dataset, processes.count, [processes.rank])
        self.data, self.groups, self.answer = data, tuple(groups), answer
        self._shared: SharedBatches | None = None
        if recipe.changing is not None:
            changing = changes(data.futures, data.speeds, float(answer.times_s[0]))
            self._shared = SharedBatches(changing, recipe.changing, self.batch, recipe.seed, recipe.dataset)

    def indices(self, step: int) -> np.ndarray:
        return super().indices(step) if self._shared is None else self._shared.indices(step)

    def gather(self, arrays: Sequence[np.ndarray], indices: np.ndarray) -> list[np.ndarray]:
        """``pixels`` or ``labels`` of the data, [B, n, ...] of each image size, for keyframes."""
        rows = self.data.rows[indices]
        return [group.gather(array, rows) for group, array in zip(self.groups, arrays, strict=True)]

    def visual(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """``visual`` of VlaBatch, and the fields with a default that the stage sets, of keyframes."""
        raise NotImplementedError

    def names(self, step: int) -> list[str]:
        return self.data.names[np.sort(self.indices(step))].tolist()

    def read(self, step: int) -> list[VlaBatch]:
        data, indices = self.data, np.sort(self.indices(step))
        rng = np.random.default_rng([self.seed, 1, step])
        visual = self.visual(indices, rng)
        count = len(indices)
        known = np.where(rng.random(count) < KNOWN_HISTORY, 0, rng.integers(1, data.prompts.shape[1], count))
        prompts = torch.from_numpy(data.prompts[indices, known].astype(np.int64))
        answers = torch.from_numpy(data.answers[indices].astype(np.int64))
        shown = self.answer.shown(answers, data.futures[indices], rng)
        rest = (data.futures, data.lights, data.gaps)
        futures, lights, gaps = (torch.from_numpy(np.array(array[indices])) for array in rest)
        labels = tuple(map(torch.from_numpy, self.gather(data.labels, indices)))
        whole = VlaBatch(
            visual.pop("visual"),
            torch.cat([prompts, shown[:, :-1]], 1),
            answers,
            futures,
            lights,
            gaps,
            labels,
            **visual,
        )
        return [whole.change(lambda tensor, part=part: tensor[part :: self.parts]) for part in self.own]


class TrainablePlanner(nn.Module):
    """A VLA, on its device, with the small heads that only training needs. A stage's subclass gives ``forward``."""

    def __init__(self, vla: Vla, precision: str = "float32"):
        super().__init__()
        self.core = vla.model
        self._vla, self.form = vla, PromptForm.of(vla)
        self.groups = image_groups(vla)
        self.vision, *others = (vla.of_size(group.size).torch_vision() for group in self.groups)
        self.others = nn.ModuleList(others)  # for the other image sizes
        self.grid = self.groups[0].grid
        self.classes = nn.Linear(vla.width, LABELS_PER_TOKEN**2 * CLASSES)
        self.waypoints = nn.Linear(vla.width, vla.spec.answer.points * 2)
        self.ahead = nn.Linear(vla.width, len(LIGHTS) + len(GAPS))
        self.answer = AnswerText.of(vla).to(vla.device)
        self._bfloat16 = precision == "bfloat16"

    @property
    def visions(self) -> list[Any]:
        """A vision backend for each of ``groups``."""
        return [self.vision, *self.others]

    def autocast(self) -> AbstractContextManager:
        """The precision of the recipe."""
        return torch.autocast(self._vla.device.type, torch.bfloat16) if self._bfloat16 else nullcontext()

    def hidden(
        self, tokens: Tensor, text: Tensor, kept: Tensor | None = None, form: PromptForm | None = None
    ) -> Tensor:
        """Last hidden states [B, L, D] of ``text`` [B, L], prompts or prompts with answers, over tokens [B, N, D].

        Args:
            kept: the tokens that are seen, bool [B, N]. Where all rows keep as many, the others are left out, and L is
                shorter by their number.
            form: of ``text``; None for the VLA's own.
        """
        form = form or self.form
        embeds = self.core.get_input_embeddings()(text)
        embeds = embeds.index_copy(1, form.visual, tokens.to(embeds.dtype))
        more = text.shape[1] - len(form)
        answer = (form.next_position + torch.arange(more, device=text.device)).expand(len(form.positions), -1)
        positions = torch.cat([form.positions, answer], 1)[:, None].expand(-1, len(text), -1)
        mask = None
        if kept is not None:
            mask = torch.ones_like(text).index_copy(1, form.visual, kept.to(text.dtype))
            if len(kept.sum(1).unique()) == 1:  # else a token that nothing attends to is as good as pruned
                rows, places = (part.view(len(text), -1) for part in mask.nonzero(as_tuple=True))
                embeds, positions, mask = embeds[rows, places], positions[:, rows, places], None
        model = self.core.model.language_model
        return model(inputs_embeds=embeds, position_ids=positions, attention_mask=mask).last_hidden_state

    def plan_losses(self, tokens: Tensor, batch: VlaBatch) -> dict[str, Tensor]:
        """Weighted losses of the language model for tokens [B, N, D] of whole sets, in the batch's arrangement."""
        form, text = self.form, batch.text
        if batch.arrangement is not None:
            form = PromptForm.of(arranged(self._vla, batch.arrangement))
            tokens, text = arrange_tokens(tokens, self.grid, batch.arrangement), form.text(text, self.form)
        answered = text.shape[1] - len(form) + 1  # positions, from the prompt's last on
        hidden = self.hidden(tokens, text, batch.kept, form)[:, -answered:]
        logits = self.core.lm_head(hidden).float()
        wanted = (batch.futures.flatten(1) / WAYPOINT_SCALE_M)[:, None]
        waypoints = self.waypoints(hidden.float())  # every position of the answer knows the whole plan
        losses = {
            **self.answer.losses(logits, batch.answers, batch.futures),
            "waypoints": smooth_l1_loss(waypoints, wanted.expand_as(waypoints), beta=0.1),
            **self._ahead_losses(hidden[:, 0].float(), batch.lights, batch.gaps),
        }
        return {name: WEIGHTS[name] * loss for name, loss in losses.items()}

    def _ahead_losses(self, last: Tensor, lights: Tensor, gaps: Tensor) -> dict[str, Tensor]:
        """What is ahead, asked at the prompt's last hidden state [B, D]."""
        ahead = self.ahead(last)
        known = (lights != IGNORE).sum().clamp(min=1)  # a real dataset names no lights
        nearness = torch.exp(-gaps / 20.0) * (gaps < NO_GAP_M)
        return {
            "light": cross_entropy(ahead[:, : len(LIGHTS)], lights, reduction="sum") / known,
            "gaps": smooth_l1_loss(ahead[:, len(LIGHTS) :], nearness, beta=0.1),
        }

    def save_heads(self, folder: Path) -> None:
        """Write the heads that the second stage takes over."""
        torch.save({name: getattr(self, name).state_dict() for name in HEADS}, folder / HEADS_FILE)


class VlaTrainer(Trainer):
    """Trains what of a planner requires gradients. Figures are means: in the log over the steps since the line before,
    at the end over the last 100 steps."""

    def __init__(
        self,
        planner: TrainablePlanner,
        batches: VlaBatches,
        recipe: VlaRecipe,
        identity: dict[str, Any],
        processes: Processes,
    ):
        parameters = [parameter for parameter in planner.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.02)
        options = LoopOptions(
            recipe.steps,
            log_every=recipe.log_every,
            checkpoint_every=recipe.checkpoint_every,
            images_per_step=batches.batch * sum(len(group.places) for group in batches.groups),
            workers=recipe.workers,
            identity={**recipe.identity, **identity},
            tensorboard=recipe.tensorboard,
        )
        schedule = learning_rate(optimizer, recipe.warmup_steps, recipe.steps, 0.02, recipe.warmup_steps)
        folder = Path(recipe.out)
        super().__init__(folder, batches, {"planner": planner}, optimizer, schedule, options, processes)
        self._recent: deque[dict[str, float]] = deque(maxlen=100)

    def prepare(self, parts: list[VlaBatch]) -> list[VlaBatch]:
        return [part.change(lambda tensor: tensor.to(self.processes.device)) for part in parts]

    def losses(self, part: VlaBatch) -> Losses:
        named = self.wrapped["planner"](part)
        return {**named, "total": reduce(torch.add, named.values())}

    def observe(self, figures: dict[str, Any], losses: list[Losses], norms: dict[str, float]) -> dict[str, Any]:
        self._recent.append(figures)
        return _means(list(self._recent)[-self.options.log_every :])

    def finish(self) -> dict[str, Any]:
        return _means(list(self._recent))

    def state(self) -> dict[str, Any]:
        return {"recent": list(self._recent)}

    def load_state(self, state: dict[str, Any]) -> None:
        self._recent.extend(state["recent"])


def save_vla(vla: Vla, source: Path, target: Path) -> dict[str, str]:
    """Write ``vla`` with its prompt, and the files of ``source`` that are still true: tokenizer, vla.json, pruner files
    that depend on the tower alone.

    Returns:
        Files of ``source`` that were left out, and why: ``OF_ONE_LANGUAGE_MODEL``.
    """
    target.mkdir(parents=True, exist_ok=True)
    vla.model.save_pretrained(target)
    (target / vla.spec.prompt).write_text(vla.template, encoding="utf-8")
    weights = {WEIGHTS_INDEX, MODEL_WEIGHTS}  # those of ``vla`` are there
    if (source / WEIGHTS_INDEX).is_file():
        weights |= {file.name for file in indexed_weights(source)}
    left_out = {}
    for file in sorted(source.iterdir()):
        if file.name in OF_ONE_LANGUAGE_MODEL:
            left_out[file.name] = OF_ONE_LANGUAGE_MODEL[file.name]
        elif file.is_file() and file.name not in weights and not (target / file.name).exists():
            (target / file.name).write_bytes(file.read_bytes())
    return left_out


def with_prompt(vla: Vla, template: str | None) -> Vla:
    """The VLA with another prompt template, its weights shared; with its own where that is None.

    Raises RecipeError: the template has no or unknown markers, or text that the tokenizer does not know.
    """
    if template is None:
        return vla
    changed = replace(vla, template=template)
    try:
        check_prompt(changed)
    except ModelError as error:
        raise RecipeError(f"prompt: {str(error).removeprefix(f'{vla.path / vla.spec.prompt}: ')}") from None
    return changed


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} if rows else {}
