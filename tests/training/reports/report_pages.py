"""Pages as tests read them."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from fastdrive_node.cli import main

VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """The elements and text of a page; complains where tags do not close."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, name: str) -> list[dict]:
        return [attributes for tag, attributes in self.tags if tag == name]


def evaluate_report(folder: Path, vla_dir: Path, *more) -> Page:
    """The page that ``fastdrive evaluate-report`` writes into a run's folder, with further arguments."""
    assert main(["evaluate-report", str(folder), "--vla", str(vla_dir), *map(str, more)]) == 0
    return Page((folder / "report.html").read_text())
