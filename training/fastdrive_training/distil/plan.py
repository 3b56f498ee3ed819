"""What pruning does to a VLA's plan, as a loss: how far the answer on the kept tokens is from that on all of them.

The sensitivity of a token (``sensitivity.py``) is a gradient at the full prompt. It does not say what happens when
three quarters of the tokens are gone. Here the VLA reads the true answer behind the tokens that the scores choose, at
the pruning ratios that are used; the loss is the Kullback-Leibler divergence of its predictions from those on all
tokens.

The choice is the K largest scores with Gumbel noise. A token of gate g has g times its weight in each attention: log g
is added to the attention's logits, as in the attention masking of DynamicViT (Rao et al., NeurIPS 2021, section 3.3).
The gates are 0 or 1, and have the gradient of a sigmoid around the K-th score (straight through), so a token that was
left out learns too what attention to it would change.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import kl_div

from fastdrive_node.families import Vla
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.pruning.select import keep_count
from fastdrive_training.distil.config import DistilRecipe
from fastdrive_training.distil.sensitivity import answer_logits, passes
from fastdrive_training.distil.targets import shares
from fastdrive_training.distil.trainer import Asked, DistilTrainer, Keyframes, PlanKeyframes, distance
from fastdrive_training.engine.distributed import Processes
from fastdrive_training.engine.loop import Losses, StepBatches


def gates(scores: Tensor, drop: float, noise: Tensor | None = None) -> Tensor:
    """1 for the kept ones of scores [B, N] and 0 for the others, with the gradient of a sigmoid around the K-th score.

    Args:
        noise: [B, N], added to the scores before the choice.
    """
    noisy = scores if noise is None else scores + noise
    keep = keep_count(scores.shape[1], drop)
    if keep == scores.shape[1]:
        return torch.ones_like(scores)
    ordered = noisy.detach().sort(1, descending=True).values
    middle = ordered[:, keep - 1 : keep + 1].mean(1, keepdim=True)
    soft = (noisy - middle).sigmoid()
    kept = torch.zeros_like(soft).scatter(1, noisy.detach().topk(keep, 1).indices, 1.0)
    return kept + (soft - soft.detach())  # in this order the sum is 0 or 1 exactly


def gumbel(seed: int, step: int, rows: Sequence[int], count: int) -> Tensor:
    """Standard Gumbel noise float32 [B, count] on the CPU; that of a keyframe is the same in every batch."""
    drawn = [np.random.default_rng((seed, step, row)).gumbel(size=count) for row in rows]
    return torch.from_numpy(np.stack(drawn).astype(np.float32))


def plan_divergence(
    vla: Vla,
    tokens: Tensor,
    asked: Sequence[Asked],
    scores: Tensor,
    drops: Sequence[float],
    noise: Tensor,
    at_once: int,
) -> Tensor:
    """Divergence in nats [len(drops), B] of a VLA's answers on the kept tokens from those on all.

    Args:
        tokens: [B, N, D], all of them.
        scores: [B, N], with gradient.
        noise: [B, N] that is added to the scores.
        at_once: keyframes that go through the VLA together, where their prompts have one form. It decides the memory
            that is needed, and nothing else: no pass leaves a graph behind.
    """
    found = torch.empty(len(drops), len(asked), device=scores.device)
    for rows in passes([each.prompt for each in asked], at_once):
        own = [asked[row] for row in rows]
        for place, drop in enumerate(drops):
            found[place, rows] = _pruned(vla, tokens[rows], own, scores[rows], drop, noise[rows])
    return found


def _pruned(vla: Vla, tokens: Tensor, asked: Sequence[Asked], scores: Tensor, drop: float, noise: Tensor) -> Tensor:
    """Divergence [B] at one pruning ratio, in one pass.

    A keyframe's value depends on its own scores alone, so its gradient is known here and stands for the VLA's graph.
    """
    leaf = scores.detach().requires_grad_(torch.is_grad_enabled() and scores.requires_grad)
    with torch.no_grad():
        states = torch.stack([each.whole for each in asked]).to(vla.device, vla.dtype)
        whole = vla.model.lm_head(states).float().log_softmax(-1)
    questions = [each.prompt for each in asked]
    with attention_kernel(vla.device):
        kept = answer_logits(vla, tokens, questions, gates(leaf, drop, noise)).log_softmax(-1)
    each = kl_div(kept, whole, reduction="none", log_target=True).sum((1, 2))
    if not each.requires_grad:
        return each
    (slopes,) = torch.autograd.grad(each.sum(), leaf)
    return each.detach() + ((scores - scores.detach()) * slopes).sum(1)  # a value, and 0 with its gradient


def attention_kernel(device: torch.device) -> AbstractContextManager[Any]:
    """The kernel for attention with gates that have a gradient.

    On CUDA it is the one that keeps the attention matrices: the memory-efficient one of torch 2.11 refuses the gradient
    of such a mask ("LSE is not correctly aligned").
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cuda" else nullcontext()


class PlanTrainer(DistilTrainer):
    """Trains ``pruner`` so that the answers of ``vlas`` on its choice are those on all tokens.

    A step asks one VLA at one pruning ratio; they take turns.
    """

    def __init__(
        self,
        recipe: DistilRecipe,
        vlas: Sequence[Vla],
        keyframes: PlanKeyframes,
        pruner: ReconPruner,
        batches: StepBatches,
        processes: Processes,
        identity: dict[str, Any],
        held_out: PlanKeyframes | None = None,
    ):
        super().__init__(recipe, pruner, batches, vlas[0].grid, processes, identity, held_out)
        self._vlas, self._keyframes = vlas, keyframes

    def losses(self, part: tuple[Tensor, ...]) -> Losses:
        tokens, covered, rows = part
        recipe, numbers = self.recipe, rows.tolist()
        turn, place = divmod(self.step, len(self._vlas))
        asked = self._keyframes.asked(place, numbers)
        scores = self.scores(self.wrapped["pruner"], tokens)
        noise = recipe.noise * gumbel(recipe.seed, self.step, numbers, scores.shape[1]).to(scores.device)
        how = (recipe.drops[turn % len(recipe.drops)],), noise, recipe.teacher_batch
        each = plan_divergence(self._vlas[place], tokens.flatten(1, 2), asked, scores, *how)[0]
        if recipe.foreground_weight:
            mixed = torch.lerp(each, distance(scores, shares(covered)), recipe.foreground_weight)
            each = torch.where(covered.sum(1) > 0, mixed, each)  # without foreground the plan is all there is
        return {"total": each.mean(), "each": each.detach()}

    @torch.no_grad()
    def judge(self, keyframes: Keyframes | PlanKeyframes) -> dict[str, Any]:
        """``held_out``, the mean divergence of all VLAs at all ratios, and ``divergence`` by ratio; without noise."""
        assert isinstance(keyframes, PlanKeyframes)
        found, device = [], self.processes.device
        for start in range(0, len(keyframes.names), self.recipe.batch):
            rows = np.arange(start, min(start + self.recipe.batch, len(keyframes.names)))
            tokens = keyframes.read(rows)[0].to(device)
            scores = self.scores_now(tokens).to(device)
            how = self.recipe.drops, torch.zeros_like(scores), self.recipe.teacher_batch
            for place, vla in enumerate(self._vlas):
                asked = keyframes.asked(place, rows.tolist())
                found.append(plan_divergence(vla, tokens.flatten(1, 2), asked, scores, *how))
        means = torch.cat(found, 1).mean(1).tolist()
        by_drop = {f"{drop:g}": mean for drop, mean in zip(self.recipe.drops, means, strict=True)}
        return {"held_out": float(np.mean(means)), "divergence": by_drop}
