"""ReconPruner (FastDriveVLA, arXiv 2507.23318): a saliency score for each visual token.

``[Q*, V*] = layer([Q, V])`` with one decoder layer of the VLA's family whose attention is bidirectional, then
``S = linear(V* . Q*)`` on the Hadamard product; the sign of a score is the foreground decision.

One deviation, ``normalise``, is on by default: V* and Q* pass an RMSNorm without weights before the product, because
the straight-through mask of the training does not see a score's size and without it scores grow without bound.

A pruner that was distilled from a plan's sensitivity has one number more for each camera, which is added to its scores:
where a camera looks says much about what its tokens are worth to a plan.

A lite pruner is not of the paper: a linear map takes the tokens to a smaller width, in which layer, query and product
are. The layer's cost falls with the square of the width, that of its attention with the width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import rms_norm

if TYPE_CHECKING:
    from fastdrive_node.families.base import VlaFamily


class ReconPruner(nn.Module):
    """Scores the tokens of each camera by itself; one set of weights for all cameras, and at most a bias for each.

    Args:
        family: of the VLA whose tokens it scores.
        sizes: of the layer: the VLA's text configuration, or ``PrunerLayer.sizes()`` of a stored one.
        token_width: of a lite pruner: D, above the layer's width (``lite.narrow_sizes`` gives its sizes). None: the
            layer has the width of the tokens.
        normalise: RMSNorm of V* and Q* before their product (see the module's text).
        cameras: names of the cameras that have a bias, zero at first; none for scores that do not know the camera.

    Raises:
        ValueError: the sizes are not valid.
    """

    def __init__(
        self,
        family: VlaFamily,
        sizes: Any,
        normalise: bool = True,
        cameras: Sequence[str] = (),
        token_width: int | None = None,
    ):
        super().__init__()
        self.cameras = tuple(cameras)
        self.normalise = normalise
        with torch.device("meta"):
            like = family.pruner_layer(sizes)  # for its width: the query is drawn before the layer's weights
        self.query = nn.Parameter(torch.randn(1, like.width) * like.init_range)
        self.layer = family.pruner_layer(sizes)
        self.narrow = None if token_width is None else nn.Linear(token_width, like.width, bias=False)
        self.scorer = nn.Linear(like.width, 1)
        self.camera_bias = nn.Parameter(torch.zeros(len(self.cameras))) if self.cameras else None

    @property
    def width(self) -> int:
        """D, the width of the tokens that it scores."""
        return self.layer.width if self.narrow is None else self.narrow.in_features

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Scores of visual tokens.

        Args:
            tokens: [B, N, D], an image a row (B = cameras, or cameras of several sets), N = rows * columns.
            grid: (rows, columns) of the tokens of one image.

        Returns:
            float32 [B, N], unbounded; above zero means foreground.

        Raises:
            ValueError: the pruner has a bias for each camera, and the images are not those of whole sets.
        """
        scores = self.image_scores(tokens, grid)
        if self.camera_bias is None:
            return scores
        if len(scores) % len(self.cameras):
            raise ValueError(f"camera_bias: {len(scores)} images are no whole sets of {len(self.cameras)} cameras")
        return scores + self.camera_bias.float().repeat(len(scores) // len(self.cameras))[:, None]

    def image_scores(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """As ``forward``, without the bias of the cameras."""
        if self.narrow is not None:
            tokens = self.narrow(tokens)
        hidden = torch.cat([self.query.expand(len(tokens), 1, -1), tokens], dim=1)
        hidden = self.layer(hidden, grid, query=True)
        if self.normalise:
            hidden = rms_norm(hidden, hidden.shape[-1:], eps=self.layer.norm_eps)
        return self.scorer(hidden[:, 1:] * hidden[:, :1]).squeeze(-1).float()
