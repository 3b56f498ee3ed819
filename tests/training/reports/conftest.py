"""What no test of pages looks at: the lines of charts, and the third digit of an interval."""

from __future__ import annotations

import pytest
from markupsafe import Markup

from fastdrive_training.evaluation import intervals
from fastdrive_training.reports import charts
from fastdrive_training.reports.open_loop import curves


@pytest.fixture(scope="package", autouse=True)
def few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "RESAMPLES", 200)
        yield


@pytest.fixture
def undrawn(monkeypatch):
    """Charts are their titles and descriptions: drawing takes most of a page's time."""
    form = Markup('<svg role="img"><title>{}</title><desc>{}</desc></svg>')
    for module in (charts, curves):
        monkeypatch.setattr(module, "page_svg", lambda figure, name, title, text: form.format(title, text))
