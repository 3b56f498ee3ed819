"""Whether the two implementations compute the same function, with what tells a tie of rounding from an error."""

from __future__ import annotations

import torch
from torch.nn.functional import cosine_similarity

from fastdrive_node.benchmark.implementations import FastDrive, HfGenerate

NOTE = (
    "same_tokens compares two free greedy runs. The rest lets both read transformers' answer and compares the "
    "logits of each step: where the choices differ, gap is what transformers' choice leads ours by in its own logits, "
    "and spacing is the distance of neighbouring numbers of the dtype there. A gap of a few spacings is a tie that "
    "rounding breaks; after one such token free runs part permanently."
)
_LISTED = 8


@torch.inference_mode()
def agreement(ours: FastDrive, stock: HfGenerate) -> dict:
    """Compare encodings and greedy decoding of the same prompt.

    Args:
        ours: without pruning, and the same answer length as ``stock``.
    """
    encoded, expected = ours.encode(), stock.encode()
    cosine = cosine_similarity(encoded.rows.float(), expected.float(), dim=-1)
    mine, theirs = ours.prefill(encoded, ours.prune(encoded)), stock.prefill(expected)
    own, ids = ours.decode(mine), stock.decode(theirs)
    logits, reference = ours.forced_logits(mine, ids), stock.forced_logits(theirs, ids)
    choices, wanted = logits.argmax(-1), reference.argmax(-1)
    differing = (choices != wanted).nonzero().flatten().tolist()
    return {
        "dtype": str(stock.model.dtype).removeprefix("torch."),
        "same_tokens": own == ids,
        "steps": len(ids),
        "equal_steps": len(ids) - len(differing),
        "distinct_tokens": len(set(ids)),
        "max_abs_logit_difference": float((logits - reference).abs().max()),
        "logit_cosine_min": float(cosine_similarity(logits, reference, dim=-1).min()),
        "differences": [
            _difference(step, reference[step], int(choices[step]), stock.model.dtype) for step in differing[:_LISTED]
        ],
        "encode_cosine": {"min": float(cosine.min()), "mean": float(cosine.mean())},
    }


def _difference(step: int, reference: torch.Tensor, choice: int, dtype: torch.dtype) -> dict:
    best = float(reference.max())
    spacing = torch.finfo(dtype).eps * 2.0 ** torch.tensor(abs(best)).log2().floor().item()
    gap = best - float(reference[choice])
    return {"step": step, "gap": gap, "spacing": spacing, "gap_in_spacings": round(gap / spacing, 2)}
