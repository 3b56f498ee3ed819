"""What every VLA family gives: visual tokens, prompt positions, a language model, the pruner's layer.

Nothing outside of ``families/`` names a family. :func:`fastdrive_node.families.load_vla` finds one by the
``model_type`` in ``config.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from fastdrive_node.errors import ModelError

if TYPE_CHECKING:
    from fastdrive_node.families.vla import Vla

PositionInputs = tuple[torch.Tensor, ...]  # what a language model makes of position ids, each [B, L, ...]
VISION, LANGUAGE = "vision", "language"
PARTS = frozenset({VISION, LANGUAGE})  # the parts of a VLA whose weights may come from an engine


@dataclass(frozen=True)
class VisualTokens:
    """Visual tokens of one frame set, N = cameras * rows * columns in all, of which M are here.

    The raster index counts camera after camera, row after row. The torch backends give M = N in raster order; an engine
    gives the M tokens with the highest scores, best first.
    """

    rows: torch.Tensor  # [M, D]
    indices: torch.Tensor  # int64 [M] on the CPU: the raster index of each row
    grid: tuple[int, int, int]  # cameras, token rows and columns of one image
    scores: torch.Tensor | None = None  # float32 [C, N / C] on the CPU, of every token, where the backend scored them
    attention: torch.Tensor | None = None  # float32 [C, N / C] that each token receives in the vision tower
    layer_features: tuple[torch.Tensor, ...] = ()  # [M, D] each: added to the states behind later language layers

    @classmethod
    def from_raster(
        cls, tokens: torch.Tensor, grid: tuple[int, int], attention: torch.Tensor | None = None
    ) -> VisualTokens:
        """All tokens [C, rows * columns, D] of a set, in raster order."""
        rows = tokens.flatten(0, 1)
        return cls(rows, torch.arange(len(rows)), (len(tokens), *grid), attention=attention)

    @property
    def total(self) -> int:
        """N."""
        cameras, rows, columns = self.grid
        return cameras * rows * columns

    @property
    def complete(self) -> bool:
        """Whether every token is here."""
        return len(self.rows) == self.total

    def raster(self) -> torch.Tensor:
        """Every token, [C, rows * columns, D].

        Raises:
            ModelError: some are not here.
        """
        if not self.complete:
            raise ModelError(
                f"visual tokens: the engine gives {len(self.rows)} of {self.total}; this pruner reads all: build the "
                "engine with a larger --max-keep, or run the vision encoder with torch"
            )
        return self.take(torch.arange(self.total)).view(self.grid[0], -1, self.rows.shape[-1])

    def positions_of(self, kept: torch.Tensor) -> torch.Tensor:
        """Row numbers int64 [K] of the raster indices ``kept``.

        Raises:
            ModelError: one of them is not here.
        """
        row_of = torch.full((self.total,), -1, dtype=torch.int64)
        row_of[self.indices] = torch.arange(len(self.indices))
        rows = row_of[kept.cpu()]
        if bool((rows < 0).any()):
            raise ModelError(f"visual tokens: {int((rows < 0).sum())} of the chosen ones were not given by the engine")
        return rows

    def take(self, kept: torch.Tensor) -> torch.Tensor:
        """The tokens [K, D] of the raster indices ``kept``. Raises as :meth:`positions_of`."""
        if self.complete and len(kept) == self.total and torch.equal(kept.cpu(), self.indices):
            return self.rows
        return self.rows[self.positions_of(kept).to(self.rows.device)]

    def keep(self, kept: torch.Tensor) -> VisualTokens:
        """Only the tokens of the raster indices ``kept``, in that order. Raises as :meth:`positions_of`."""
        positions = self.positions_of(kept).to(self.rows.device)
        features = tuple(feature[positions] for feature in self.layer_features)
        return VisualTokens(
            self.rows[positions], kept.cpu(), self.grid, self.scores, self.attention, layer_features=features
        )


class VisionBackend(Protocol):
    """Images to visual tokens, whatever runs the encoder."""

    cameras: int
    grid: tuple[int, int]  # token rows and columns of one image
    max_keep: int  # tokens of all cameras that it gives at most; less than all where an engine was built so

    def preprocess(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """One uint8 RGB image [H, W, 3] a camera, of any size -> what the backend encodes.

        Raises:
            InputError: an image is not uint8 [H, W, 3].
        """
        ...

    def encode(self, inputs: torch.Tensor, attention: bool = False) -> VisualTokens:
        """What ``preprocess`` gave -> visual tokens.

        Args:
            attention: give ``VisualTokens.attention`` too.

        Raises:
            ModelError: the backend has no attention, or an engine gave values that are not usable.
        """
        ...


class Cache(Protocol):
    """Keys and values of what was run. They are the backend's own; setting ``used`` back forgets the last positions."""

    used: int  # positions


@runtime_checkable
class LanguageModel(Protocol):
    """The language model of a VLA. B prompts of equal length L run together, where the backend takes more than one."""

    layers: int

    def position_inputs(self, position_ids: torch.Tensor) -> PositionInputs:
        """Position ids [P, B, L] (P = 3 for M-RoPE, 1 for plain positions) -> the model's own form of them."""
        ...

    def prefill(
        self,
        ids: torch.Tensor,
        visual_positions: Sequence[torch.Tensor],
        visual: Sequence[VisualTokens],
        positions: PositionInputs,
        max_new_tokens: int,
    ) -> tuple[torch.Tensor, Cache]:
        """Run prompts.

        Args:
            ids: int64 [B, L].
            visual_positions: of each prompt, int64 [K]: where a visual token replaces an id's embedding.
            visual: of each prompt, its K visual tokens.
            positions: of the L ids.
            max_new_tokens: positions that the cache leaves for the answer.

        Returns:
            Logits of the last position, [B, vocabulary], and the cache, filled.
        """
        ...

    def decode_step(self, ids: torch.Tensor, positions: PositionInputs, cache: Cache) -> torch.Tensor:
        """Run one token of each prompt after those in the cache, which is filled in place.

        Args:
            ids: int64 [B].
            positions: of one id each.

        Returns:
            Logits [B, vocabulary].
        """
        ...


@runtime_checkable
class LayeredLanguageModel(LanguageModel, Protocol):
    """A language model that runs layer by layer, for pruners inside of it. Only torch's can."""

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids [...] -> embeddings [..., D]."""
        ...

    def embed_prompts(
        self, ids: torch.Tensor, visual_positions: Sequence[torch.Tensor], visual: Sequence[VisualTokens]
    ) -> torch.Tensor:
        """Embeddings [B, L, D] with the visual tokens put in; arguments as ``LanguageModel.prefill``."""
        ...

    def cache(self, batch: int, length: int, missing: Sequence[int] | None = None) -> Any:
        """An empty cache of ``length`` positions; ``missing``: for each layer, how many of them do not reach it."""
        ...

    def layer(
        self, index: int, hidden: torch.Tensor, positions: PositionInputs, cache: Any, start: int
    ) -> torch.Tensor:
        """One layer on new positions [B, L, D], ``start`` positions being in its cache; the last gives [B, 1, D]."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Output of the last layer [B, L, D] -> logits of the last position [B, vocabulary]."""
        ...

    def attention(
        self, index: int, hidden: torch.Tensor, positions: PositionInputs, rows: torch.Tensor, keys: torch.Tensor
    ) -> torch.Tensor:
        """Causal attention weights float32 [heads, R, L] of the positions ``rows`` [R] of one sequence in a layer.

        Args:
            hidden: [L, D], the layer's input.
            positions: of this sequence, each [L, ...].
            keys: [key/value heads, L, head dim] as the cache holds them.
        """
        ...


@dataclass(frozen=True)
class Prompt:
    """A prompt with all N visual tokens; pruning removes some of them later.

    Positions are those of the full sequence: column i of ``position_ids`` is the position id of token i.
    """

    text: str
    input_ids: torch.Tensor  # int64 [L]; image placeholders included
    position_ids: torch.Tensor  # int64 [P, L]; P = 3 (time, height, width) for M-RoPE, 1 for plain positions
    visual: torch.Tensor  # int64 [N], the positions of the visual tokens, camera after camera in raster order
    next_position: int  # position id of the answer's first token

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def text_after_images(self) -> torch.Tensor:
        """Token ids int64 [T] after the last image: under a causal mask only these attend to every visual token."""
        return self.input_ids[int(self.visual[-1]) + 1 :]


@dataclass(frozen=True)
class PrunedPrompt:
    """A prompt without its pruned visual tokens. What is kept keeps its position id: nothing is renumbered."""

    input_ids: torch.Tensor  # int64 [L']
    position_ids: torch.Tensor  # int64 [P, L'], gathered from those of the full sequence
    visual: torch.Tensor  # int64 [K], the positions of the kept visual tokens in the pruned sequence
    next_position: int  # the full sequence's: position id of the answer's first token

    def __len__(self) -> int:
        return len(self.input_ids)


def prune_prompt(prompt: Prompt, kept: torch.Tensor | None = None) -> PrunedPrompt:
    """Remove the visual tokens that are not in ``kept`` (int64 [K], ascending, over all cameras); None keeps all.

    Raises:
        ValueError: ``kept`` is not ascending, or outside of the prompt's visual tokens.
    """
    if kept is None:
        kept = torch.arange(len(prompt.visual))
    if len(kept) and (bool((kept.diff() <= 0).any()) or int(kept[0]) < 0 or int(kept[-1]) >= len(prompt.visual)):
        raise ValueError(f"kept tokens: expected ascending indices below {len(prompt.visual)}")
    present = torch.ones(len(prompt), dtype=torch.bool)
    present[prompt.visual] = False
    present[prompt.visual[kept]] = True
    left = present.nonzero().flatten()
    visual = torch.searchsorted(left, prompt.visual[kept])
    return PrunedPrompt(prompt.input_ids[left], prompt.position_ids[:, left], visual, prompt.next_position)


class PrunerLayer(Protocol):
    """The family's decoder layer with attention in both directions, an ``nn.Module``: ReconPruner's only layer."""

    width: int  # D
    norm_eps: float

    def __call__(self, hidden: torch.Tensor, grid: tuple[int, int], query: bool) -> torch.Tensor:
        """Run the layer.

        Args:
            hidden: [B, N, D], an image a row, N = rows * columns; with ``query`` [B, 1 + N, D], the query token first.
            grid: token rows and columns of one image.
        """
        ...

    def sizes(self) -> dict[str, Any]:
        """The layer's configuration for the metadata of a pruner file; ``VlaFamily.pruner_layer`` reads it."""
        ...


class VlaFamily(Protocol):
    """One family of VLAs that share an architecture in transformers."""

    model_type: str
    encoder_prefixes: tuple[str, ...]  # of the vision tower's tensors, in memory and in checkpoints
    language_prefixes: tuple[str, ...]  # likewise of the language model's

    def read_config(self, content: dict) -> Any:
        """The configuration of a ``config.json``. May raise anything for a bad one."""
        ...

    def load(self, path: Path, config: Any, device: torch.device, dtype: Any, parts: frozenset[str]) -> Any:
        """The model with the weights of ``parts``, of the others only what is small.

        Raises:
            ModelError: weights are missing or do not fit the configuration.
        """
        ...

    def pixels_per_token(self, config: Any) -> int:
        """Side of the square of image pixels that one visual token stands for."""
        ...

    def special_tokens(self, config: Any) -> Mapping[str, int]:
        """Tokens that the tokenizer must know, with their ids."""
        ...

    def image_text(self, tokens: int) -> str:
        """The text of one image of so many visual tokens in a prompt."""
        ...

    def image_token_id(self, config: Any) -> int: ...

    def position_ids(self, vla: Vla, input_ids: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Position ids [P, L] of a full sequence by the model's own rule, and that of the token after it."""
        ...

    def vision(self, vla: Vla) -> Any:
        """The torch ``VisionBackend``, an ``nn.Module``."""
        ...

    def language(self, vla: Vla) -> LayeredLanguageModel:
        """The torch language model. Raises ModelError where the configuration has parts that it cannot run."""
        ...

    def language_position_inputs(self, vla: Vla, position_ids: torch.Tensor) -> PositionInputs:
        """``LanguageModel.position_inputs`` in float32, without the language model's weights: for engines."""
        ...

    def language_sizes(self, config: Any) -> dict[str, int]:
        """``layers``, ``heads``, ``kv_heads``, ``head_dim``, ``width`` and ``vocabulary`` of the language model."""
        ...

    def language_constants(self, config: Any) -> dict[str, Any]:
        """What an exported graph of the language model bakes in beside the weights; part of its fingerprint."""
        ...

    def pruner_layer(self, sizes: Any) -> nn.Module:
        """An untrained :class:`PrunerLayer` from a model's text configuration or from ``PrunerLayer.sizes()``.

        Raises:
            ValueError: the sizes are not valid; the text names the field.
        """
        ...
