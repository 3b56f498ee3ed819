"""From visual tokens and a prompt to an answer: prune, gather, prefill, decode. Written once for all callers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.families import (
    EmbeddingLanguageModel,
    ExtendingLanguageModel,
    HeadedLanguageModel,
    LanguageModel,
    LayeredLanguageModel,
    Prompt,
    VisualTokens,
    Vla,
    build_prompt,
    constant_head,
)
from fastdrive_node.families.base import PositionInputs
from fastdrive_node.planning.answer_format import AnswerFormat, answer_format
from fastdrive_node.planning.drafts import Drafter
from fastdrive_node.pruning.layer_pruning import text_attention
from fastdrive_node.pruning.pruner import (
    LEAST_HEAD,
    ContextField,
    Prefilled,
    PromptHead,
    Pruner,
    PruningContext,
    Selection,
    Timer,
    answer_positions,
    batch_inputs,
    no_timer,
)
from fastdrive_node.pruning.select import CameraFloors
from fastdrive_node.pruning.temporal import FrameContext, TemporalState
from fastdrive_node.types import Command, Draft, EgoHistory

Progress = Callable[[str], object]  # told what is being done
_TELL_EVERY = 20  # answer tokens


@dataclass(frozen=True)
class Answer:
    """What the language model wrote."""

    text: str  # without the EOS token
    ids: tuple[int, ...]  # every generated token, the stopping one included, ``AnswerFormat.prefix_ids`` not
    forwards: int = 0  # of the language model behind the prefill


@dataclass(frozen=True)
class Generated:
    """An answer and the visual tokens that the last layer saw for it."""

    answer: Answer
    kept: torch.Tensor  # int64 [K], ascending raster indices


class Generator:
    """Runs the language model of one VLA behind any pruner.

    Args:
        language: what runs the language model; None for torch on the VLA's device.
        answer: how answers end and what they mean; None for the VLA's own.
        keep_head: run the constant head of the VLA's prompts once and keep its keys and values, where the language
            model is a ``HeadedLanguageModel`` that is worth it. For weights that do not change.

    Raises:
        ModelError: the tokenizer cannot write the VLA's answers, or torch cannot run its language model.
    """

    def __init__(
        self,
        vla: Vla,
        language: LanguageModel | None = None,
        answer: AnswerFormat | None = None,
        keep_head: bool = False,
    ):
        self.vla, self.keep_head = vla, keep_head
        self.language: Any = language or vla.torch_language()
        self.answer = answer or answer_format(vla)
        self.progress: Progress | None = None  # told the number of tokens of a long answer

    def check_pruner(self, pruner: Pruner) -> None:
        """Raises ModelError where the language model cannot serve a pruner."""
        layers = pruner.acts_inside or ContextField.TEXT_ATTENTION in pruner.needs
        if layers and not isinstance(self.language, LayeredLanguageModel):
            lacks = "layers"
        elif ContextField.TEXT in pruner.needs and not isinstance(self.language, EmbeddingLanguageModel):
            lacks = "embeddings"
        else:
            return
        by_torch = isinstance(self.language, EmbeddingLanguageModel)
        who = f"torch does not give for {self.vla.family.model_type}" if by_torch else "an engine does not give"
        instead = "use another pruner" if by_torch else "run the language model with torch, or use another pruner"
        raise ModelError(f"pruner {pruner.name}: reads the language model's {lacks}, which {who}; {instead}")

    def prompt(
        self, history: EgoHistory, command: Command = Command.NONE, present: Sequence[int] | None = None
    ) -> Prompt:
        """The prompt with the answer's constant beginning, where the VLA is given it; see ``families.build_prompt``."""
        return build_prompt(self.vla, history, command, self.answer.prefix_ids, present)

    @torch.inference_mode()
    def context(
        self,
        pruner: Pruner,
        visual: VisualTokens,
        prompt: Prompt,
        coverage: torch.Tensor | None = None,
        frame: FrameContext | None = None,
        state: TemporalState | None = None,
        floors: CameraFloors | None = None,
    ) -> PruningContext:
        """What a pruner needs of one sample, and nothing that it does not.

        Args:
            coverage: [C, N], the foreground fraction of each token's cell.
            frame, state: of the frame set, and what the set before left.
            floors: tokens of each camera that are kept in any case.

        Raises:
            ModelError: the pruner reads something that is not given.
        """
        needs = pruner.needs
        self.check_pruner(pruner)
        text = attention = None
        if ContextField.TEXT in needs:
            text = self.language.embed(prompt.text_after_images.to(visual.rows.device))
        if ContextField.TEXT_ATTENTION in needs:
            attention = text_attention(self.language, prompt, visual)
        context = PruningContext(
            visual,
            text=text,
            tower_attention=visual.attention if ContextField.TOWER_ATTENTION in needs else None,
            text_attention=attention,
            coverage=coverage if ContextField.COVERAGE in needs else None,
            frame=frame if ContextField.FRAME in needs else None,
            state=state if pruner.remembers else None,
            floors=floors if pruner.keeps_floors else None,
        )
        for field in needs:
            context.require(field)
        return context

    @torch.inference_mode()
    def prefill(
        self,
        pruner: Pruner,
        prompts: Sequence[Prompt],
        visual: Sequence[VisualTokens],
        chosen: Sequence[torch.Tensor],
        keep: int,
        draft: Sequence[float] | None = None,
    ) -> Prefilled:
        """Run prompts of equal pruned length. Arguments and errors as ``Pruner.prefill``.

        Args:
            draft: see ``generate``; what is given to ``decode`` too.
        """
        drafter = self._drafter(len(prompts), draft)
        first = drafter.write((), draft) if drafter is not None and draft is not None else None
        head = self.head if len(prompts) == 1 and not pruner.acts_inside else None
        return pruner.prefill(self.language, prompts, visual, chosen, keep, self.answer.max_new_tokens, first, head)

    @cached_property
    def head(self) -> PromptHead | None:
        """What is kept of the constant head of the VLA's prompts; None where it is short, or is run each time."""
        able = isinstance(self.language, HeadedLanguageModel) and self.language.takes_head
        if not self.keep_head or not able:
            return None
        prompt = constant_head(self.vla)
        if len(prompt) < LEAST_HEAD:
            return None
        nothing = VisualTokens(torch.zeros(0, self.vla.width, device=self.vla.device), torch.arange(0), (1, 1, 0))
        with torch.inference_mode():
            logits, cache = self.language.prefill(*batch_inputs(self.language, [prompt], [nothing]), 0)
        self._likeliest(logits[:, -1], 0)  # of logits that are not finite nothing is kept: it raises
        return PromptHead(prompt, cache)

    def _drafter(self, prompts: int, draft: Sequence[float] | None) -> Drafter | None:
        """What drafts, where there is a draft and the language model can use it."""
        able = isinstance(self.language, ExtendingLanguageModel) and prompts == 1 and draft is not None
        return self.answer.drafter if able else None

    @torch.inference_mode()
    def decode(self, prefilled: Prefilled, draft: Sequence[float] | None = None) -> list[Answer]:
        """Take the likeliest token again and again, until each answer has stopped or has ``max_new_tokens``.

        Args:
            draft: see ``generate``.

        Raises:
            ModelError: the logits are not finite.
        """
        drafter = self._drafter(len(prefilled.prompts), draft)
        if drafter is not None and draft is not None:
            return [self.decode_drafted(prefilled, drafter, draft)]
        logits, limit = prefilled.logits, self.answer.max_new_tokens
        prefilled.cache.used = len(prefilled.prompts[0])
        positions = self._answer_positions(prefilled)
        ids: list[list[int]] = [[] for _ in prefilled.prompts]
        unfinished = set(range(len(ids)))
        for step in range(limit):
            tokens = self._likeliest(logits, step)
            for row, token in enumerate(tokens):
                if row in unfinished:
                    ids[row].append(token)
                    if token in self.answer.stop_ids:
                        unfinished.discard(row)
            if not unfinished or step == limit - 1:
                break
            if self.progress is not None and step % _TELL_EVERY == _TELL_EVERY - 1:
                self.progress(f"decode: {step + 1} tokens")
            now = tuple(part[:, step : step + 1] for part in positions)
            logits = self.language.decode_step(torch.tensor(tokens, device=logits.device), now, prefilled.cache)
        return [Answer(self.answer.text(row), tuple(row), len(row) - 1) for row in ids]

    @torch.inference_mode()
    def decode_drafted(self, prefilled: Prefilled, drafter: Drafter, numbers: Sequence[float]) -> Answer:
        """Decode one prompt's answer as ``decode`` does, several tokens in a forward where a draft is right.

        Args:
            numbers: that the answer may state, in its order.

        Raises:
            ModelError: the logits are not finite.
        """
        cache, limit, stops = prefilled.cache, self.answer.max_new_tokens, self.answer.stop_ids
        start = len(prefilled.prompts[0])
        positions = self._answer_positions(prefilled)
        ids: list[int] = []
        draft, logits, forwards = prefilled.draft or Draft((), ()), prefilled.logits, 0
        if prefilled.draft_logits is not None:
            logits = torch.cat([logits, prefilled.draft_logits[0]])
        while True:  # logits are of each token of the draft behind those that are known, and of one more
            known, predicted = len(ids), self._likeliest(logits, len(ids))
            drafted = draft.ids[known : known + len(predicted) - 1]
            right = next((n for n, (a, b) in enumerate(zip(drafted, predicted, strict=False)) if a != b), len(drafted))
            ids += predicted[: right + 1]
            stop = next((place for place in range(known, len(ids)) if ids[place] in stops), limit - 1)
            ids = ids[: stop + 1]
            if ids[-1] in stops or len(ids) >= limit:
                return Answer(self.answer.text(ids), tuple(ids), forwards)
            if self.progress is not None:
                self.progress(f"decode: {len(ids)} tokens")
            numbers = drafter.read(draft, [*draft.ids[:known], *predicted], numbers)
            draft = drafter.write(ids, numbers)
            first = len(ids) - 1
            run = draft.ids[first:limit]
            cache.used = start + first
            now = tuple(part[:, first : first + len(run)] for part in positions)
            logits = self.language.extend(torch.tensor([run], device=logits.device), now, cache)[0]
            forwards += 1

    def _likeliest(self, logits: torch.Tensor, place: int) -> list[int]:
        """The likeliest token of each row, the first being token ``place`` of an answer."""
        largest, tokens = _maxima(logits)
        finite = np.isfinite(largest)  # of logits with a NaN the largest is NaN
        if not finite.all():
            place += int(finite.argmin())
            raise ModelError(
                f"language model: logits that are not finite at answer token {place + 1} ({logits.dtype}); use "
                "another dtype, or check the weights"
            )
        return tokens.tolist()

    def _answer_positions(self, prefilled: Prefilled) -> PositionInputs:
        """Of all the tokens that an answer may have, each [B, max_new_tokens, ...]."""
        positions = answer_positions(prefilled.prompts, self.answer.max_new_tokens)
        return self.language.position_inputs(positions.to(prefilled.logits.device))

    @torch.inference_mode()
    def forced_logits(self, prefilled: Prefilled, ids: Sequence[int]) -> torch.Tensor:
        """The logits that each id of a given answer to one prompt is chosen from.

        Returns:
            float32 [len(ids), vocabulary].
        """
        prompt, logits = prefilled.prompts[0], prefilled.logits
        prefilled.cache.used = len(prompt)
        positions = self.language.position_inputs(answer_positions([prompt], len(ids)).to(logits.device))
        rows = [logits]
        for step, token in enumerate(ids[:-1]):
            now = tuple(part[:, step : step + 1] for part in positions)
            rows.append(self.language.decode_step(torch.tensor([token], device=logits.device), now, prefilled.cache))
        return torch.cat(rows).float()

    @torch.inference_mode()
    def generate(
        self,
        pruner: Pruner,
        contexts: Sequence[PruningContext],
        prompts: Sequence[Prompt],
        keep: int,
        selections: Sequence[Selection] | None = None,
        timer: Timer = no_timer,
        draft: Sequence[float] | None = None,
    ) -> list[Generated]:
        """Each sample's answer; prompts of equal pruned length run as one batch.

        Args:
            keep: visual tokens that the last layer sees.
            selections: what was chosen of each sample already; None: ``pruner`` chooses.
            timer: of the stages ``score``, ``select``, ``prefill`` and ``decode``.
            draft: numbers that the answer of the only sample may state, where the language model can use them; the
                answer is the same without.

        Raises:
            ModelError: the context or the model lacks what the pruner reads, or its scores are not usable.
        """
        try:
            if selections is None:
                selections = [pruner.choose(context, keep, timer) for context in contexts]
            chosen = [selection.indices for selection in selections]
            done: dict[int, Generated] = {}
            lengths = [
                len(prompt) - len(prompt.visual) + len(kept) for prompt, kept in zip(prompts, chosen, strict=True)
            ]
            for length in dict.fromkeys(lengths):
                rows = [row for row, each in enumerate(lengths) if each == length]
                visual = [contexts[row].visual for row in rows]
                kept = [chosen[row] for row in rows]
                with timer("prefill"):
                    prefilled = self.prefill(pruner, [prompts[row] for row in rows], visual, kept, keep, draft)
                with timer("decode"):
                    answers = self.decode(prefilled, draft)
                done.update(zip(rows, map(Generated, answers, prefilled.kept), strict=True))
        except ValueError as error:
            raise ModelError(f"pruner {pruner.name}: {error}") from error
        return [done[row] for row in range(len(prompts))]


def _maxima(logits: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The largest of each row and where it is, the first of equal ones."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        values = logits.numpy()
        tokens = values.argmax(axis=-1)  # a tenth of the time of torch's
        return values[np.arange(len(tokens)), tokens], tokens
    largest, tokens = logits.max(dim=-1)
    both = torch.stack([largest.double(), tokens.double()]).cpu().numpy()  # one wait for a GPU
    return both[0], both[1].astype(np.int64)
