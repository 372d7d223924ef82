"""What tests read of a page: its elements, its text, its tables, its viewer data."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "input", "br", "line", "circle", "rect", "path", "img", "hr"}


class Page(HTMLParser):
    """Parses strictly: an element that is not closed in order is an error."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.scripts: list[tuple[dict, str]] = []
        self._open: list[str] = []
        self._words: list[str] = []
        self._rows: list[list[str]] | None = None
        self._caption = ""
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag == "table":
            self._rows = []
        elif tag == "tr" and self._rows is not None:
            self._rows.append([])
        elif tag in ("td", "th") and self._rows is not None:
            self._rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-3:]}"
        self._open.pop()
        if tag == "table":
            self.tables[self._caption] = self._rows
            self._rows = None

    def handle_data(self, data):
        inside = self._open[-1] if self._open else ""
        if inside == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif inside == "caption":
            self._caption = data
        elif inside in ("td", "th") and self._rows:
            self._rows[-1][-1] += data
        if inside not in ("script", "style"):
            self._words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self._words).split())

    @property
    def trajectories(self) -> list[dict]:
        return json.loads(next(text for a, text in self.scripts if a.get("id") == "trajectories-data"))

    def anchors(self) -> list[str]:
        return [attributes["id"] for tag, attributes in self.elements if tag == "section"]
