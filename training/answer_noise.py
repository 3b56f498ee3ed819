"""Teacher forcing with wrong earlier numbers, so that a model learns to look and not to continue its own curve.

With the true answer as input, each number follows well from those before it, and a small model learns just that: its
metres are right, its bends are not. Here the input holds a trajectory that went astray, and the target of each digit is
the one that brings the number nearest to the truth, given the digits before it in the same number (the idea of DAgger,
Ross et al. 2011, on the level of digits).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastdrive_node.planning.answer import example_answer
from fastdrive_node.planning.model import Vla

CLEAN_SHARE = 0.5  # of the samples keep the true answer as input
SPEED_SIGMA, ACCEL_SIGMA = (0.06, 0.05), (0.1, 0.1)  # (x, y) in m/s and m/s2 of the error that grows with time
JITTER_M = 0.02


@dataclass(frozen=True)
class AnswerNoise:
    """Where the numbers of a fixed-width answer stand, and which tokens write them."""

    places: np.ndarray  # int64 [points * 2, 5]: sign, tens, ones, tenths, hundredths
    digits: np.ndarray  # int64 [10], token of each digit
    signs: np.ndarray  # int64 [2], tokens of "+" and "-"
    interval_s: float

    @staticmethod
    def of(vla: Vla) -> AnswerNoise:
        """For a VLA whose answers write each number as sign, two digits, point, two digits, one token each."""
        tokenizer = vla.tokenizer
        ids = np.array(tokenizer.encode(example_answer(vla.spec.answer), add_special_tokens=False))
        signs = np.array([tokenizer.convert_tokens_to_ids(sign) for sign in "+-"])
        starts = np.flatnonzero(np.isin(ids, signs))
        digits = np.array([tokenizer.convert_tokens_to_ids(str(digit)) for digit in range(10)])
        return AnswerNoise(starts[:, None] + [0, 1, 2, 4, 5], digits, signs, vla.spec.answer.interval_s)

    def apply(self, answers: np.ndarray, futures: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and targets, int64 [B, A] each, for true answers [B, A] that write ``futures`` [B, points, 2] m."""
        astray = futures + self._error(futures.shape, rng)
        true, false = (
            np.rint(np.clip(part, -99.99, 99.99).reshape(len(answers), -1) * 100) for part in (futures, astray)
        )
        inputs, targets = answers.astype(np.int64), answers.astype(np.int64)
        shown = self._write(inputs, false.astype(np.int64), false < 0)
        self._aim(targets, true.astype(np.int64), shown, false < 0)
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    def _error(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """An error that grows smoothly with time, and a little of it that does not; none for some samples."""
        count, points, _ = shape
        time_s = self.interval_s * np.arange(1, points + 1)[None, :, None]
        drift = rng.normal(size=(count, 1, 2)) * SPEED_SIGMA * time_s
        bend = rng.normal(size=(count, 1, 2)) * ACCEL_SIGMA * time_s**2 / 2
        dirty = rng.random((count, 1, 1)) >= CLEAN_SHARE
        return dirty * (drift + bend + rng.normal(size=shape) * JITTER_M)

    def _write(self, tokens: np.ndarray, value: np.ndarray, negative: np.ndarray) -> np.ndarray:
        """Write numbers in hundredths [B, n] into ``tokens``; returns their digits [B, n, 4]."""
        digits = np.stack([np.abs(value) // unit % 10 for unit in (1000, 100, 10, 1)], -1)
        tokens[:, self.places[:, 0]] = self.signs[negative.astype(int)]
        tokens[:, self.places[:, 1:]] = self.digits[digits]
        return digits

    def _aim(self, tokens: np.ndarray, true: np.ndarray, shown: np.ndarray, negative: np.ndarray) -> None:
        """Write the best digit after each shown prefix; a number with the wrong sign is best at zero."""
        tokens[:, self.places[:, 0]] = self.signs[(true < 0).astype(int)]
        wanted = np.where((true < 0) == negative, np.abs(true), 0)
        prefix = np.zeros_like(wanted)
        for place, unit in enumerate((1000, 100, 10, 1)):
            reachable = np.clip(wanted, prefix, prefix + 10 * unit - 1)
            tokens[:, self.places[:, 1 + place]] = self.digits[reachable // unit % 10]
            prefix = prefix + shown[..., place] * unit
