import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdrive_node.pruning.select import CameraFloors, keep_count, select_top


@pytest.mark.parametrize(
    "total,drop,keep",
    [(192, 0.75, 48), (192, 0.0, 192), (3249, 0.25, 2436), (3249, 0.75, 812), (10, 0.9, 1), (3, 0.5, 1)],
)
def test_keep_count_is_the_floor_of_the_papers_formula(total, drop, keep):
    assert keep_count(total, drop) == keep


@pytest.mark.parametrize("drop", [-0.1, 0.96, float("nan")])
def test_a_ratio_outside_of_its_range_is_refused(drop):
    with pytest.raises(ValueError, match="drop"):
        keep_count(192, drop)


def test_a_ratio_that_keeps_nothing_is_refused():
    with pytest.raises(ValueError, match=r"0\.95 keeps none of 19"):
        keep_count(19, 0.95)


def test_the_highest_scores_over_all_cameras_win_in_raster_order():
    scores = torch.tensor([[0.1, 5.0, -1.0], [4.0, 0.2, 6.0]])
    assert select_top(scores, 3).tolist() == [1, 3, 5]


def test_equal_scores_are_taken_by_index():
    assert select_top(torch.zeros(6, 32), 48).tolist() == list(range(48))
    scores = torch.zeros(2, 4)
    scores[1, 2] = 1
    assert select_top(scores, 3).tolist() == [0, 1, 6]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="scores: not finite"):
        select_top(torch.tensor([[0.0, bad]]), 1)


@pytest.mark.parametrize("keep", [0, 13])
def test_counts_that_cannot_be_met_are_refused(keep):
    with pytest.raises(ValueError, match="keep"):
        select_top(torch.zeros(3, 4), keep)


@given(st.integers(1, 6), st.integers(1, 12), st.data())
def test_a_choice_is_ascending_complete_and_no_better_token_is_left(cameras, count, data):
    values = data.draw(st.lists(st.integers(-3, 3), min_size=cameras * count, max_size=cameras * count))
    keep = data.draw(st.integers(1, cameras * count))
    scores = torch.tensor(values, dtype=torch.float32).reshape(cameras, count)
    chosen = select_top(scores, keep)
    assert len(chosen) == keep and bool((chosen.diff() > 0).all())
    flat, left = scores.flatten(), torch.ones(cameras * count, dtype=torch.bool)
    left[chosen] = False
    assert not bool(left.any()) or float(flat[left].max()) <= float(flat[chosen].min())


SCORES = torch.tensor([[0.1, 5.0, -1.0], [4.0, 0.2, 6.0], [-9.0, -7.0, -8.0]])


def floors(least: int, missing: int | None = None) -> CameraFloors:
    cameras = torch.arange(3).repeat_interleave(3)
    return CameraFloors(least, torch.where(cameras == missing, -1, cameras) if missing is not None else cameras)


def test_each_camera_keeps_its_best_tokens_and_the_others_go_by_score():
    assert select_top(SCORES, 4, floors(1)).tolist() == [1, 3, 5, 7]
    assert select_top(SCORES, 6, floors(2)).tolist() == [0, 1, 3, 5, 7, 8]


def test_a_camera_of_which_enough_is_kept_changes_nothing():
    assert select_top(SCORES, 8, floors(1)).tolist() == select_top(SCORES, 8).tolist()


def test_a_missing_camera_has_no_floor():
    assert select_top(SCORES, 3, floors(1, missing=2)).tolist() == select_top(SCORES, 3).tolist()


def test_fewer_tokens_than_the_floors_are_refused():
    with pytest.raises(ValueError, match="keep: 5 tokens, but camera_floor keeps 6"):
        select_top(SCORES, 5, floors(2))


@given(st.integers(1, 6), st.integers(1, 12), st.data())
def test_a_choice_with_floors_is_a_beginning_of_the_sorted_tokens_and_the_floors(cameras, count, data):
    values = data.draw(st.lists(st.integers(-3, 3), min_size=cameras * count, max_size=cameras * count))
    least = data.draw(st.integers(0, count))
    keep = data.draw(st.integers(max(1, cameras * least), cameras * count))
    scores = torch.tensor(values, dtype=torch.float32).reshape(cameras, count)
    numbers = torch.arange(cameras).repeat_interleave(count)
    chosen = select_top(scores, keep, CameraFloors(least, numbers))
    assert len(chosen) == keep and bool((chosen.diff() > 0).all())
    assert bool((torch.bincount(numbers[chosen], minlength=cameras) >= least).all())
    order = torch.sort(scores.flatten(), descending=True, stable=True).indices
    best = {int(place) for camera in range(cameras) for place in order[numbers[order] == camera][:least]}
    beginning = 0
    while beginning < len(order) and int(order[beginning]) in set(chosen.tolist()):
        beginning += 1
    assert set(chosen.tolist()) == best | set(order[:beginning].tolist())
