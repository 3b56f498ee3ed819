"""Charts whose lines no test looks at."""

from __future__ import annotations

import pytest
from markupsafe import Markup

from fastdrive_training.reports import charts
from fastdrive_training.reports.open_loop import curves


@pytest.fixture
def undrawn(monkeypatch):
    """Charts are their titles and descriptions: drawing takes most of a page's time."""
    form = Markup('<svg role="img"><title>{}</title><desc>{}</desc></svg>')
    for module in (charts, curves):
        monkeypatch.setattr(module, "page_svg", lambda figure, name, title, text: form.format(title, text))
