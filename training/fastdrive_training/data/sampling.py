"""Which samples of a dataset are used."""

from __future__ import annotations

import numpy as np


def evenly_spaced(total: int, count: int | None) -> np.ndarray:
    """int64 positions of ``count`` samples of ``total``, evenly spaced; all where ``count`` is None or larger."""
    if count is None or count >= total:
        return np.arange(total)
    return (np.arange(count) * total) // count
