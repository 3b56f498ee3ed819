"""The two implementations of the comparison: this package, and plain transformers, on the same weights and inputs.

Both start from the same patches (one preprocessing serves both) and the same token ids, decode greedily and look at
each token on the CPU, as one must to see the end of an answer. ``HfGenerate`` is the model as a user calls it:
``get_image_features``, ``forward`` with its own cache, and ``generate`` from images to ids. Its prefill and decode
are bare calls of ``forward``, which is less work than the same steps inside of ``generate``; its prefill computes
M-RoPE ids, as it does on each request, while this package keeps them from one request of a form to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fastdrive_node.benchmark.workload import Workload
from fastdrive_node.families import ExtendingLanguageModel, LanguageModel, VisualTokens
from fastdrive_node.planning.drafts import Drafter
from fastdrive_node.planning.generator import Generator
from fastdrive_node.pruning.baselines.simple import NoPruner
from fastdrive_node.pruning.pruner import Prefilled, Pruner, PruningContext
from fastdrive_node.pruning.select import keep_count
from fastdrive_node.types import Draft, Trajectory


@dataclass(frozen=True)
class FixedLength:
    """An ``AnswerFormat`` whose answers end at ``max_new_tokens`` and nowhere before, so that all write as much."""

    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()
    drafter: Drafter | None = None

    def numbers(self, waypoints_m: np.ndarray) -> list[float]:
        return []

    def text(self, ids: Sequence[int]) -> str:
        return ""

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        return ()

    def parse(self, ids: Sequence[int]) -> Trajectory:
        raise ValueError("an answer of fixed length is no trajectory")


class ForcedDrafter:
    """A ``Drafter`` that knows what the format forces and no number: what forced tokens alone are worth.

    In place of a number's tokens its drafts have one that no answer has, so the model writes each of them in a forward
    of its own. A number that has begun is finished as the drafter of the format does.

    Args:
        drafter: of the format.
        other: an id that no answer has.
    """

    def __init__(self, drafter: Drafter, other: int):
        self._drafter, self._other = drafter, other

    def write(self, known: Sequence[int], numbers: Sequence[float]) -> Draft:
        """See ``Drafter``."""
        draft = self._drafter.write(known, numbers)
        ids = list(draft.ids)
        for _, first, last in draft.spans:
            ids[first:last] = [self._other] * (last - first)
        return Draft(tuple(ids), draft.spans)

    def read(self, draft: Draft, predicted: Sequence[int], numbers: Sequence[float]) -> list[float]:
        """See ``Drafter``; the model's numbers are not taken."""
        return list(numbers)


class FastDrive:
    """This package's stages, as ``Pipeline.plan`` calls them, with answers of a fixed length."""

    def __init__(
        self,
        work: Workload,
        answer_tokens: int,
        pruner: Pruner | None = None,
        drop: float = 0.0,
        language: LanguageModel | None = None,
        drafter: Drafter | None = None,
        keep_head: bool = False,
    ):
        self.work, self.vla = work, work.vla
        self.generator = Generator(work.vla, language, FixedLength(answer_tokens, drafter=drafter), keep_head)
        self.pruner = pruner or NoPruner()
        self.keep = keep_count(len(work.prompt.visual), drop)
        self.forwards = answer_tokens - 1  # of the last answer, behind its prefill

    @property
    def threads(self) -> int | None:
        """Of torch, while it runs; None: as they are."""
        return self.work.threads

    @property
    def _numbers(self) -> Sequence[float] | None:
        """What an answer may state; None: the answer is decoded token by token."""
        return None if self.generator.answer.drafter is None else self.work.numbers

    @property
    def draft_tokens(self) -> int:
        """Of the first draft, which runs with the prompt."""
        answer = self.generator.answer
        if answer.drafter is None or not isinstance(self.generator.language, ExtendingLanguageModel):
            return 0
        return len(answer.drafter.write((), self.work.numbers).ids[: answer.max_new_tokens])

    def encode(self) -> VisualTokens:
        return self._encode(self.work.patches)

    def _encode(self, patches: torch.Tensor) -> VisualTokens:
        return self.work.encode(patches)

    def prune(self, visual: VisualTokens) -> torch.Tensor:
        """Ascending indices of the kept tokens, int64 [K]."""
        return self.pruner.choose(PruningContext(visual), self.keep).indices

    def prefill(self, visual: VisualTokens, kept: torch.Tensor) -> Prefilled:
        """The pruned prompt, with the draft of its answer where there is a drafter."""
        return self.generator.prefill(self.pruner, [self.work.prompt], [visual], [kept], self.keep, self._numbers)

    def decode(self, state: Prefilled) -> tuple[int, ...]:
        """Greedy ids of the whole answer, by drafts where there is a drafter; ``state`` may be used again."""
        answer = self.generator.decode(state, self._numbers)[0]
        self.forwards = answer.forwards
        return answer.ids

    def end_to_end(self) -> tuple[int, ...]:
        """Patches to ids."""
        return self._from(self.work.patches)

    def camera_to_plan(self) -> tuple[int, ...]:
        """Camera frames to ids."""
        return self._from(self.work.preprocess())

    def _from(self, patches: torch.Tensor) -> tuple[int, ...]:
        visual = self._encode(patches)
        return self.decode(self.prefill(visual, self.prune(visual)))

    def forced_logits(self, state: Prefilled, ids: tuple[int, ...]) -> torch.Tensor:
        """float32 [len(ids), vocabulary]: the logits that each id of a given answer is chosen from."""
        return self.generator.forced_logits(state, ids)


class HfGenerate:
    """Plain transformers on the same weights, with answers of a fixed length."""

    def __init__(self, work: Workload, answer_tokens: int):
        self.work, self.model, device = work, work.vla.model, work.vla.device
        self.answer_tokens, self.forwards = answer_tokens, answer_tokens - 1  # behind the prefill
        merge = self.model.config.vision_config.spatial_merge_size
        ids = work.prompt.input_ids[None].to(device)
        self.pixels = work.patches[work.cameras].flatten(0, 1)
        self.inputs = {
            "input_ids": ids,
            "image_grid_thw": torch.tensor(
                [[1, work.vla.grid[0] * merge, work.vla.grid[1] * merge]] * len(work.cameras), device=device
            ),
            "mm_token_type_ids": (ids == self.model.config.image_token_id).int(),
        }

    @property
    def threads(self) -> int | None:
        """Of torch, while it runs; None: as they are."""
        return self.work.threads

    def encode(self) -> torch.Tensor:
        """Tokens [images * rows * columns, D]; past images are encoded again for each plan."""
        features = self.model.model.get_image_features(self.pixels, self.inputs["image_grid_thw"])
        return torch.cat(features.pooler_output)

    def prefill(self, tokens: torch.Tensor):
        """transformers' output, with the logits of the last position and the filled cache."""
        ids = self.inputs["input_ids"]
        embeds = self.model.get_input_embeddings()(ids)
        positions, _ = self.model.model.get_placeholder_mask(ids, inputs_embeds=embeds, image_features=tokens)
        embeds = embeds.masked_scatter(positions, tokens.to(embeds.dtype))
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

    def camera_to_plan(self) -> tuple[int, ...]:
        """Camera frames to ids, by the preprocessing of the other implementation."""
        pixels = self.work.preprocess()[self.work.cameras].flatten(0, 1)
        return self.generate([self.model.config.text_config.vocab_size], pixels)

    def generate(self, stop_ids: list[int], pixels: torch.Tensor | None = None) -> tuple[int, ...]:
        """Greedy ids by transformers' ``generate``, up to one of ``stop_ids`` or the fixed length."""
        ids = self.inputs["input_ids"]
        out = self.model.generate(
            **self.inputs,
            attention_mask=torch.ones_like(ids),
            pixel_values=self.pixels if pixels is None else pixels,
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
