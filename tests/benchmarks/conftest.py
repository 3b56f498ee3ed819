"""A smaller tiny model of the benchmarks: half its depth, and half the width of its tower."""

from dataclasses import replace

import pytest


@pytest.fixture(scope="package", autouse=True)
def smaller():
    from benchmarks.perf.random_models import SIZES

    tiny = SIZES["tiny"]
    vision = {**tiny.vision, "depth": 2, "fullatt_block_indexes": [1]}
    vision |= {"hidden_size": 64, "intermediate_size": 128, "num_heads": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", replace(tiny, vision=vision, text={**tiny.text, "num_hidden_layers": 2}))
        yield
