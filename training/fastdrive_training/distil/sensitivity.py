"""How much a VLA's plan depends on each visual token: a diagonal Fisher score of the answer.

The unpruned VLA reads the true answer. At each of its positions a token is drawn from the model's own distribution; the
gradient of their log likelihood, times the visual token, says to first order how much the plan would change without it.
No label is needed, and a token that two cameras both show counts for as little as it should.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fastdrive_node.errors import ModelError
from fastdrive_node.families import Vla, build_prompt
from fastdrive_node.families.spec import text_answer
from fastdrive_node.planning.answer_format import format_answer
from fastdrive_training.data.adapters.base import Item

SMALLEST_GATE = 1e-12  # its logarithm is finite; a token of this weight changes nothing that float32 shows


@dataclass(frozen=True)
class TeacherPrompt:
    """A keyframe's prompt with the true answer, or the VLA's own, but for the last token."""

    ids: Tensor  # int64 [L]
    positions: Tensor  # int64 [axes, L]
    visual: Tensor  # int64 [N]
    answer: int  # tokens of the whole answer; the last ``answer`` positions predict them

    @property
    def form(self) -> tuple[int, int]:
        """What questions that run together have in common."""
        return len(self.ids), self.answer


class Teacher:
    """A frozen VLA that says what its plan depends on.

    Args:
        draws: answers that are sampled for each keyframe.

    Raises:
        ModelError: the VLA reads past images or images of several sizes, or its language model takes visual features in
            later layers too.
    """

    def __init__(self, vla: Vla, draws: int, seed: int):
        vla.require_one_frame("distillation")
        vla.require_one_size("distillation")
        if getattr(vla.config.vision_config, "deepstack_visual_indexes", None):
            raise ModelError(f"{vla.path}: distillation: visual features of later layers are not supported")
        self.vla, self._draws, self._seed = vla, draws, seed
        self._answer = text_answer(vla.spec, vla.path)
        vla.model.requires_grad_(False)

    def prompt(self, item: Item, written: Sequence[int] = ()) -> TeacherPrompt:
        """Of an item with a history and a future. Raises InputError, EgoStateError.

        Args:
            written: ids of an answer of the VLA; the true answer where there are none.
        """
        tokens = list(written) or self._true_answer(item)
        prompt = build_prompt(self.vla, item.known_history, item.command, suffix=tokens[:-1])
        return TeacherPrompt(prompt.input_ids, prompt.position_ids, prompt.visual, len(tokens))

    def _true_answer(self, item: Item) -> list[int]:
        vla, answer = self.vla, self._answer
        future = item.known_future(answer.points, answer.interval_s)
        return vla.encode_text(format_answer(future, answer, vla.spec.frame, vla.spec.origin_m))

    def sensitivity(self, tokens: Tensor, items: Sequence[Item], numbers: Sequence[int]) -> Tensor:
        """Of each visual token, float32 [B, N] on the CPU, of tokens [B, N, D]; root mean square over the draws.

        Args:
            numbers: of the items, for their own random draws: a value does not depend on what runs together.
        """
        questions = [self.prompt(item) for item in items]
        found = torch.empty(tokens.shape[:2])
        for rows in passes(questions, len(questions)):
            asked = [questions[row] for row in rows]
            found[rows] = self._run(tokens[rows], asked, [numbers[row] for row in rows])
        return found

    def _run(self, tokens: Tensor, questions: Sequence[TeacherPrompt], numbers: Sequence[int]) -> Tensor:
        device = self.vla.device
        leaf = tokens.to(device, self.vla.dtype).requires_grad_(True)
        logits = answer_logits(self.vla, leaf, questions)
        squares = torch.zeros(tokens.shape[:2], device=device)
        for draw in range(self._draws):
            pairs = zip(logits.detach(), numbers, strict=True)
            labels = torch.stack([self._sample(row, number, draw) for row, number in pairs])
            loss = cross_entropy(logits.flatten(0, 1), labels.flatten().to(device), reduction="sum")
            (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=draw < self._draws - 1)
            squares += (gradient.float() * leaf.detach().float()).sum(-1) ** 2
        return (squares / self._draws).sqrt().cpu()

    def _sample(self, logits: Tensor, number: int, draw: int) -> Tensor:
        """int64 [A] drawn from logits [A, vocabulary]; on the CPU, where every machine draws alike."""
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + number) * 64 + draw)
        return torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator)[:, 0]


def passes(questions: Sequence[TeacherPrompt], at_once: int) -> list[list[int]]:
    """The questions' numbers, split into passes through a VLA: of one form, and ``at_once`` at most."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, question in enumerate(questions):
        groups[question.form].append(row)
    return [rows[start : start + at_once] for rows in groups.values() for start in range(0, len(rows), at_once)]


def answer_logits(vla: Vla, tokens: Tensor, questions: Sequence[TeacherPrompt], gates: Tensor | None = None) -> Tensor:
    """What a VLA predicts at each position of the answer: logits float32 [B, A, vocabulary]. See answer_states."""
    return vla.model.lm_head(answer_states(vla, tokens, questions, gates)).float()


def answer_states(vla: Vla, tokens: Tensor, questions: Sequence[TeacherPrompt], gates: Tensor | None = None) -> Tensor:
    """What the head of a VLA reads at each position of the answer, [B, A, D] in the VLA's dtype.

    Args:
        tokens: [B, N, D] on the VLA's device, in raster order, of keyframes whose prompts have one form.
        gates: [B, N] from 0 to 1, the weight of each visual token in every attention; None: all 1.
    """
    model, device = vla.model, vla.device
    ids = torch.stack([question.ids for question in questions]).to(device)
    visual = torch.stack([question.visual for question in questions]).to(device)
    embeds = model.get_input_embeddings()(ids)
    embeds = embeds.scatter(1, visual[..., None].expand(-1, -1, embeds.shape[-1]), tokens.to(embeds.dtype))
    positions = torch.stack([question.positions for question in questions], 1).to(device)
    mask = None
    if gates is not None:
        weights = torch.zeros(ids.shape, device=device).scatter(1, visual, (gates + SMALLEST_GATE).log())
        future = torch.full((ids.shape[1], ids.shape[1]), -torch.inf, device=device).triu(1)
        mask = (weights[:, None, None] + future).to(embeds.dtype)
    out = model.model.language_model(
        inputs_embeds=embeds,
        position_ids=positions if len(positions) > 1 else positions[0],
        attention_mask=mask,
        use_cache=False,
    )
    return out.last_hidden_state[:, -questions[0].answer :]
