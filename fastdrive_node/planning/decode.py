"""Greedy decoding of answers behind a pruned prefill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastdrive_node.families.language_backend import Cache, LanguageBackend
from fastdrive_node.families.qwen2_5_vl.prompt import Prompt
from fastdrive_node.families.vla import Vla
from fastdrive_node.planning.prefill import PrunedPrompt, prefill, prune_prompt


@dataclass(frozen=True)
class Answer:
    """What the language model wrote."""

    text: str  # without the EOS token
    ids: tuple[int, ...]  # every generated token, the stopping one included


@torch.inference_mode()
def decode(
    language: LanguageBackend,
    vla: Vla,
    prompts: Sequence[PrunedPrompt],
    logits: torch.Tensor,
    cache: Cache,
) -> list[Answer]:
    """Take the likeliest token again and again, until each answer has stopped or has ``max_new_tokens``.

    An answer stops with an EOS token, or with its closing tag where that is one token.

    Args:
        logits: [B, vocabulary] of the prompts' last position, from ``prefill``.
        cache: the prompts' keys and values, with room for the answers.
    """
    limit = vla.spec.answer.max_new_tokens
    starts = torch.tensor([prompt.next_position for prompt in prompts])
    positions = (starts[:, None] + torch.arange(limit)).expand(3, -1, -1)
    cos, sin = language.rotary(positions.to(logits.device))
    ids: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    for step in range(limit):
        tokens = logits.argmax(dim=-1)
        for row, token in enumerate(tokens.tolist()):
            if row in open_rows:
                ids[row].append(token)
                if token in vla.stop_ids:
                    open_rows.discard(row)
        if not open_rows or step == limit - 1:
            break
        logits = language.step(tokens, cos[:, step : step + 1], sin[:, step : step + 1], cache)
    return [_answer(vla, row) for row in ids]


def _answer(vla: Vla, ids: list[int]) -> Answer:
    text_ids = ids[:-1] if ids and ids[-1] in vla.eos_ids else ids
    return Answer(vla.tokenizer.decode(text_ids), tuple(ids))


def generate(
    language: LanguageBackend, vla: Vla, tokens: torch.Tensor, kept: torch.Tensor | None, prompt: Prompt
) -> Answer:
    """The answer to one prompt.

    Args:
        tokens: visual tokens [C, rows * columns, D] (or [N, D]) of all cameras, from the vision backend.
        kept: int64 [K], ascending indices of those that the language model sees; None for all.
    """
    return generate_batch(language, vla, [tokens], [kept], [prompt])[0]


@torch.inference_mode()
def generate_batch(
    language: LanguageBackend,
    vla: Vla,
    tokens: Sequence[torch.Tensor],
    kept: Sequence[torch.Tensor | None],
    prompts: Sequence[Prompt],
) -> list[Answer]:
    """Answers to several prompts, those of equal pruned length as one batch; the arguments are as in ``generate``."""
    pruned = [prune_prompt(prompt, keep) for prompt, keep in zip(prompts, kept, strict=True)]
    seen = [_kept_tokens(visual, keep) for visual, keep in zip(tokens, kept, strict=True)]
    answers: dict[int, Answer] = {}
    for length in dict.fromkeys(map(len, pruned)):
        rows = [row for row, prompt in enumerate(pruned) if len(prompt) == length]
        group = [pruned[row] for row in rows]
        logits, cache = prefill(language, group, [seen[row] for row in rows], vla.spec.answer.max_new_tokens)
        answers.update(zip(rows, decode(language, vla, group, logits, cache), strict=True))
    return [answers[row] for row in range(len(pruned))]


def _kept_tokens(tokens: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    flat = tokens.reshape(-1, tokens.shape[-1])
    return flat if kept is None else flat[kept.to(flat.device)]
