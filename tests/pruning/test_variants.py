"""ReconPruner with the node's options, as rows to compare: they choose as the node does."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.families import VisualTokens, load_vla
from fastdrive_node.files import SHIPPED_PRUNER
from fastdrive_node.planning.loading import open_pipeline, own_file
from fastdrive_node.pruning.baselines.coverage import CoveragePruner, evenly_spaced
from fastdrive_node.pruning.calibration import Calibration, CameraScale, FitRecord
from fastdrive_node.pruning.catalog import (
    NAMES,
    VARIANT_FILES,
    VARIANTS,
    ScoreOptions,
    TemporalSettings,
    reads_given_file,
)
from fastdrive_node.pruning.checkpoint import save_pruner
from fastdrive_node.pruning.pruner import PruningContext
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.pruning.registry import make_pruner
from fastdrive_node.pruning.score_pruner import RefinedPruner, ScorePruner
from fastdrive_node.pruning.temporal import FrameContext
from fastdrive_node.types import EgoState
from fastdrive_training.engine.config import load_recipe
from tests.generation import choose

GRID = (2, 3)
FIT = FitRecord("toy", "val", 10, 0.1, 0.01)


class Fixed:
    """A module whose scores are the first number of each token."""

    camera_bias = None

    def __call__(self, tokens, grid):
        return tokens[..., 0]


def _frame(t0_ns=0):
    return FrameContext(t0_ns, ("A", "B"), (), EgoState(t0_ns, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0))


def _context(scores, t0_ns=0, state=None):
    tokens = torch.zeros(2, 6, 4)
    tokens[..., 0] = torch.tensor(scores)
    tokens[..., 1] = 5.0
    return PruningContext.of(tokens, GRID, frame=_frame(t0_ns), state=state)


def _pruner(options, **scales):
    calibration = Calibration({name: CameraScale(*pair) for name, pair in scales.items()}, FIT) if scales else None
    return RefinedPruner(ScorePruner(Fixed()), options, calibration, ("A", "B"), "toy")


SCORES = [[3.0, 2.0, 1.0, -1.0, -2.0, -3.0], [3.5, 2.5, 1.5, -1.5, -2.5, -3.5]]


def test_calibrated_ranks_cameras_by_their_probability():
    pruner = _pruner(ScoreOptions(calibrated=True), A=(1.0, 0.0), B=(1.0, -2.0))  # B's scores say less
    assert choose(pruner, _context(SCORES), 3).tolist() == [0, 1, 6]
    assert choose(ScorePruner(Fixed()), _context(SCORES), 3).tolist() == [0, 6, 7]


def test_adaptive_keeps_what_passes_its_threshold_and_at_most_the_budget():
    options = ScoreOptions(keep_threshold=0.5, k_min=1)
    pruner = _pruner(options, A=(1.0, 0.0), B=(1.0, 0.0))
    assert choose(pruner, _context(SCORES), 9).tolist() == [0, 1, 2, 6, 7, 8]
    assert choose(pruner, _context(SCORES), 2).tolist() == [0, 6]


def test_temporal_chooses_by_the_sets_before():
    pruner = _pruner(ScoreOptions(temporal=TemporalSettings(change=0.0, memory=0.9)))
    assert pruner.remembers
    before = [_context([row[::-1] for row in SCORES], t0_ns=step * 10**8) for step in range(2)]
    state = pruner.state_after(before)
    assert choose(pruner, _context(SCORES, 2 * 10**8, state), 2).tolist() == [5, 11]
    assert choose(pruner, _context(SCORES, 2 * 10**8), 2).tolist() == [0, 6]
    assert choose(pruner, _context(SCORES, 9 * 10**8, state), 2).tolist() == [0, 6]  # too long ago
    assert pruner.state_after([]) is None


def test_state_depends_on_every_set_before():
    pruner = _pruner(ScoreOptions(temporal=TemporalSettings(change=0.0, memory=0.5)))
    first, second = (_context([row[::-1] for row in SCORES], 0), _context(SCORES, 10**8))
    expected = 0.5 * second.tokens[..., 0] + 0.5 * first.tokens[..., 0]
    np.testing.assert_allclose(pruner.state_after([first, second]).scores, expected)


EVEN = [ScoreOptions(even_spacing=0.5), ScoreOptions(even_spacing=0.5, temporal=TemporalSettings())]


@pytest.mark.parametrize("options", EVEN)
def test_a_fraction_is_evenly_spaced_and_the_rest_goes_by_score(options):
    kept = choose(_pruner(options), _context(SCORES), 6).tolist()
    floor = evenly_spaced(_context(SCORES).visual, 3).tolist()
    by_score = [place for place in (6, 0, 7, 1, 8, 2) if place not in floor][:3]
    assert kept == sorted(floor + by_score) and kept != choose(_pruner(ScoreOptions()), _context(SCORES), 6).tolist()


@pytest.mark.parametrize(("fraction", "keep"), [(0.0, 5), (0.1, 5), (1.0, 5), (1.0, 12), (0.99, 1)])
def test_even_spacing_goes_from_scores_alone_to_coverage(fraction, keep):
    context = _context(SCORES)
    alone = ScorePruner(Fixed()) if int(fraction * keep) == 0 else CoveragePruner()
    kept = choose(_pruner(ScoreOptions(even_spacing=fraction)), context, keep)
    assert kept.tolist() == choose(alone, context, keep).tolist()


def test_even_spacing_needs_no_frame_and_serves_images_of_several_sizes():
    rows = torch.zeros(1, 20, 4)
    rows[0, :, 0] = torch.arange(20.0)
    visual = VisualTokens(rows[0], torch.arange(20), (1, 20, 1), grids=((2, 4), (3, 4)))
    kept = choose(_pruner(ScoreOptions(even_spacing=0.5)), PruningContext(visual), 10).tolist()
    assert set(evenly_spaced(visual, 5).tolist()) <= set(kept) and kept[-3:] == [17, 18, 19]


def test_even_spacing_refuses_an_engine_that_gives_its_best_tokens_alone():
    visual = VisualTokens(torch.zeros(4, 4), torch.tensor([0, 6, 7, 1]), (2, 2, 3), torch.tensor(SCORES))
    pruner = RefinedPruner(ScorePruner(None), ScoreOptions(even_spacing=0.5), None, ("A", "B"))
    assert not pruner.ranks_by_engine
    with pytest.raises(ModelError, match=r"even_spacing.*--max-keep"):
        choose(pruner, PruningContext(visual), 3)


def test_frame_is_needed():
    pruner = _pruner(ScoreOptions(temporal=TemporalSettings()))
    with pytest.raises(ModelError, match="frame"):
        choose(pruner, PruningContext.of(torch.ones(2, 6, 4), GRID), 3)


@pytest.fixture
def vla(tiny_dir, tmp_path):
    """A VLA directory with the pruner files of all variants, without a calibration."""
    vla = load_vla(shutil.copytree(tiny_dir, tmp_path / "vla"))
    for name in (SHIPPED_PRUNER, *VARIANT_FILES.values()):
        save_pruner(vla.path / name, ReconPruner(vla.family, vla.config.text_config), vla.encoder_fingerprint)
    return vla


def test_variants_that_need_a_calibration_refuse_a_file_without_one(vla):
    file = vla.path / SHIPPED_PRUNER
    for name, options in VARIANTS.items():
        if options.needs_calibration:
            with pytest.raises(ModelError, match=f"{name}.*fastdrive calibrate"):
                make_pruner(name, vla, file)
        else:
            assert make_pruner(name, vla, file).name == name
    with pytest.raises(ModelError, match="a pruner file"):
        make_pruner("reconpruner-temporal", vla)


@pytest.mark.parametrize(
    ("name", "file", "recipe"),
    [
        ("reconpruner-plan-pooled", "reconpruner_plan", "distil_tiny_plan"),
        ("reconpruner-plan", "reconpruner_plan", "distil_tiny_plan"),
        ("reconpruner-lite", "reconpruner_lite", "distil_tiny_lite"),
        ("reconpruner-even50", "reconpruner", "recon_tiny"),
    ],
)
def test_a_name_whose_file_is_missing_tells_how_to_make_it(tiny_vla, name, file, recipe):
    shipped = tiny_vla.path / SHIPPED_PRUNER
    told = rf"{file}\.safetensors: no such pruner file, and {file.replace('_', '-')} needs it; train one \(`fastdrive "
    with pytest.raises(ModelError, match=rf"{told}train {recipe}` .*copy it to this path, or use a VLA that has it"):
        make_pruner(name, tiny_vla, shipped)
    with pytest.raises(ModelError, match=told):
        open_pipeline(tiny_vla.path, name)
    load_recipe(recipe)
    with pytest.raises(ModelError, match=r"vla/reconprune: no such .* of this name; did you mean reconpruner\?"):
        make_pruner("reconpruner", tiny_vla, Path("vla/reconprune"))
    with pytest.raises(ModelError, match=r"of this name; docs/pruners.md has the names; train one"):
        make_pruner("reconpruner", tiny_vla, Path("vla/x.safetensors"))


def test_a_name_reads_the_given_pruner_file_or_one_of_its_own():
    given = {name for name in NAMES if reads_given_file(name)}
    assert given == {"reconpruner", *VARIANTS} - {"reconpruner-plan-pooled"}
    assert {name for name in NAMES if own_file(Path("vla"), name) == Path("vla") / SHIPPED_PRUNER} == given
