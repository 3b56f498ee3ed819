"""What the machine could do at best: the arithmetic of a prefill and the bytes of a decode step, and its own speeds."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from fastdrive_node.families import Vla

_SIDE = 1024  # of the matrices that are multiplied
_COPIED = 1 << 26  # bytes
_RUNS = 5


@torch.inference_mode()
def floor(vla: Vla, prompt_tokens: dict[str, int]) -> dict[str, Any]:
    """Bounds from below of prefill and decode in torch, from measured multiplications and copies.

    Args:
        prompt_tokens: length of a prompt, by name.

    Returns:
        ``gflops_per_s`` and ``gbytes_per_s`` of this machine; of each prompt the ``gflop`` of its prefill and the ms
        that they take at least; ``decode_gbytes``, the weights that one token reads, and ms at least.
    """
    text = vla.config.text_config
    weights = [each for name, each in vla.model.named_parameters() if _is_language(name) and each.ndim == 2]
    linear = sum(each.numel() for each in weights)
    head = text.vocab_size * text.hidden_size
    width = text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    speed, copied = _multiplications(vla.device, vla.dtype), _copies(vla.device)
    bytes_read = (linear + head) * weights[0].element_size()
    prefills = {}
    for name, tokens in prompt_tokens.items():
        attention = 2 * text.num_hidden_layers * width * tokens**2  # causal: half of scores and of values
        flop = 2 * (linear * tokens + head) + attention
        prefills[name] = {"tokens": tokens, "gflop": round(flop / 1e9, 4), "least_ms": round(flop / speed * 1e3, 3)}
    return {
        "gflops_per_s": round(speed / 1e9, 1),
        "gbytes_per_s": round(copied / 1e9, 1),
        "prefill": prefills,
        "decode_gbytes": round(bytes_read / 1e9, 6),
        "decode_step_least_ms": round(bytes_read / copied * 1e3, 4),
    }


def _is_language(name: str) -> bool:
    return "visual" not in name and "vision" not in name and "embed" not in name and "lm_head" not in name


def _multiplications(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations a second of a matrix product."""
    a, b = (torch.ones(_SIDE, _SIDE, device=device, dtype=dtype) for _ in range(2))
    return 2 * _SIDE**3 / _seconds(lambda: a @ b, device)


def _copies(device: torch.device) -> float:
    """Bytes a second that are read; a copy reads and writes."""
    data = torch.zeros(_COPIED // 4, device=device)
    return 2 * _COPIED / _seconds(lambda: data.clone(), device)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(_RUNS + 1):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return median(times[1:])
