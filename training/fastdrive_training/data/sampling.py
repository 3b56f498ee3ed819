"""Which samples of a dataset are used, and reading them ahead."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from fastdrive_node.errors import InputError
from fastdrive_training.data.adapters.base import FUTURE_INTERVAL_S, FUTURE_POINTS, ImageSource

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``count`` of some work, from 0."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"


def evenly_spaced(total: int, count: int | None) -> np.ndarray:
    """int64 positions of ``count`` samples of ``total``, evenly spaced; all where ``count`` is None or larger."""
    if count is None or count >= total:
        return np.arange(total)
    return (np.arange(count) * total) // count


def with_future(
    source: ImageSource, limit: int | None = None, points: int = FUTURE_POINTS, interval_s: float = FUTURE_INTERVAL_S
) -> tuple[list[int], int]:
    """Positions of the items with a full future, ``limit`` of them evenly spread, and how many items have none.

    Raises InputError: no item has a future of that length.
    """
    known = [index for index in range(len(source)) if source[index].future(points, interval_s) is not None]
    if not known:
        raise InputError(
            f"{source.root}: none of the {len(source)} items has a recorded future of {points * interval_s:g} s; use "
            "longer scenes, or a dataset with ego motion"
        )
    return [known[place] for place in evenly_spaced(len(known), limit)], len(source) - len(known)


def read_ahead(things: Iterator[Thing]) -> Iterator[Thing]:
    """The same things; the next one is made in a thread while the caller works on one."""
    with ThreadPoolExecutor(1) as reader:
        pending = reader.submit(next, things, None)
        while (thing := pending.result()) is not None:
            pending = reader.submit(next, things, None)
            yield thing
