"""The two sides of the comparison: this package's stages, and plain transformers, on the same weights and inputs.

Both start from the same patches (one preprocessing serves both) and the same token ids, decode greedily and look at
each token on the CPU, as one must to see the end of an answer. ``Transformers`` is the model as a user calls it:
``get_image_features``, ``forward`` with its own cache, and ``generate`` from images to ids. Its prefill and decode
are bare calls of ``forward``, which is less work than the same steps inside of ``generate``; its prefill computes
M-RoPE ids, as it does on each request, while this package keeps them from one request of a form to the next.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fastdrive_node.families.qwen2_5_vl.language import KvCache, LanguageModel
from fastdrive_node.families.qwen2_5_vl.prompt import Prompt
from fastdrive_node.families.vision_backend import VisionBackend
from fastdrive_node.families.vla import Vla
from fastdrive_node.planning.decode import decode
from fastdrive_node.planning.prefill import PrunedPrompt, prefill, prune_prompt
from fastdrive_node.pruning.baselines import NoPruner
from fastdrive_node.pruning.pruner import Pruner, PruningContext, choose
from fastdrive_node.pruning.select import keep_count


class FixedLength(Vla):
    """A VLA whose answers end at ``max_new_tokens`` and nowhere before, so that both sides write as much."""

    stop_ids = frozenset()
    eos_ids = frozenset()


def fixed_length(vla: Vla, answer_tokens: int) -> FixedLength:
    """The same VLA, with answers of ``answer_tokens`` tokens."""
    answer = replace(vla.spec.answer, max_new_tokens=answer_tokens)
    return FixedLength(vla.path, vla.model, vla.tokenizer, replace(vla.spec, answer=answer), vla.template)


@dataclass(frozen=True)
class Workload:
    """What both sides are given."""

    vla: Vla
    vision: VisionBackend
    patches: torch.Tensor  # [C, patches, patch values], on the VLA's device
    prompt: Prompt


@dataclass(frozen=True)
class Prefilled:
    """A prompt behind this package's prefill."""

    prompt: PrunedPrompt
    logits: torch.Tensor  # [1, vocabulary]
    cache: KvCache


class Ours:
    """This package's stages, as ``Pipeline.plan`` calls them, with answers of a fixed length."""

    def __init__(self, work: Workload, answer_tokens: int, pruner: Pruner | None = None, drop: float = 0.0):
        self.work = work
        self.vla = fixed_length(work.vla, answer_tokens)
        self.language = LanguageModel(self.vla)
        self.pruner = pruner or NoPruner()
        self.keep = keep_count(self.vla.tokens, drop)

    def encode(self) -> torch.Tensor:
        """Tokens [C, rows * columns, D]."""
        return self.work.vision.encode_patches(self.work.patches)

    def prune(self, tokens: torch.Tensor) -> torch.Tensor:
        """Ascending indices of the kept tokens, int64 [K]."""
        return choose(self.pruner, PruningContext(tokens, self.vla.grid), self.keep)

    def prefill(self, tokens: torch.Tensor, kept: torch.Tensor) -> Prefilled:
        prompt = prune_prompt(self.work.prompt, kept)
        seen = tokens.flatten(0, 1)[kept.to(tokens.device)]
        return Prefilled(prompt, *prefill(self.language, [prompt], [seen], self.vla.spec.answer.max_new_tokens))

    def decode(self, state: Prefilled) -> tuple[int, ...]:
        """Greedy ids of the whole answer; ``state`` may be used again."""
        state.cache.used = len(state.prompt)
        return decode(self.language, self.vla, [state.prompt], state.logits, state.cache)[0].ids

    def end_to_end(self) -> tuple[int, ...]:
        """Patches to ids."""
        tokens = self.encode()
        return self.decode(self.prefill(tokens, self.prune(tokens)))

    def forced_logits(self, state: Prefilled, ids: tuple[int, ...]) -> torch.Tensor:
        """float32 [len(ids), vocabulary]: the logits that each id of a given answer is chosen from."""
        state.cache.used = len(state.prompt)
        positions = (state.prompt.next_position + torch.arange(len(ids))).expand(3, 1, -1)
        cos, sin = self.language.rotary(positions.to(state.logits.device))
        rows = [state.logits]
        for step, token in enumerate(ids[:-1]):
            embedding = self.language.embed(torch.tensor([[token]], device=state.logits.device))
            now = slice(step, step + 1)
            rows.append(self.language.forward(embedding, cos[:, now], sin[:, now], state.cache))
        return torch.cat(rows).float()


class Transformers:
    """Plain transformers on the same weights, with answers of a fixed length."""

    def __init__(self, work: Workload, answer_tokens: int):
        self.model, device = work.vla.model, work.vla.device
        self.answer_tokens = answer_tokens
        merge = self.model.config.vision_config.spatial_merge_size
        ids = work.prompt.input_ids[None].to(device)
        self.pixels = work.patches.flatten(0, 1)
        self.inputs = {
            "input_ids": ids,
            "image_grid_thw": torch.tensor(
                [[1, work.vla.grid[0] * merge, work.vla.grid[1] * merge]] * len(work.patches), device=device
            ),
            "mm_token_type_ids": (ids == self.model.config.image_token_id).int(),
        }

    def encode(self) -> torch.Tensor:
        """Tokens [C * rows * columns, D]."""
        features = self.model.model.get_image_features(self.pixels, self.inputs["image_grid_thw"])
        return torch.cat(features.pooler_output)

    def prefill(self, tokens: torch.Tensor):
        """transformers' output, with the logits of the last position and the filled cache."""
        ids = self.inputs["input_ids"]
        embeds = self.model.get_input_embeddings()(ids)
        places, _ = self.model.model.get_placeholder_mask(ids, inputs_embeds=embeds, image_features=tokens)
        embeds = embeds.masked_scatter(places, tokens.to(embeds.dtype))
        return self.model(**self.inputs, inputs_embeds=embeds, use_cache=True, logits_to_keep=1)

    def decode(self, state) -> tuple[int, ...]:
        """Greedy ids of the whole answer; ``state`` may be used again."""
        cache, logits, ids = state.past_key_values, state.logits[:, -1], []
        self._rewind(cache)
        for step in range(self.answer_tokens):
            token = logits.argmax(dim=-1)
            ids += token.tolist()
            if step < self.answer_tokens - 1:
                logits = self._step(token[:, None], cache)
        return tuple(ids)

    def end_to_end(self) -> tuple[int, ...]:
        """Patches to ids, by ``generate``."""
        beyond = self.model.config.text_config.vocab_size  # no token has this id: nothing ends the answer early
        return self.generate([beyond])

    def generate(self, stop_ids: list[int]) -> tuple[int, ...]:
        """Greedy ids by transformers' ``generate``, up to one of ``stop_ids`` or the fixed length."""
        ids = self.inputs["input_ids"]
        out = self.model.generate(
            **self.inputs,
            attention_mask=torch.ones_like(ids),
            pixel_values=self.pixels,
            max_new_tokens=self.answer_tokens,
            do_sample=False,
            eos_token_id=stop_ids,
            pad_token_id=0,
        )
        return tuple(out[0, ids.shape[1] :].tolist())

    def forced_logits(self, state, ids: tuple[int, ...]) -> torch.Tensor:
        """float32 [len(ids), vocabulary]: the logits that each id of a given answer is chosen from."""
        self._rewind(state.past_key_values)
        rows = [state.logits[:, -1]]
        for token in ids[:-1]:
            rows.append(self._step(torch.tensor([[token]], device=self.model.device), state.past_key_values))
        return torch.cat(rows).float()

    def _step(self, token: torch.Tensor, cache) -> torch.Tensor:
        return self.model(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1]

    def _rewind(self, cache) -> None:
        """Back to the prompt."""
        answered = cache.get_seq_length() - self.inputs["input_ids"].shape[1]
        if answered:
            cache.crop(-answered)
