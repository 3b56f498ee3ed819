"""Training a small VLA by imitation, in two stages whose order makes it possible on a CPU.

1. ``train_tower``: vision tower and language half together. The tower's tokens must name the class of each cell; the
   language half's hidden states must give the waypoints, the light ahead, the gaps, and the answer's text.
2. ``train_language``: the tower is frozen, its tokens are computed once, and the language half learns the text from
   them, whole and pruned.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, smooth_l1_loss
from tqdm import tqdm

from fastdrive_node.families.loading import Vla, load_vla
from fastdrive_node.families.qwen2_5_vl.prompt import build_prompt, full_positions
from fastdrive_node.families.qwen2_5_vl.tower import TorchVision
from fastdrive_node.types import EgoHistory, EgoState
from fastdrive_training.data.nuscenes.keyframes import KeyframeDataset
from fastdrive_training.engine.config import RecipeError, parse_recipe
from fastdrive_training.engine.io import set_aside
from fastdrive_training.engine.loop import Run, fit
from fastdrive_training.vla.data import CELL_PX, GAPS, IGNORE, LIGHTS, NO_GAP_M, Arrays, prepare
from fastdrive_training.vla.targets import AnswerText
from fastdrive_training.vla.tiny_model import build_tiny_vla

CLASSES = 16  # at least the simulator's labels
WAYPOINT_SCALE_M = 5.0
FOREGROUND_LABELS = (2, 3, 8, 9, 10, 11, 12)  # of the simulator: road, marks, vehicles, people, lights, signs, barriers
PRUNED_BY = ("foreground", "random", "mixed", "none")
UNPRUNED = 0.35  # of the samples show all tokens to the language half, the others 20 to 90 %
KNOWN_HISTORY = 0.88  # of the samples; the others stand for a vehicle that has just started
WEIGHTS = {"numbers": 0.3, "words": 0.3, "waypoints": 3.0, "light": 0.3, "gaps": 1.0, "dense": 0.5}
GRADIENT_CAMERAS = (0, 1, 5)  # front, front right, front left; of the rear ones a random one joins in each step


class Planner(nn.Module):
    """A VLA with the small heads that only training needs."""

    def __init__(self, vla: Vla):
        super().__init__()
        self.vla = vla
        self.core = vla.model
        self.vision = TorchVision(vla.model.model.visual, vla.spec.image_size, cameras=len(vla.spec.cameras))
        width, cells = vla.width, (28 // CELL_PX) ** 2
        self.classes = nn.Linear(width, cells * CLASSES)
        self.waypoints = nn.Linear(width, vla.spec.answer.points * 2)
        self.ahead = nn.Linear(width, len(LIGHTS) + len(GAPS))
        self.answer = AnswerText.of(vla)
        prompt = build_prompt(vla, EgoHistory((EgoState(0, 0.0, 0.0, 0.0, 0.0),)))
        self.visual = prompt.visual
        self.prompt_length = len(prompt)
        self.next_position = prompt.next_position
        self.prompt_positions = full_positions(vla, prompt.input_ids)[0]

    def hidden(self, tokens: Tensor, text: Tensor, kept: Tensor | None = None) -> Tensor:
        """Last hidden states [B, L, D] of ``text`` [B, L], prompts or prompts with answers, over tokens [B, N, D]."""
        embeds = self.core.get_input_embeddings()(text)
        embeds = embeds.index_copy(1, self.visual, tokens.to(embeds.dtype))
        extra = text.shape[1] - self.prompt_length
        answer = (self.next_position + torch.arange(extra)).expand(3, -1)
        positions = torch.cat([self.prompt_positions, answer], 1)[:, None].expand(3, len(text), -1)
        mask = None
        if kept is not None:  # bool [B, N]: a token that nobody attends to is as good as pruned
            mask = torch.ones_like(text).index_copy(1, self.visual, kept.to(text.dtype))
        model = self.core.model.language_model
        return model(inputs_embeds=embeds, position_ids=positions, attention_mask=mask).last_hidden_state

    def plan_losses(
        self, tokens: Tensor, data: Arrays, indices: np.ndarray, rng: np.random.Generator, kept: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Weighted losses of the language half for tokens [B, N, D] of the keyframes ``indices``."""
        known = np.where(
            rng.random(len(indices)) < KNOWN_HISTORY, 0, rng.integers(1, data.prompts.shape[1], len(indices))
        )
        prompts = torch.from_numpy(data.prompts[indices, known].astype(np.int64))
        answers = data.answers[indices]
        shown = self.answer.shown(answers, data.futures[indices], rng)
        hidden = self.hidden(tokens, torch.cat([prompts, shown[:, :-1]], 1), kept)[:, self.prompt_length - 1 :]
        logits = self.core.lm_head(hidden).float()
        futures, lights, gaps = _targets(data, indices)
        wanted = (futures.flatten(1) / WAYPOINT_SCALE_M)[:, None]
        waypoints = self.waypoints(hidden.float())  # every place of the answer knows the whole plan
        losses = {
            **self.answer.losses(logits, answers, futures),
            "waypoints": smooth_l1_loss(waypoints, wanted.expand_as(waypoints), beta=0.1),
            **self._ahead_losses(hidden[:, 0].float(), lights, gaps),
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


def encode_some(planner: Planner, pixels: Tensor, rng: np.random.Generator) -> tuple[Tensor, list[int]]:
    """Tokens [B, C * n, D]; the cameras that the list names carry gradient, the others save its cost."""
    rear = [camera for camera in range(pixels.shape[1]) if camera not in GRADIENT_CAMERAS]
    learning = [*GRADIENT_CAMERAS, int(rng.choice(rear))]
    resting = [camera for camera in rear if camera not in learning]
    vision, batch = planner.vision, len(pixels)

    def run(cameras: list[int]) -> Tensor:
        patches = vision.patches(pixels[:, cameras].flatten(0, 1))
        return vision.encode_patches(patches).unflatten(0, (batch, len(cameras)))

    live = run(learning)
    with torch.no_grad():
        still = run(resting)
    order = torch.tensor(learning + resting).argsort()
    return torch.cat([live, still.to(live.dtype)], 1)[:, order].flatten(1, 2), learning


def dense_loss(planner: Planner, tokens: Tensor, labels: Tensor, cameras: list[int]) -> Tensor:
    """Cross entropy of the class of each fine cell; tokens [B, C * n, D], labels [B, C, rows, columns]."""
    batch, total = labels.shape[:2]
    rows, columns = planner.vision.grid
    fine = 28 // CELL_PX
    picked = tokens.unflatten(1, (total, rows * columns))[:, cameras].float()
    scores = planner.classes(picked).reshape(batch, len(cameras), rows, columns, fine, fine, CLASSES)
    cells = labels[:, cameras].reshape(batch, len(cameras), rows, fine, columns, fine).transpose(3, 4)
    return cross_entropy(scores.flatten(0, 5), cells.flatten().long())


@dataclass(frozen=True)
class TowerRecipe:
    """Keys of a ``vla_tower`` recipe. Paths are relative to the working directory."""

    dataset: str
    out: str  # folder of the run: checkpoint.pt, log.jsonl, heads.pt, vla/
    split: str = "train"
    cache: str = "runs/vla_cache"
    seed: int = 0
    steps: int = 3000
    batch: int = 16
    rate: float = 1e-3
    bf16: bool = True

    def run(self) -> Run:
        return Run(Path(self.out), self.steps, self.batch, self.rate, self.seed)


@dataclass(frozen=True)
class LanguageRecipe(TowerRecipe):
    """Keys of a ``vla_language`` recipe."""

    tower_run: str = "runs/tiny_tower"  # ``out`` of the tower's recipe
    pruned_by: str = "foreground"  # which tokens pruned samples show (PRUNED_BY); none: no sample is pruned

    def __post_init__(self) -> None:
        if self.pruned_by not in PRUNED_BY:
            raise RecipeError(f"pruned_by: must be one of {', '.join(PRUNED_BY)}, is {self.pruned_by!r}")


def train_tower(recipe: dict, resume: bool) -> dict[str, float]:
    """Stage 1 (``TowerRecipe``). Writes a VLA directory whose tower is trained to ``<out>/vla``."""
    settings = parse_recipe(TowerRecipe, recipe)
    torch.manual_seed(settings.seed)
    run = settings.run()
    if not resume:
        set_aside(run.folder)
    vla = load_vla(build_tiny_vla(run.folder / "vla", settings.seed))
    data = prepare(vla, KeyframeDataset(settings.dataset, settings.split), Path(settings.cache))
    vla.model.requires_grad_(True)
    planner = Planner(vla)
    parameters = [p for p in planner.parameters() if p.requires_grad]

    def losses(indices: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        pixels = _jitter(torch.from_numpy(data.pixels[indices]), rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            tokens, cameras = encode_some(planner, pixels, rng)
            plan = planner.plan_losses(tokens, data, indices, rng)
        labels = torch.from_numpy(data.labels[indices])
        return {"dense": WEIGHTS["dense"] * dense_loss(planner, tokens, labels, cameras), **plan}

    figures = fit(run, planner, parameters, losses, len(data), resume)
    vla.model.save_pretrained(run.folder / "vla")
    torch.save({name: getattr(planner, name).state_dict() for name in ("waypoints", "ahead")}, run.folder / "heads.pt")
    return {**figures, "images_per_s": figures["steps_per_s"] * run.batch * len(vla.spec.cameras)}


def _jitter(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Vary light, exposure, colour cast, sharpness and sensor noise by keyframe; pixels uint8 [B, C, 3, H, W]."""

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (len(pixels), 1, channels, 1, 1))).float()

    values = (pixels.float() - 128) * draw(0.7, 1.3) * draw(0.9, 1.1, 3) + 128 + draw(-30, 30)
    soft = avg_pool2d(values.flatten(0, 2), 3, stride=1, padding=1, count_include_pad=False).view_as(values)
    values = torch.lerp(values, soft, draw(0, 1))
    grain = torch.from_numpy(rng.standard_normal((1, *values.shape[1:]), dtype=np.float32))  # one for all: enough
    return (values + grain * draw(0, 8)).clamp(0, 255).to(torch.uint8)


def _targets(data: Arrays, indices: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.from_numpy(np.array(part[indices])) for part in (data.futures, data.lights, data.gaps))


def train_language(recipe: dict, resume: bool) -> dict[str, float]:
    """Stage 2 (``LanguageRecipe``), from the VLA of stage 1. Writes the finished VLA directory to ``<out>/vla``."""
    settings = parse_recipe(LanguageRecipe, recipe)
    torch.manual_seed(settings.seed)
    run, stage1 = settings.run(), Path(settings.tower_run)
    vla = load_vla(stage1 / "vla")
    data = prepare(vla, KeyframeDataset(settings.dataset, settings.split), Path(settings.cache))
    planner = Planner(vla)
    tokens = cached_tokens(planner, data)
    for name, state in torch.load(stage1 / "heads.pt", weights_only=True).items():
        getattr(planner, name).load_state_dict(state)
    vla.model.model.language_model.requires_grad_(True)
    parameters = [p for p in planner.parameters() if p.requires_grad]

    def losses(indices: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        visual = torch.from_numpy(tokens[indices]).float()
        kept = None
        if settings.pruned_by != "none":
            kept = keep_some(data.labels[indices], planner.vision.grid, rng, settings.pruned_by)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            return planner.plan_losses(visual, data, indices, rng, kept)

    if not resume:
        set_aside(run.folder)
    figures = fit(run, planner, parameters, losses, len(data), resume)
    save_vla(vla, stage1 / "vla", run.folder / "vla")
    return {**figures, "images_per_s": figures["steps_per_s"] * run.batch * len(vla.spec.cameras)}


def keep_some(
    labels: np.ndarray, grid: tuple[int, int], rng: np.random.Generator, pruned_by: str = "foreground"
) -> Tensor:
    """Which visual tokens a sample's language half sees: all in about a third of the samples, else 20 to 90 %.

    Args:
        labels: uint8 [B, C, rows, columns], class of each fine cell.
        pruned_by: "foreground" keeps those of most foreground, with more or less chance; "random" any; "mixed" does
            either, by chance for each sample.

    Returns:
        bool [B, C * n].
    """
    batch, cameras = labels.shape[:2]
    fine = np.isin(labels, FOREGROUND_LABELS).reshape(batch, cameras, grid[0], 28 // CELL_PX, grid[1], 28 // CELL_PX)
    score = fine.mean((3, 5)).reshape(batch, -1)
    by_foreground = {"foreground": 1.0, "random": 0.0, "mixed": 0.5}[pruned_by]
    score = score + rng.uniform(0.05, 1.5, (batch, 1)) * rng.random(score.shape)
    if by_foreground < 1:  # the draws above stay those of a run by foreground alone
        score = np.where(rng.random((batch, 1)) < by_foreground, score, rng.random(score.shape))
    drop = np.where(rng.random(batch) < UNPRUNED, 0.0, rng.uniform(0.1, 0.8, batch))
    rank = score.argsort(1).argsort(1)  # 0 is the lowest
    return torch.from_numpy(rank >= (drop * score.shape[1])[:, None])


def save_vla(vla: Vla, source: Path, target: Path) -> None:
    """Write ``vla`` with the tokenizer, prompt and vla.json of ``source``."""
    target.mkdir(parents=True, exist_ok=True)
    vla.model.save_pretrained(target)
    for file in source.iterdir():
        if not (target / file.name).exists():
            (target / file.name).write_bytes(file.read_bytes())


@torch.inference_mode()
def cached_tokens(planner: Planner, data: Arrays) -> np.ndarray:
    """The frozen tower's tokens of every keyframe, float16 [K, C * n, D], computed once and kept beside the pixels."""
    path = Path(data.pixels.filename).with_name(f"tokens-{planner.vla.encoder_fingerprint[:16]}.npy")
    if path.exists():
        return np.load(path, mmap_mode="r")
    draft = path.with_suffix(".tmp.npy")
    shape = (len(data), planner.vla.tokens, planner.vla.width)
    tokens = open_memmap(draft, "w+", np.float16, shape)
    for start in tqdm(range(0, len(data), 16), desc="encode", unit="batch"):
        pixels = torch.from_numpy(np.array(data.pixels[start : start + 16]))
        encoded = planner.vision.encode_patches(planner.vision.patches(pixels.flatten(0, 1)))
        tokens[start : start + 16] = encoded.reshape(len(pixels), *shape[1:]).numpy()
    tokens.flush()
    draft.replace(path)
    return np.load(path, mmap_mode="r")
