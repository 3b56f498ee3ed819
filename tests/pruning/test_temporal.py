import dataclasses
import math
from itertools import pairwise

import pytest
import torch

from fastdrive_node.families import VisualTokens
from fastdrive_node.pruning.temporal import (
    FrameContext,
    TemporalSettings,
    TemporalState,
    temporal_scores,
    token_change,
    why_stale,
)
from fastdrive_node.types import EgoState

GRID = (3, 4)
CAMERAS = ("CAM_FRONT", "CAM_BACK")
SETTINGS = TemporalSettings(change=1.0, memory=0.0, max_gap_s=0.25)


def visual(tokens):
    return VisualTokens.from_raster(tokens, GRID)


def random_tokens(seed=0):
    return torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(seed))


def ego(t_s=0.0, speed=8.0, yaw_rate=0.0, **changes):
    """A vehicle that drives along x from the origin."""
    return dataclasses.replace(EgoState(int(t_s * 1e9), speed * t_s, 0.0, 0.0, speed, 0.0, yaw_rate), **changes)


def frame(t_s=0.0, missing=(), cameras=CAMERAS, **changes):
    return FrameContext(round(t_s * 1e9), cameras, missing, ego(t_s, **changes))


def state_at(t_s=0.0, tokens=None, scores=None, **changes):
    scores = torch.zeros(2, 12) if scores is None else scores
    tokens = random_tokens() if tokens is None else tokens
    return temporal_scores(scores, visual(tokens), frame(t_s, **changes), SETTINGS)[1]


def stale(now, before=None, settings=SETTINGS, grid=GRID):
    return why_stale(before or state_at(), now, grid, settings)


def test_without_a_state_the_scores_stay_as_they_are():
    scores = torch.randn(2, 12)
    refined, state = temporal_scores(scores, visual(random_tokens()), frame(), SETTINGS)
    assert torch.equal(refined, scores) and torch.equal(state.scores, scores)


def test_weights_of_zero_leave_the_scores_as_they_are():
    scores, nothing = torch.randn(2, 12), TemporalSettings(change=0.0, memory=0.0)
    state = state_at(scores=torch.ones(2, 12))
    assert torch.equal(
        temporal_scores(scores, visual(random_tokens(1)), frame(0.1), nothing, state)[0],
        scores,
    )


def test_a_token_that_appears_gains_most():
    before = random_tokens()
    now = before.clone()
    now[0, 5] = random_tokens(7)[0, 5]
    scores = torch.ones(2, 12) + torch.arange(12) / 100
    refined, _ = temporal_scores(scores, visual(now), frame(0.1), SETTINGS, state_at())
    gain = (refined - scores).flatten()
    assert gain[5] > 0.02
    assert gain[torch.arange(24) != 5].abs().max() < 1e-4


def test_novelties_of_the_background_gain_less_than_those_of_the_foreground():
    now = random_tokens()
    now[0, 5], now[1, 5] = random_tokens(7)[0, 5], random_tokens(8)[1, 5]
    scores = torch.zeros(2, 12)
    scores[0, 5], scores[1, 5] = 4.0, -4.0
    refined, _ = temporal_scores(scores, visual(now), frame(0.1), SETTINGS, state_at())
    gain = refined - scores
    assert gain[0, 5] > 10 * gain[1, 5] > 0


def test_the_formula_is_the_one_that_is_written_down():
    now, scores, before = random_tokens(3), torch.randn(2, 12), torch.randn(2, 12)
    settings = TemporalSettings(change=0.7, memory=0.4)
    state = state_at(scores=before)
    refined, left = temporal_scores(scores, visual(now), frame(0.1), settings, state)
    units = torch.nn.functional.normalize(now, dim=-1)
    z = token_change(units, state.tokens, GRID, 1)
    expected = 0.6 * scores + 0.4 * before + 0.7 * scores.std() * scores.sigmoid() * z
    torch.testing.assert_close(refined, expected)
    assert torch.equal(left.scores, refined)


def test_what_moves_by_one_cell_is_not_new_and_by_two_is():
    before = torch.nn.functional.normalize(random_tokens(), dim=-1)
    grid_of = before.view(2, 3, 4, -1)
    by_one = torch.roll(grid_of, 1, dims=2).reshape(before.shape)
    inner = [index for index in range(12) if index % 4]  # what came round the edge is new
    assert token_change(by_one, before, GRID, reach=1)[:, inner].max() < 1e-3
    assert token_change(by_one, before, GRID, reach=0)[:, inner].max() > 0.5


def test_a_change_of_every_token_alike_is_nobodys():
    """As where the vehicle drives fast: the median is taken off."""
    before = torch.nn.functional.normalize(random_tokens(), dim=-1)
    assert token_change(-before, before, GRID, reach=0).max() < 1e-3


def test_noise_of_pictures_that_stand_still_is_no_change():
    before = torch.nn.functional.normalize(random_tokens(), dim=-1)
    noisy = torch.nn.functional.normalize(before + 1e-3 * random_tokens(5), dim=-1)
    assert token_change(noisy, before, GRID, reach=1).max() < 0.1


def test_tokens_that_are_not_known_are_not_new():
    """An engine gives NaN for the tokens that it leaves out."""
    before, now = random_tokens(), random_tokens()
    before[0, :6], now[1, 3:5] = torch.nan, torch.nan
    now[0, 9] = random_tokens(4)[0, 9]
    state = state_at(tokens=before)
    refined, left = temporal_scores(torch.arange(24.0).view(2, 12), visual(now), frame(0.1), SETTINGS, state)
    assert torch.isfinite(refined).all() and torch.isfinite(left.tokens).all()
    change = token_change(left.tokens, state.tokens, GRID, 0)
    assert (change[0, :6] == 0).all() and (change[1, 3:5] == 0).all() and change[0, 9] > 0.9


def test_memory_keeps_the_choice_steadier():
    generator = torch.Generator().manual_seed(0)
    settings = TemporalSettings(change=0.0, memory=0.7)
    truth, tokens, state = torch.linspace(-2, 2, 24).view(2, 12), random_tokens(), None
    plain, refined = [], []
    for step in range(20):
        scores = truth + torch.randn(2, 12, generator=generator)
        after, state = temporal_scores(scores, visual(tokens), frame(0.1 * step), settings, state)
        plain.append(set(scores.flatten().topk(6).indices.tolist()))
        refined.append(set(after.flatten().topk(6).indices.tolist()))

    def changes(kept):
        return sum(len(after - before) for before, after in pairwise(kept))

    assert changes(refined) < 0.6 * changes(plain)


def test_the_result_is_the_same_on_every_call():
    arguments = (torch.randn(2, 12), visual(random_tokens(2)), frame(0.1), TemporalSettings(), state_at())
    first, again = temporal_scores(*arguments)[0], temporal_scores(*arguments)[0]
    assert torch.equal(first, again)


def test_scores_and_state_of_the_caller_are_not_changed():
    scores, state = torch.randn(2, 12), state_at()
    copies = scores.clone(), state.scores.clone(), state.tokens.clone()
    temporal_scores(scores, visual(random_tokens(2)), frame(0.1), TemporalSettings(), state)
    assert all(torch.equal(a, b) for a, b in zip(copies, (scores, state.scores, state.tokens), strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    scores = torch.zeros(2, 12)
    scores[1, 1] = bad
    with pytest.raises(ValueError, match="scores: not finite"):
        temporal_scores(scores, visual(random_tokens()), frame(), SETTINGS)


def test_the_next_set_may_use_the_state():
    assert stale(frame(0.1)) is None
    assert stale(frame(0.25)) is None


@pytest.mark.parametrize(
    "now,reason",
    [
        (frame(0.3), "gap of 0.30 s"),
        (frame(0.0), "time went back"),
        (frame(-1.0), "time went back by 1.00 s"),
        (frame(0.1, missing=("CAM_BACK",)), "another set of cameras"),
        (frame(0.1, cameras=CAMERAS[::-1]), "another set of cameras"),
        (frame(0.1, cameras=(*CAMERAS, "CAM_FRONT_LEFT")), "another set of cameras"),
        (frame(0.1, x_m=4.0), "pose jumped by 3.2 m"),
        (frame(0.1, y_m=-2.5), "pose jumped by 2.5 m"),
        (frame(0.1, yaw_rad=1.0), "heading jumped by 57 deg"),
        (frame(0.1, x_m=math.nan), "pose jumped"),
        (frame(0.1, speed_mps=math.inf), "pose jumped"),
        (frame(0.1, yaw_rad=math.nan), "pose jumped"),
    ],
)
def test_a_state_that_must_not_be_used_is_named(now, reason):
    assert reason in stale(now)


def test_a_state_of_a_degraded_set_serves_no_whole_one():
    degraded = state_at(missing=("CAM_BACK",))
    assert stale(frame(0.1), degraded) == "another set of cameras"
    assert stale(frame(0.1, missing=("CAM_BACK",)), degraded) is None


def test_another_token_grid_is_another_set_of_cameras():
    assert stale(frame(0.1), grid=(4, 3)) == "another set of cameras"


def test_a_bend_that_the_yaw_rate_explains_is_no_jump():
    rate, speed, t = 1.5, 8.0, 0.2
    turned = rate * t
    x, y = speed / rate * math.sin(turned), speed / rate * (1 - math.cos(turned))
    before = state_at(yaw_rate=rate)
    assert stale(frame(t, yaw_rate=rate, x_m=x, y_m=y, yaw_rad=turned), before) is None
    assert "heading jumped" in stale(frame(t, x_m=x, y_m=y, yaw_rad=-1.0), before)


def test_headings_are_compared_around_the_circle():
    before = state_at(yaw_rad=math.pi - 0.01)
    assert stale(frame(0.1, x_m=-0.8, yaw_rad=-math.pi + 0.01), before) is None


@pytest.mark.parametrize("name,value", [("change", -1.0), ("memory", 1.0), ("reach", -1), ("max_gap_s", math.nan)])
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        TemporalSettings(**{name: value})


def test_a_state_says_where_it_is_from():
    state = state_at(0.2)
    assert isinstance(state, TemporalState) and state.frame == frame(0.2) and state.grid == GRID
