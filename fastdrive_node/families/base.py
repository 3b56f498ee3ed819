"""What every VLA family gives: visual tokens, prompt positions, a language model, the pruner's layer.

Nothing outside of ``families/`` names a family. :func:`fastdrive_node.families.load_vla` finds one by the
``model_type`` in ``config.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch

from fastdrive_node.families.tokens import VisualTokens

if TYPE_CHECKING:
    from fastdrive_node.families.vla import Vla

PositionInputs = tuple[torch.Tensor, ...]  # what a language model makes of position ids, each [B, L, ...]
VISION, LANGUAGE = "vision", "language"
PARTS = frozenset({VISION, LANGUAGE})  # the parts of a VLA whose weights may come from an engine


class VisionBackend(Protocol):
    """Images to visual tokens, whatever runs the encoder."""

    cameras: int
    grid: tuple[int, int]  # token rows and columns of one image; of images of several sizes see ``MixedVision``

    @property
    def max_keep(self) -> int:
        """Tokens of all cameras that it gives at most; less than all where an engine was built so."""
        ...

    def preprocess(self, images: Sequence[np.ndarray] | np.ndarray) -> Any:
        """One uint8 RGB image [H, W, 3] a camera, of any size -> what the backend encodes.

        Raises:
            InputError: an image is not uint8 [H, W, 3].
        """
        ...

    def encode(self, inputs: Any, attention: bool = False) -> VisualTokens:
        """What ``preprocess`` gave -> visual tokens.

        Args:
            attention: give ``VisualTokens.attention`` too.

        Raises:
            ModelError: the backend has no attention, or an engine gave values that are not usable.
        """
        ...


class TorchVisionBackend(VisionBackend, Protocol):
    """The vision backend over a VLA's own modules, an ``nn.Module`` that holds them (no copy); see ``VlaFamily``."""

    @property
    def device(self) -> torch.device: ...

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [C, 3, height, width] at the VLA's image size -> what ``encode_patches`` reads."""
        ...

    def encode_patches(self, patches: torch.Tensor) -> torch.Tensor:
        """What ``patches`` or ``preprocess`` gave -> tokens [C, rows * columns, D], of any number of images."""
        ...


class CameraGroup(NamedTuple):
    """Cameras that are encoded as one batch."""

    backend: VisionBackend  # encodes any number of their images, in any order
    cameras: Sequence[int]  # ascending
    inputs: torch.Tensor  # item i is of the image of ``cameras[i]``


@runtime_checkable
class SeparableVision(VisionBackend, Protocol):
    """A vision backend that can encode some cameras only: a camera's tokens depend on its own image alone."""

    def groups(self, inputs: Any) -> list[CameraGroup]:
        """What ``preprocess`` gave, by the batches in which it is encoded."""
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
        last: int = 1,
    ) -> tuple[torch.Tensor, Cache]:
        """Run prompts.

        Args:
            ids: int64 [B, L].
            visual_positions: of each prompt, int64 [K]: where a visual token replaces an id's embedding.
            visual: of each prompt, its K visual tokens.
            positions: of the L ids.
            max_new_tokens: positions that the cache leaves for the answer.
            last: positions whose logits are given.

        Returns:
            Logits of the last positions, [B, last, vocabulary], and the cache, filled.
        """
        ...

    def decode_step(self, ids: torch.Tensor, positions: PositionInputs, cache: Any) -> torch.Tensor:
        """Run one token of each prompt after those in the cache, which is filled in place.

        Args:
            ids: int64 [B].
            positions: of one id each.
            cache: that ``prefill`` gave.

        Returns:
            Logits [B, vocabulary].
        """
        ...


@runtime_checkable
class ExtendingLanguageModel(LanguageModel, Protocol):
    """A language model that runs several tokens at once behind a filled cache: for drafts."""

    def extend(self, ids: torch.Tensor, positions: PositionInputs, cache: Any) -> torch.Tensor:
        """Run tokens of each prompt after those in the cache, which is filled in place.

        Args:
            ids: int64 [B, L].
            positions: of the L ids.
            cache: that ``prefill`` gave.

        Returns:
            Logits [B, L, vocabulary], of every position.
        """
        ...


@runtime_checkable
class HeadedLanguageModel(LanguageModel, Protocol):
    """A language model that may run one prompt behind a head: text that is known, with its keys and values."""

    takes_head: bool  # whether that is worth it

    def prefill(
        self,
        ids: torch.Tensor,
        visual_positions: Sequence[torch.Tensor],
        visual: Sequence[VisualTokens],
        positions: PositionInputs,
        max_new_tokens: int,
        last: int = 1,
        head: Any = None,
    ) -> tuple[torch.Tensor, Cache]:
        """See ``LanguageModel``.

        Args:
            head: a cache that ``prefill`` gave, and that stays as it is. Its ``used`` first positions stand before
                ``ids``; the arguments are of what stands behind them, at least one position.
        """
        ...


@runtime_checkable
class EmbeddingLanguageModel(LanguageModel, Protocol):
    """A language model that embeds text, for pruners that read the prompt. Torch's can."""

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids [...] of a prompt -> embeddings [..., D]."""
        ...


@runtime_checkable
class LayeredLanguageModel(EmbeddingLanguageModel, Protocol):
    """A language model that runs layer by layer, for pruners inside of it. Not every family's can."""

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


class PrunerLayer(Protocol):
    """The family's decoder layer with attention in both directions, an ``nn.Module``: ReconPruner's only layer."""

    width: int  # D
    norm_eps: float
    init_range: float  # standard deviation of new weights

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

    def rebuild_buffers(self, device: torch.device) -> None:
        """Compute what is not stored in a pruner file; after building on the meta device."""
        ...


class VlaFamily(Protocol):
    """One family of VLAs that share an architecture in transformers."""

    model_type: str
    model_class: Any  # transformers' class of the whole model
    has_engines: bool  # whether engines of its VLAs can be built
    encoder_prefixes: tuple[str, ...]  # of all that makes visual tokens (tower, projector), in memory and checkpoints
    language_prefixes: tuple[str, ...]  # likewise of the language model's

    def read_config(self, content: dict) -> Any:
        """The configuration of a ``config.json``. May raise anything for a bad one; ``ConfigFault`` names the field."""
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

    def preprocessor_problems(self, config: Any, stored: dict, size: tuple[int, int]) -> list[str]:
        """How the content of a ``preprocessor_config.json`` differs from what ``VisionBackend.preprocess`` does.

        Args:
            size: (height, width) in px that images are resized to.
        """
        ...

    def check_images(self, config: Any, images: int, size: tuple[int, int]) -> None:
        """Check the number of images, and their size (height, width) in px.

        Raises:
            ValueError: the model cannot read them; the text starts with the field of ``vla.json``.
        """
        ...

    def special_tokens(self, config: Any) -> Mapping[str, int]:
        """Tokens that the tokenizer must know, with their ids."""
        ...

    def image_text(self, tokens: int) -> str:
        """The text of one image of so many visual tokens in a prompt."""
        ...

    def image_token_id(self, config: Any) -> int: ...

    def visual_positions(self, vla: Vla, input_ids: torch.Tensor) -> torch.Tensor:
        """int64 [N], where a full sequence int64 [L] has its visual tokens, in raster order of all images."""
        ...

    def position_ids(
        self, vla: Vla, input_ids: torch.Tensor, grids: Sequence[tuple[int, int]]
    ) -> tuple[torch.Tensor, int]:
        """Position ids [P, L] of a full sequence by the model's own rule, and that of the token after it.

        Args:
            grids: token rows and columns of each image in the sequence.
        """
        ...

    def vision(self, vla: Vla) -> TorchVisionBackend:
        """The torch vision backend, an ``nn.Module``."""
        ...

    def encoder_constants(self, vla: Vla) -> dict[str, Any]:
        """What visual tokens depend on beside the weights and the image size; part of the encoder's fingerprint."""
        ...

    def language(self, vla: Vla) -> EmbeddingLanguageModel:
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

    def pruner_layer(self, sizes: Any) -> Any:
        """An untrained :class:`PrunerLayer` from a model's text configuration or from ``PrunerLayer.sizes()``.

        Raises:
            ValueError: the sizes are not valid; the text names the field.
        """
        ...
