"""TokenPacker (Li et al., IJCV 2025, arXiv 2407.02392): one token for each 2x2 cell, which draws from its four tokens.

The mean of a cell is a coarse query, which attends to the cell's tokens alone (point to region). What it finds is added
to it and passes an MLP. The language model has to be trained with the packer.

The original takes keys and values from several layers of its tower, and stands in place of the projector. Here they
are the tower's merged tokens, which is all that a backend gives; and the MLP's result is added to the mean, so that an
untrained packer gives the mean, which a language model can read.

File: safetensors with the metadata ``format`` ("fastdrive-tokenpacker"), ``version`` ("1"), ``config`` (JSON: ``width``
and ``heads``), and the fingerprints of what it was trained with: ``encoder`` (vision tower) and ``language`` (language
model, as it was stored at the end of that training).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import pad

from fastdrive_node.errors import ModelError
from fastdrive_node.families import Vla
from fastdrive_node.families.loading import read_vla
from fastdrive_node.files import TOKEN_PACKER_FILE
from fastdrive_node.pruning.module_file import check_encoder, compare, fill, opened, write_tensors
from fastdrive_node.validation import STRICT, parse_json

FORMAT, VERSION, KIND = "fastdrive-tokenpacker", "1", "token packer"
CELL = 2  # rows and columns of a cell; fewer at the edge of an odd grid


@dataclass(frozen=True, config=STRICT)
class PackerSizes:
    """What the file says of the module."""

    width: Annotated[int, Field(ge=1, le=1 << 17)]
    heads: Annotated[int, Field(ge=1, le=1 << 10)]


_SIZES = TypeAdapter(PackerSizes)


class TokenPacker(nn.Module):
    """Packs cells of visual tokens.

    Args:
        width: D of the tokens.
        heads: of the attention.

    Raises:
        ValueError: ``width`` is no multiple of ``heads``.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"heads: {heads} do not divide the width {width}")
        self.sizes = PackerSizes(width, heads)
        self.query, self.query_norm = nn.Linear(width, width, bias=False), nn.LayerNorm(width)
        self.key, self.key_norm = _two_layers(width), nn.LayerNorm(width)
        self.value, self.value_norm = _two_layers(width), nn.LayerNorm(width)
        self.attended = nn.Linear(width, width)
        self.mlp = _two_layers(width)
        for parameter in self.mlp[-1].parameters():
            nn.init.zeros_(parameter)  # an untrained packer gives the mean

    def forward(self, cells: Tensor, present: Tensor) -> Tensor:
        """Packed tokens [..., K, D].

        Args:
            cells: [..., K, 4, D], the tokens of each cell.
            present: bool [K, 4]; False where a cell at an edge has no such token. Each cell has one at least.
        """
        weights = present.to(cells.dtype) / present.sum(-1, keepdim=True)
        coarse = (cells * weights[..., None]).sum(-2)
        found = self._attend(coarse, cells, present)
        return coarse + self.mlp(coarse + self.attended(found))

    def _attend(self, coarse: Tensor, cells: Tensor, present: Tensor) -> Tensor:
        """What each coarse query [..., K, D] finds in its cell."""
        shape = (self.sizes.heads, -1)
        query = self.query_norm(self.query(coarse)).unflatten(-1, shape)  # [..., K, heads, d]
        key = self.key_norm(self.key(cells)).unflatten(-1, shape)  # [..., K, 4, heads, d]
        value = self.value_norm(self.value(cells)).unflatten(-1, shape)
        scores = (query.unsqueeze(-3) * key).sum(-1) / query.shape[-1] ** 0.5
        weights = scores.masked_fill(~present[..., None], float("-inf")).softmax(-2)
        return (weights[..., None] * value).sum(-3).flatten(-2)


def _two_layers(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))


def members_of(grids: Sequence[tuple[int, int]], size: int = CELL) -> tuple[Tensor, Tensor]:
    """The tokens of each cell of some images.

    Args:
        grids: token rows and columns of each image.
        size: S, rows and columns of a cell.

    Returns:
        Raster indices int64 [K, S * S], the cell's first token first and cells ascending by it, and bool of this shape:
        whether a cell has this token. Where it has not, at an edge, the index is the first token's.
    """
    found, start = [], 0
    for rows, columns in grids:
        raster = start + torch.arange(rows * columns).view(rows, columns)
        raster = pad(raster, (0, -columns % size, 0, -rows % size), value=-1)
        cells = raster.unflatten(0, (-1, size)).unflatten(-1, (-1, size))  # [rows, S, columns, S]
        found.append(cells.transpose(1, 2).reshape(-1, size * size))
        start += rows * columns
    members = torch.cat(found)
    present = members >= 0
    return torch.where(present, members, members[:, :1]), present


def cells_of(grids: Sequence[tuple[int, int]], size: int = CELL) -> Tensor:
    """int64 [N]: the raster index of the first token of each token's cell, of the cells of ``members_of``."""
    members, _ = members_of(grids, size)
    first = torch.empty(sum(rows * columns for rows, columns in grids), dtype=torch.int64)
    first[members] = members[:, :1].expand_as(members)
    return first


def cells_of_vla(vla: Vla) -> tuple[Tensor, Tensor]:
    """``members_of`` the images of a VLA's prompt."""
    return members_of(vla.image_grids())


def save_packer(vla_dir: Path, packer: TokenPacker) -> None:
    """Write a packer's file beside the VLA that it was trained with.

    Args:
        vla_dir: its weights must be stored already, as the training left them: the file names their fingerprints.

    Raises:
        ModelError: the directory is no VLA.
    """
    vla = read_vla(vla_dir)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "config": _SIZES.dump_json(packer.sizes).decode(),
        "encoder": vla.encoder_fingerprint,
        "language": vla.language_fingerprint,
    }
    write_tensors(vla_dir / TOKEN_PACKER_FILE, packer.state_dict(), metadata)


def load_packer(vla: Vla) -> TokenPacker:
    """The packer beside a VLA, on its device and in its dtype, in ``eval`` mode.

    Raises:
        ModelError: the file is missing or damaged, is no packer, or belongs to another width, encoder or language
            model.
    """
    path = vla.path / TOKEN_PACKER_FILE
    with _opened(path) as (stored, metadata):
        packer = _empty(path, metadata, vla)
        fill(path, stored, packer, KIND, vla.device, vla.dtype)
    return packer


def check_packer_file(vla: Vla) -> None:
    """See that the packer's file serves a VLA; its weights are not read, those of the VLA for fingerprints alone.

    Raises:
        ModelError: as ``load_packer``, but for values that are not finite.
    """
    path = vla.path / TOKEN_PACKER_FILE
    with _opened(path) as (stored, metadata):
        compare(path, stored, _empty(path, metadata, vla), KIND)


def _opened(path: Path) -> AbstractContextManager[tuple[Any, dict[str, str]]]:
    missing = (
        "missing, and the pruner tokenpacker needs it; use a VLA that was trained with it "
        "(`fastdrive train tiny_language_packed`), or another pruner"
    )
    return opened(path, FORMAT, (VERSION,), KIND, missing)


def _empty(path: Path, metadata: dict[str, str], vla: Vla) -> TokenPacker:
    """A packer without storage, its sizes from the file's metadata."""
    sizes = parse_json(_SIZES, metadata.get("config", ""), f"{path}: config", "train the packer again")
    if sizes.width != vla.width:
        raise ModelError(
            f"{path}: config: width: {sizes.width}, but {vla.path} gives tokens of width {vla.width}; train the packer "
            "with this VLA"
        )
    check_encoder(path, metadata, vla, KIND)
    _check_language(path, metadata, vla)
    try:
        with torch.device("meta"):
            return TokenPacker(sizes.width, sizes.heads)
    except ValueError as error:
        raise ModelError(f"{path}: config: {error}; train the packer again") from error


def _check_language(path: Path, metadata: dict[str, str], vla: Vla) -> None:
    """Raises ModelError where the packer was trained with another language model than the VLA's."""
    trained = metadata.get("language")
    if trained is None:
        raise ModelError(
            f"{path}: language: missing, so it is not known which language model was trained with it (a file of an "
            "earlier version); train VLA and packer again (`fastdrive train tiny_language_packed`)"
        )
    if trained != vla.language_fingerprint:
        raise ModelError(
            f"{path}: language: trained with the language model {trained[:12]!r}, but {vla.path} has "
            f"{vla.language_fingerprint[:12]!r}; train the packer with this VLA (`packed` of a vla_language recipe), "
            "or use the VLA directory that it was made in"
        )
