"""What a small VLA learns from the text of an answer whose numbers are one token each.

Two measures make it use the images and not only its own earlier numbers:

* The earlier numbers that it is shown are partly wrong (the idea of DAgger, Ross et al. 2011). With the true ones as
  input each number follows well from those before it, and a small model learns just that.
* A number a tenth of a metre off is nearly right: the target is a Gaussian soft target centred on the true value, wider
  for later points.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from fastdrive_node.errors import ModelError
from fastdrive_node.families import Vla
from fastdrive_node.families.spec import text_answer
from fastdrive_node.planning.answer_format import example_answer
from fastdrive_training.vla.tiny_model import NUMBERS

CLEAN_FRACTION = 0.3  # of the samples are shown the true earlier numbers
SPEED_SIGMA, ACCEL_SIGMA = (0.2, 0.1), (0.3, 0.15)  # (x, y) in m/s and m/s2 of the shown error that grows with time
JITTER_M = 0.05  # of the shown error that does not
SIGMA_M = (0.1, 0.1)  # deviation of the target: first + second * seconds


@dataclass(frozen=True)
class AnswerText:
    """The positions of the numbers in an answer, and the tokens that write them."""

    positions: Tensor  # int64 [points * 2] of the answer's tokens
    others: Tensor  # int64, the positions of all other tokens, end of turn included
    tokens: Tensor  # int64 [numbers], in the order of their values
    values: Tensor  # float32 [numbers] m
    times_s: Tensor  # float32 [points * 2]

    @staticmethod
    def of(vla: Vla) -> AnswerText:
        """For a VLA with the tokenizer of ``tiny_model``.

        Raises:
            ModelError: the VLA writes numbers in more than one token.
        """
        spec = text_answer(vla.spec, vla.path)
        ids = torch.tensor(vla.tokenizer.encode(example_answer(spec), add_special_tokens=False))
        tokens = torch.tensor(vla.tokenizer.convert_tokens_to_ids(list(NUMBERS)))
        number = torch.cat([torch.isin(ids, tokens), torch.tensor([False])])  # the last is the end of the turn
        if int(number.sum()) != 2 * spec.points:
            raise ModelError(f"{vla.path}: tokenizer.json: a number is not one token; use a VLA of a tiny_vla recipe")
        times = spec.interval_s * (torch.arange(spec.points) + 1).repeat_interleave(2)
        values = torch.tensor([float(text) for text in NUMBERS])
        return AnswerText(number.nonzero().flatten(), (~number).nonzero().flatten(), tokens, values, times.float())

    def to(self, device: torch.device) -> AnswerText:
        """On a device."""
        return AnswerText(*(getattr(self, field.name).to(device) for field in fields(self)))

    def shown(self, answers: Tensor, futures: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Input tokens int64 [B, A] for true answers [B, A] that write ``futures`` [B, points, 2] m."""
        drifted = torch.from_numpy(futures + self._error(futures.shape, rng)).flatten(1)
        step = self.values[1] - self.values[0]
        index = ((drifted - self.values[0]) / step).round().long().clamp(0, len(self.values) - 1)
        return answers.index_copy(1, self.positions, self.tokens[index])

    def _error(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """An error that grows smoothly with time, and a little of it that does not; none for some samples."""
        count = shape[0]
        time_s = self.times_s[::2].numpy()[None, :, None]
        drift = rng.normal(size=(count, 1, 2)) * SPEED_SIGMA * time_s
        bend = rng.normal(size=(count, 1, 2)) * ACCEL_SIGMA * time_s**2 / 2
        wrong = rng.random((count, 1, 1)) >= CLEAN_FRACTION
        return wrong * (drift + bend + rng.normal(size=shape) * JITTER_M)

    def losses(self, logits: Tensor, answers: Tensor, futures: Tensor) -> dict[str, Tensor]:
        """Cross entropy of the numbers with their soft targets, and of everything else.

        Args:
            logits: [B, A, vocabulary] at the position before each answer token.
            answers: int64 [B, A], the true tokens.
            futures: float32 [B, points, 2] m.
        """
        sigma = (SIGMA_M[0] + SIGMA_M[1] * self.times_s)[:, None]
        soft = torch.softmax(-(((self.values - futures.flatten(1)[..., None]) / sigma) ** 2) / 2, -1)
        numbers = log_softmax(logits[:, self.positions], -1)[..., self.tokens]
        others = answers[:, self.others]
        return {
            "numbers": -(soft * numbers).sum(-1).mean(),
            "words": cross_entropy(logits[:, self.others].flatten(0, 1), others.flatten()),
        }
