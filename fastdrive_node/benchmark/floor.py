"""What the machine could do at best, beside what was measured: operations and bytes of each stage, and its own speeds.

A stage takes at least as long as its operations at the rate of a large matrix product, and at least as long as reading
its weights once from memory. Activations, softmax and norms are not counted. Weights that stay in a processor's cache
are read faster than memory is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from fastdrive_node.benchmark.implementations import FastDrive
from fastdrive_node.families import Vla

_SDPA = ("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu")
_SIDE = {"cpu": 512, "cuda": 4096}  # of the matrices that are multiplied
_BUFFERS = 4  # that are copied in a circle, so that no cache holds them
_BUFFER_BYTES = {"cpu": 1 << 26, "cuda": 1 << 28}
_CALLS = {"cpu": 1, "cuda": 4}  # in a try: a GPU works on while the next one is launched
_TRIES = 40  # short ones, of which the best counts: other processes slow down some of them


@dataclass(frozen=True)
class Work:
    """Of one stage."""

    flop: float
    read_bytes: float  # of weights, once
    attention_flop: float = 0.0  # of ``flop``


@dataclass(frozen=True)
class Speeds:
    """Of this machine, measured."""

    flop_per_s: float
    bytes_per_s: float  # read and written by copies

    def row(self, work: Work, **measured_ms: float | None) -> dict[str, Any]:
        """For JSON: the work, the ms that it takes at least, and what was measured by implementation."""
        least_ms = max(work.flop / self.flop_per_s, work.read_bytes / self.bytes_per_s) * 1e3
        return {
            "gflop": round(work.flop / 1e9, 4),
            "attention_gflop": round(work.attention_flop / 1e9, 4),
            "gbytes": round(work.read_bytes / 1e9, 6),
            "least_ms": round(least_ms, 4),
            "measured_ms": {who: round(ms, 3) for who, ms in measured_ms.items() if ms is not None},
        }


@torch.inference_mode()
def measured_speeds(vla: Vla) -> Speeds:
    """By matrix products in the VLA's dtype and by copies, on memory that was touched before, in torch."""
    kind = vla.device.type
    side, elements = _SIDE[kind], _BUFFER_BYTES[kind] // 4
    a, b, product = (torch.ones(side, side, device=vla.device, dtype=vla.dtype) for _ in range(3))
    buffers = [torch.zeros(elements, device=vla.device) for _ in range(_BUFFERS)]
    for buffer in buffers:
        buffer.fill_(1.0)  # else the first write to a page would be measured too

    def copy(call: int) -> None:
        buffers[(call + 1) % _BUFFERS].copy_(buffers[call % _BUFFERS])

    products = _seconds(lambda _: torch.mm(a, b, out=product), vla.device)
    return Speeds(2 * side**3 / products, 2 * _BUFFER_BYTES[kind] / _seconds(copy, vla.device))


def _seconds(run: Callable[[int], object], device: torch.device) -> float:
    """Of one call, the best of some tries after an untimed one."""
    times, calls = [], _CALLS[device.type]
    for first in range(0, (_TRIES + 1) * calls, calls):
        start = time.perf_counter()
        for call in range(first, first + calls):
            run(call)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append((time.perf_counter() - start) / calls)
    return min(times[1:])


class Floor:
    """The work of each stage of one VLA."""

    def __init__(self, vla: Vla):
        self._vla, text = vla, vla.config.text_config
        named = [(name, each) for name, each in vla.model.named_parameters() if each.ndim == 2]
        weights = [each for name, each in named if _is_language(name)]
        self._linear = sum(each.numel() for each in weights)
        self._size = weights[0].element_size()
        self._head = text.vocab_size * text.hidden_size
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self._attention = 2 * text.num_hidden_layers * text.num_attention_heads * head_dim

    def prefill(self, tokens: int, logits: int = 1) -> Work:
        """Of a prompt, its draft included, of which the last ``logits`` positions have logits."""
        attention = self._attention * tokens**2  # causal: half of scores and of values
        flop = 2 * (self._linear * tokens + self._head * logits) + attention
        return Work(flop, (self._linear + self._head) * self._size, attention)

    def decode(self, position: int) -> Work:
        """Of one token behind so many positions."""
        attention = 2 * self._attention * position
        return Work(2 * (self._linear + self._head) + attention, (self._linear + self._head) * self._size, attention)

    def encode(self, ours: FastDrive) -> Work:
        """Of all images, as the vision encoder in torch does it: products, and attention within its windows."""
        prefixes = self._vla.family.encoder_prefixes
        weights = [each for name, each in self._vla.model.named_parameters() if name.startswith(prefixes)]
        products, attention = count_operations(ours.encode)
        return Work(products + attention, sum(each.nbytes for each in weights), attention)


def _is_language(name: str) -> bool:
    return "visual" not in name and "vision" not in name and "embed" not in name and "lm_head" not in name


def count_operations(work: Callable[[], object]) -> tuple[int, int]:
    """Floating-point operations of matrix products and convolutions, and of attention; a multiply-add counts as two.

    By torch's own counter. Attention is counted in full, as torch does for every kernel: a causal mask halves the
    products that matter and not the ones that are counted.
    """
    aten = torch.ops.aten
    mapping = {getattr(aten, name): _attention_flops for name in _SDPA if hasattr(aten, name)}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        work()
    by_operator = counter.get_flop_counts().get("Global", {})
    attention = sum(count for operator, count in by_operator.items() if "attention" in str(operator))
    return counter.get_total_flops() - attention, attention


def _attention_flops(query, key, value, *_, **__) -> int:
    """2 B H L S (d_k + d_v) from the shapes [B, H, L, d], H being the query's heads."""
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[-2] * (width + value[-1])
