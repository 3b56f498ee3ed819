"""Which parts of a graph compute in which type.

The graph itself states the types: with a build flag of the runtime ("--fp16") any layer may run in the half type. On
the 3B tower that gave tokens with a cosine of 0.14 to torch's; typed graphs gave 0.9997. In fp16 and bf16 the matrix
products and the softmax compute in the half type; the residual stream, the RMSNorms, rotary angles, GELU, the pruner's
product and the scores stay float32, and so does the second half of each MLP in ``fp32_mlp``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fastdrive_export.graph_writer import BFLOAT16, FLOAT, FLOAT16
from fastdrive_node.errors import UsageError

COMPUTE_TYPES = {"fp32": FLOAT, "fp16": FLOAT16, "bf16": BFLOAT16}


@dataclass(frozen=True)
class Precision:
    """A precision and its exceptions."""

    name: str  # a key of COMPUTE_TYPES
    fp32_mlp: tuple[int, ...] = ()  # blocks whose gated product and down projection stay float32

    @property
    def compute(self) -> int:
        """TensorProto.DataType of the matrix products."""
        return COMPUTE_TYPES[self.name]


def choose_precision(name: str, depth: int, fp32_mlp: Iterable[int] | None = None, part: str = "tower") -> Precision:
    """A precision for a tower of ``depth`` blocks, or for another part of the VLA.

    ``fp32_mlp`` None: the last block in fp16, none in the others. In the last
    block of the 3B tower the values leave fp16's range.

    Raises:
        UsageError: an unknown precision, or a block that does not exist.
    """
    if name not in COMPUTE_TYPES:
        raise UsageError(f"precision: {name!r} is not one of {', '.join(COMPUTE_TYPES)}")
    if fp32_mlp is None:
        fp32_mlp = (depth - 1,) if name == "fp16" else ()
    blocks = tuple(sorted(set(fp32_mlp)))
    if blocks and not 0 <= blocks[0] <= blocks[-1] < depth:
        raise UsageError(f"fp32_mlp: {list(blocks)}: the {part} has blocks 0 to {depth - 1}")
    return Precision(name, () if name == "fp32" else blocks)
