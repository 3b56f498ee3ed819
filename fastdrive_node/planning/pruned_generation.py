"""Any pruner on its way to answers: the context that it needs, the prefill behind it, the answers of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastdrive_node.families.qwen2_5_vl.language import KvCache, LanguageModel
from fastdrive_node.families.qwen2_5_vl.prompt import Prompt
from fastdrive_node.families.vla import Vla
from fastdrive_node.planning.decode import Answer, decode
from fastdrive_node.planning.prefill import PrunedPrompt, prefill, prune_prompt
from fastdrive_node.pruning.layer_pruning import LayerPruner, prefill_by_layers, text_attention
from fastdrive_node.pruning.pruner import Need, Pruner, PruningContext, choose
from fastdrive_node.pruning.temporal import Moment, TemporalState


@torch.inference_mode()
def build_context(
    pruner: Pruner | LayerPruner,
    language: LanguageModel,
    tokens: torch.Tensor,
    grid: tuple[int, int],
    prompt: Prompt,
    tower_attention: torch.Tensor | None = None,
    coverage: torch.Tensor | None = None,
    moment: Moment | None = None,
    state: TemporalState | None = None,
) -> PruningContext:
    """What a pruner needs of one sample, and nothing that it does not.

    Args:
        tokens: [C, N, D], from the vision backend.
        tower_attention: [C, N], from ``TorchVision.encode_with_attention``.
        coverage: [C, N], the foreground share of each token's cell.
        moment, state: of the set, and what the set before left.

    Raises:
        ModelError: the attention, the coverage or the moment is needed and not given.
    """
    needs = pruner.needs
    context = PruningContext(
        tokens,
        grid,
        text=language.embed(text_behind(prompt).to(tokens.device)) if Need.TEXT in needs else None,
        tower_attention=tower_attention if Need.TOWER_ATTENTION in needs else None,
        text_attention=text_attention(language, prompt, tokens) if Need.TEXT_ATTENTION in needs else None,
        coverage=coverage if Need.COVERAGE in needs else None,
        moment=moment if Need.MOMENT in needs else None,
        state=state if Need.MOMENT in needs else None,
    )
    for need in needs:
        context.require(need)
    return context


def text_behind(prompt: Prompt) -> torch.Tensor:
    """Token ids int64 [T] of the prompt behind its images: under a causal mask only these see every visual token."""
    return prompt.input_ids[int(prompt.visual[-1]) + 1 :]


@dataclass(frozen=True)
class Prefilled:
    """Prompts of equal length behind a pruned prefill, ready for ``decode``."""

    prompts: list[PrunedPrompt]
    logits: torch.Tensor  # [B, vocabulary], of the last position
    cache: KvCache
    kept: list[
        torch.Tensor
    ]  # of each prompt, int64 [K]: the visual tokens that the last layer sees, indices into C * N
    tokens: tuple[int, ...]  # visual tokens by layer


@torch.inference_mode()
def prefill_pruned(
    pruner: Pruner | LayerPruner,
    language: LanguageModel,
    contexts: Sequence[PruningContext],
    prompts: Sequence[Prompt],
    keep: int,
    room: int,
) -> Prefilled:
    """Choose tokens and run prompts of equal length through the language model, wherever the pruner acts.

    Args:
        keep: visual tokens that the last layer sees.
        room: positions that the cache leaves for the answer.

    Raises:
        ModelError: the context or the model lacks what the pruner needs.
        ValueError: ``keep`` is out of range, or scores are not finite.
    """
    tokens = [context.tokens.flatten(0, 1) for context in contexts]
    if isinstance(pruner, LayerPruner):
        whole = [prune_prompt(prompt, None) for prompt in prompts]
        done = prefill_by_layers(language, whole, tokens, pruner, keep, room)
        return Prefilled(whole, done.logits, done.cache, done.kept, done.tokens)
    kept = [choose(pruner, context, keep) for context in contexts]
    pruned = [prune_prompt(prompt, indices) for prompt, indices in zip(prompts, kept, strict=True)]
    seen = [visual[indices.to(visual.device)] for visual, indices in zip(tokens, kept, strict=True)]
    logits, cache = prefill(language, pruned, seen, room)
    return Prefilled(pruned, logits, cache, kept, (len(kept[0]),) * language.layers)


@torch.inference_mode()
def answer_pruned(
    pruner: Pruner | LayerPruner,
    language: LanguageModel,
    vla: Vla,
    contexts: Sequence[PruningContext],
    prompts: Sequence[Prompt],
    keep: int,
) -> list[tuple[Answer, torch.Tensor]]:
    """Each sample's answer and kept tokens, prompts of equal length as one batch; arguments as ``prefill_pruned``."""
    answers: dict[int, tuple[Answer, torch.Tensor]] = {}
    for length in dict.fromkeys(map(len, prompts)):
        rows = [row for row, prompt in enumerate(prompts) if len(prompt) == length]
        group = [contexts[row] for row in rows], [prompts[row] for row in rows]
        done = prefill_pruned(pruner, language, *group, keep, vla.spec.answer.max_new_tokens)
        texts = decode(language, vla, done.prompts, done.logits, done.cache)
        answers.update(zip(rows, zip(texts, done.kept, strict=True), strict=True))
    return [answers[row] for row in range(len(prompts))]
