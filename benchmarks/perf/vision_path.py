"""What an engine computes, in torch: images to tokens sorted by their scores; and how far two results are apart."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fastdrive_node.families import VisionBackend
from fastdrive_node.families.qwen2_5_vl.tower import TorchVision
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.pruning.select import keep_count

DROPS = (0.25, 0.5, 0.75)


class VisionPath(nn.Module):
    """Tower, pruner and top-K over all tokens; the modules are held, not copied."""

    def __init__(self, vision: VisionBackend, pruner: ReconPruner):
        super().__init__()
        assert isinstance(vision, TorchVision)  # that of random_models
        self.vision, self.pruner = vision, pruner

    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Patches [C, patches, patch values] -> tokens [N, D] by descending score, indices int32 [N] of them into the
        cameras' tokens in raster order, scores float32 [C, n]; N = C n."""
        tokens = self.vision.encode_patches(patches)
        scores = self.pruner(tokens, self.vision.grid)
        order = scores.flatten().topk(scores.numel()).indices
        return tokens.flatten(0, 1)[order], order.int(), scores


class ImagePath(VisionPath):
    """The same from uint8 images [C, 3, height, width], as an engine has it."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return super().forward(self.vision.patches(images))


def named(result: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A result under the names of an engine's outputs."""
    return dict(zip(("tokens", "indices", "scores"), result, strict=True))


@torch.inference_mode()
def compare(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> dict:
    """Figures of a result against another of the same images.

    Args:
        found, expected: tokens [N, D], indices int [N], scores [C, n], as ``VisionPath`` gives them, on any device.

    Returns:
        cosine and its minimum over the tokens, the largest errors of tokens and scores, the standard deviation of the
        expected scores, and the overlap of the kept sets at each pruning ratio.

    Raises:
        ValueError: the found indices are not N different tokens, or a number is not finite.
    """
    found, expected = ({name: value.cpu() for name, value in each.items()} for each in (found, expected))
    total = expected["indices"].numel()
    if not torch.equal(found["indices"].long().sort().values, torch.arange(total)):
        raise ValueError(f"indices: not {total} different tokens")
    if not all(bool(torch.isfinite(found[name]).all()) for name in ("tokens", "scores")):
        raise ValueError("tokens or scores that are not finite")
    ours, theirs = (_raster(each).float() for each in (found, expected))
    cosine = torch.cosine_similarity(ours, theirs, dim=-1)
    overlap = {}
    for drop in DROPS:
        keep = keep_count(total, drop)
        kept = [set(each["indices"][:keep].tolist()) for each in (found, expected)]
        overlap[f"{drop:g}"] = round(len(kept[0] & kept[1]) / keep, 6)
    scores = [each["scores"].float().flatten() for each in (found, expected)]
    return {
        "cosine": float(cosine.mean()),
        "cosine_min": float(cosine.min()),
        "max_abs_error": float((ours - theirs).abs().max()),
        "token_std": float(theirs.std()),
        "score_max_abs_error": float((scores[0] - scores[1]).abs().max()),
        "score_std": float(scores[1].std()),
        "kept_overlap": overlap,
    }


def _raster(result: Mapping[str, torch.Tensor]) -> torch.Tensor:
    tokens = torch.empty_like(result["tokens"])
    tokens[result["indices"].long()] = result["tokens"]
    return tokens
