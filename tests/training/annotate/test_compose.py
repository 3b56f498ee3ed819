"""From instances to masks: what is sure, what is in doubt."""

from __future__ import annotations

import numpy as np
import pytest

from fastdrive_training.annotate.compose import Instance, compose
from fastdrive_training.annotate.settings import IGNORE, Group
from tests.training.annotate.annotate_fixtures import settings

SIZE = (60, 100)
GROUPS = (Group("road", ("road",), min_area=0.01, max_area=0.6), Group("human", ("person",), min_area=0.001))
ROAD, HUMAN = 1, 2


def instance(rows: slice, cols: slice, group: str = "road", score: float = 0.9, quality: float = 0.9) -> Instance:
    mask = np.zeros(SIZE, bool)
    mask[rows, cols] = True
    return Instance(group, group, (cols.start, rows.start, cols.stop, rows.stop), score, quality, mask)


def plain(**composition):
    return settings(groups=GROUPS, **{"band": 0.0, "min_quality": 0.7, **composition})


def test_sure_instance_is_painted_and_the_rest_is_background():
    made = compose([instance(slice(20, 40), slice(10, 50))], SIZE, plain())
    assert made.verdicts == ("sure",)
    assert made.labels.dtype == np.uint8
    assert (made.labels[20:40, 10:50] == ROAD).all()
    assert (made.labels == ROAD).sum() == 800 and set(np.unique(made.labels)) == {0, ROAD}


def test_later_group_is_painted_over_an_earlier_one_whatever_the_order_and_score():
    road, human = instance(slice(10, 50), slice(0, 50)), instance(slice(20, 30), slice(10, 15), "human", 0.4)
    for found in ([road, human], [human, road]):
        labels = compose(found, SIZE, plain()).labels
        assert (labels[20:30, 10:15] == HUMAN).all() and labels[19, 10] == ROAD


@pytest.mark.parametrize(
    ("doubtful", "verdict"),
    [
        (instance(slice(20, 40), slice(10, 50), score=0.3), "low score"),
        (instance(slice(20, 40), slice(10, 50), quality=0.5), "poor mask"),
        (instance(slice(20, 25), slice(10, 20)), "small"),
        (instance(slice(0, 60), slice(0, 70)), "large"),
    ],
)
def test_doubtful_instance_is_ignored_and_not_background(doubtful, verdict):
    made = compose([doubtful], SIZE, plain())
    assert made.verdicts == (verdict,)
    np.testing.assert_array_equal(made.labels == IGNORE, doubtful.mask)
    assert (made.labels[~doubtful.mask] == 0).all()


def test_doubt_does_not_take_away_what_another_instance_is_sure_of():
    sure, doubtful = instance(slice(20, 40), slice(10, 50)), instance(slice(30, 50), slice(10, 50), score=0.3)
    labels = compose([doubtful, sure], SIZE, plain()).labels
    assert (labels[20:40, 10:50] == ROAD).all()
    assert (labels[40:50, 10:50] == IGNORE).all()


def test_small_loose_pieces_are_in_doubt():
    whole = instance(slice(20, 40), slice(10, 50))
    whole.mask[5, 80:82] = True
    labels = compose([whole], SIZE, plain(min_piece=0.001)).labels
    assert (labels[5, 80:82] == IGNORE).all()
    assert (labels[20:40, 10:50] == ROAD).all()


def test_band_lies_on_both_sides_of_the_border_but_not_at_the_images_edge():
    labels = compose([instance(slice(20, 60), slice(0, 50))], SIZE, plain(band=0.02)).labels  # 2 px
    assert [labels[row, 20] for row in (17, 18, 19, 20, 21, 22)] == [0, IGNORE, IGNORE, IGNORE, IGNORE, ROAD]
    assert labels[59, 20] == ROAD and labels[40, 0] == ROAD  # at the edge of the image
    assert [labels[40, col] for col in (47, 48, 51, 52)] == [ROAD, IGNORE, IGNORE, 0]


def test_no_band_between_two_kinds_of_foreground():
    found = [instance(slice(20, 50), slice(10, 50)), instance(slice(30, 45), slice(20, 40), "human")]
    labels = compose(found, SIZE, plain(band=0.02)).labels
    assert (labels[30:45, 20:40] == HUMAN).all()
    assert (labels[25, 20:40] == ROAD).all() and (labels[29, 20:40] == ROAD).all()


def test_thin_piece_keeps_its_inside():
    labels = compose([instance(slice(10, 50), slice(30, 33), "human")], SIZE, plain(band=0.02)).labels
    assert (labels[10:50, 30:33] == HUMAN).all()
    assert (labels[10:50, 28:30] == IGNORE).all() and (labels[10:50, 33:35] == IGNORE).all()


def test_nothing_found_is_all_background():
    made = compose([], SIZE, plain(band=0.02))
    assert made.verdicts == () and not made.labels.any() and made.labels.shape == SIZE
