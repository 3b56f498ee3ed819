"""DivPrune, VisPruner and Prune2Drive: by hand; ``test_rules`` compares them with their rules written out."""

import json
import math
import shutil

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fastdrive_node.errors import ModelError
from fastdrive_node.families import load_vla
from fastdrive_node.files import VIEW_WEIGHTS_FILE
from fastdrive_node.pruning.baselines.diversity import DivPrune, directions, farthest_points, most_isolated
from fastdrive_node.pruning.baselines.prune2drive import (
    Prune2Drive,
    Prune2DriveInput,
    save_weights,
    split_budget,
)
from fastdrive_node.pruning.baselines.vispruner import VisPruner, without_duplicates
from fastdrive_node.pruning.layer_pruning import LayerStep, Reached
from fastdrive_node.pruning.pruner import ContextField, PruningContext
from fastdrive_node.pruning.registry import make_pruner
from fastdrive_node.types import CAMERAS
from tests.generation import choose
from tests.pruning import rules


def at_angles(*degrees):
    """Unit vectors [n, 2]; the cosine distance of two grows with the angle between them."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def context_of(vectors, **fields):
    return PruningContext.of(vectors[None], (1, len(vectors)), **fields)


def random_tokens(cameras=1, count=40, seed=0, width=16):
    return torch.randn(cameras, count, width, generator=torch.Generator().manual_seed(seed))


def test_divprune_by_hand():
    vectors = at_angles(0.0, 10.0, 100.0, 30.0, 170.0)
    # nearest neighbours: 10, 10, 70, 20 and 70 degrees away: starts with 2 (the earlier of two), then 0 (100 degrees),
    # then of 1 (10 from 0), 3 (30), 4 (70) the last
    assert most_isolated(vectors) in (2, 4)
    assert choose(DivPrune(), context_of(vectors), 1).tolist() in ([2], [4])
    assert farthest_points(vectors, 2, 2).tolist() == [0, 2]
    assert farthest_points(vectors, 3, 2).tolist() == [0, 2, 4]
    assert farthest_points(vectors, 5, 2).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("keep", [1, 2, 13, 79, 80])
def test_divprune_is_the_greedy_max_min_set_over_all_cameras(keep):
    tokens = random_tokens(cameras=2)
    kept = choose(DivPrune(), PruningContext.of(tokens, (5, 8)), keep)
    assert kept.tolist() == rules.divprune(tokens.flatten(0, 1).double().numpy(), keep)


def test_divprune_ignores_the_length_of_tokens():
    tokens = random_tokens()
    stretched = tokens * torch.linspace(0.1, 9, 40)[:, None]
    kept = choose(DivPrune(), PruningContext.of(tokens, (5, 8)), 10)
    assert torch.equal(choose(DivPrune(), PruningContext.of(stretched, (5, 8)), 10), kept)


def test_the_most_isolated_token_is_found_in_parts_too(monkeypatch):
    vectors = directions(random_tokens(count=100))
    whole = most_isolated(vectors)
    monkeypatch.setattr("fastdrive_node.pruning.baselines.diversity._ROWS", 7)
    assert most_isolated(vectors) == whole


def test_equal_and_zero_tokens_still_give_as_many_as_asked():
    for tokens in (torch.ones(1, 12, 4), torch.zeros(1, 12, 4)):
        for pruner in (DivPrune(), Prune2DriveInput()):
            kept = choose(pruner, PruningContext.of(tokens, (3, 4)), 5)
            assert len(set(kept.tolist())) == 5


def test_vispruner_by_hand():
    vectors = at_angles(0.0, 90.0, 2.0, 45.0, 90.5, 180.0)
    attention = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3, 0.4])
    # keep 4: 1 and 3 by attention; 5, 4, 2, 0 are left, in the order of falling attention: even 5 and 2, odd 4 and 0;
    # 2 is 2 degrees from 0, 5 is 89.5 from 4, so of the even ones both go, for two too many are left
    context = context_of(vectors, tower_attention=attention[None])
    assert choose(VisPruner(), context, 4).tolist() == [0, 1, 3, 4]
    # keep 5: half is 2; one is too many, and that is 2
    assert choose(VisPruner(), context, 5).tolist() == [0, 1, 3, 4, 5]
    assert choose(VisPruner(), context, 6).tolist() == [0, 1, 2, 3, 4, 5]


def test_vispruner_goes_on_with_the_even_tokens_that_stay_and_behind_them_the_odd_ones():
    # 20 tokens: ten pairs, the distance of each pair larger than of the one before; of the even ones 8 go
    degrees = [17.0 * pair + side * (0.1 + 0.5 * pair) for pair in range(10) for side in (0, 1)]
    vectors = at_angles(*degrees)
    first = without_duplicates(vectors, torch.arange(20), 12)
    assert first.tolist() == [16, 18, *range(1, 20, 2)]
    # then 16 (even) and 18 (odd), 1 and 3, 5 and 7, ...: even 16, 1, 5, 9, 13, 17 against odd 18, 3, 7, 11, 15, 19
    assert set(without_duplicates(vectors, torch.arange(20), 6).tolist()) == {18, 3, 7, 11, 15, 19}


@pytest.mark.parametrize("total,keep", [(3249, 812), (33, 1), (9, 4), (2, 1)])
def test_vispruner_keeps_as_many_as_asked_where_the_rest_is_odd(total, keep):
    kept = without_duplicates(directions(random_tokens(count=total)), torch.arange(total), keep)
    assert len(set(kept.tolist())) == len(kept) == keep


def test_vispruner_with_a_budget_of_one_keeps_one():
    context = context_of(random_tokens()[0], tower_attention=torch.rand(1, 40))
    assert len(choose(VisPruner(), context, 1)) == 1


def test_vispruner_takes_half_by_attention_over_all_cameras():
    attention = torch.arange(80.0).reshape(2, 40)
    kept = choose(VisPruner(), PruningContext.of(random_tokens(2), (5, 8), tower_attention=attention), 20)
    assert len(kept) == 20 and set(range(70, 80)) <= set(kept.tolist())


def test_vispruner_without_the_towers_attention_is_refused():
    with pytest.raises(ModelError, match="tower_attention"):
        choose(VisPruner(), context_of(random_tokens()[0]), 4)
    assert VisPruner().needs == {ContextField.TOWER_ATTENTION}


def test_prune2drive_samples_each_view_by_itself():
    tokens = random_tokens(cameras=3)
    kept = choose(Prune2DriveInput(), PruningContext.of(tokens, (5, 8)), 30)
    for view in range(3):
        vectors = directions(tokens[view])
        mine = kept[(kept >= 40 * view) & (kept < 40 * (view + 1))] - 40 * view
        assert mine.tolist() == farthest_points(vectors, 10, most_isolated(vectors)).tolist()


def test_prune2drive_starts_with_the_loneliest_token():
    vectors = at_angles(0.0, 10.0, 20.0, 100.0, 110.0, 60.0)  # 60 is 40 degrees from its nearest, all others 10
    assert choose(Prune2DriveInput(), context_of(vectors), 1).tolist() == [5]
    assert choose(Prune2DriveInput(), context_of(vectors), 2).tolist() == [0, 5]


def test_prune2drive_acts_before_layer_one():
    assert Prune2Drive().steps(28, 1000, 95) == (LayerStep(1, 95),)
    with pytest.raises(ModelError, match="prune2drive: prunes before layer 1, but the model has 1"):
        Prune2Drive().steps(1, 1000, 95)


def test_prune2drive_asks_for_no_attention():
    vectors = at_angles(0.0, 10.0, 20.0, 170.0)
    reached = Reached(vectors, torch.tensor([0, 0, 1, 1]), lambda: pytest.fail("attention was computed"))
    assert Prune2Drive((0.0, 1.0)).choose_in_layer(reached, 2).indices.tolist() == [2, 3]


def test_prune2drive_follows_the_weights_of_its_views():
    tokens = random_tokens(cameras=3)
    kept = choose(Prune2DriveInput((3.0, 0.0, 1.0)), PruningContext.of(tokens, (5, 8)), 20)
    assert torch.bincount(kept // 40, minlength=3).tolist() == [15, 0, 5]


@pytest.mark.parametrize(
    "keep,weights,capacity,expected",
    [
        (6, (1, 1, 1), 10, [2, 2, 2]),
        (7, (1, 1, 1), 10, [3, 2, 2]),  # of equal fractions the first
        (10, (3, 1, 1), 10, [6, 2, 2]),
        (20, (8, 1, 1), 10, [10, 5, 5]),  # the first view is full
        (25, (1, 0, 0), 10, [10, 8, 7]),  # only then the others
        (30, (5, 1, 0), 10, [10, 10, 10]),
        (1, (1, 1, 2), 10, [0, 0, 1]),
    ],
)
def test_budgets_are_shared_out_in_proportion(keep, weights, capacity, expected):
    assert split_budget(keep, weights, capacity) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=8), st.integers(1, 50), st.data())
def test_shared_out_budgets_add_up_and_fit(weights, capacity, data):
    assume(max(weights) > 0)
    keep = data.draw(st.integers(0, capacity * len(weights)))
    counts = split_budget(keep, weights, capacity)
    assert sum(counts) == keep and all(0 <= count <= capacity for count in counts)


@pytest.mark.parametrize("keep,weights", [(31, (1, 1, 1)), (3, (0, 0, 0))])
def test_a_budget_that_cannot_be_shared_out_is_refused(keep, weights):
    with pytest.raises(ValueError, match="divided over"):
        split_budget(keep, weights, 10)


def test_weights_beside_the_vla_are_read_in_its_camera_order(tiny_dir, tmp_path):
    shutil.copytree(tiny_dir, tmp_path / "vla")
    vla = load_vla(tmp_path / "vla")
    assert make_pruner("prune2drive", vla).weights is None
    weights = {camera: float(index) for index, camera in enumerate(reversed(CAMERAS))}
    save_weights(tmp_path / "vla" / VIEW_WEIGHTS_FILE, weights, drop=0.5)
    assert make_pruner("prune2drive", vla).weights == (5.0, 4.0, 3.0, 2.0, 1.0, 0.0)


@pytest.mark.parametrize(
    "content,message",
    [
        ("{", "not readable"),
        ('{"cameras": {"CAM_FRONT": NaN}}', "CAM_FRONT: nan: must be a finite number"),
        ('{"cameras": {"CAM_FRONT": -1}}', "CAM_FRONT"),
        ('{"cameras": {"CAM_FRONT": 1}}', "CAM_FRONT_RIGHT is missing"),
        (json.dumps({"cameras": dict.fromkeys(CAMERAS, 0)}), "no weight is above zero"),
        ("[]", "must be an object"),
    ],
)
def test_a_weights_file_that_cannot_serve_is_refused_by_name(tiny_dir, tmp_path, content, message):
    shutil.copytree(tiny_dir, tmp_path / "vla")
    (tmp_path / "vla" / VIEW_WEIGHTS_FILE).write_text(content)
    with pytest.raises(ModelError, match=message) as error:
        make_pruner("prune2drive", load_vla(tmp_path / "vla"))
    assert VIEW_WEIGHTS_FILE in str(error.value)


def test_angles_mean_what_the_cases_by_hand_say():
    unit = at_angles(0.0, 60.0)
    assert float(unit[0] @ unit[1]) == pytest.approx(math.cos(math.pi / 3), abs=1e-6)
