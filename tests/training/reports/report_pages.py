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


def check_stands_alone(page: Page, pictures: tuple[str, ...]) -> None:
    """Nothing is fetched; ``pictures``: how the source of an image may begin."""
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    for tag, attributes in page.tags:
        for key, value in attributes.items():
            if key == "src":
                assert value.startswith(pictures)
            if key in ("href", "xlink:href"):
                assert value.startswith("#"), (tag, value)
            if not key.startswith("xmlns"):
                assert "http" not in (value or ""), (tag, key)


def check_references(page: Page) -> None:
    """Ids differ, and what refers to one has its target."""
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        references = [attributes[key][1:] for key in ("href", "xlink:href") if key in attributes]
        references += (attributes.get("aria-labelledby") or "").split()
        clip = attributes.get("clip-path") or ""
        references += [clip[5:-1]] if clip.startswith("url(#") else []
        assert set(references) <= set(ids)


def evaluate_report(folder: Path, vla_dir: Path, *more) -> Page:
    """The page that ``fastdrive evaluate-report`` writes into a run's folder; without ``--worst`` of two samples."""
    words = [*map(str, more), *(() if "--worst" in more else ("--worst", "2"))]
    assert main(["evaluate-report", str(folder), "--vla", str(vla_dir), *words]) == 0
    return Page((folder / "report.html").read_text())
