"""One HTML file that holds everything: template, style, script and data; no server, no network, no other file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reports.page.data import dumps, page_data
from reports.paper.comparison import PaperTable
from reports.records.groups import Group
from reports.records.peft_results import Foreign
from reports.records.reading import Gathered
from results.published import Cell

PARTS = Path(__file__).parent
# In order: each may use what stands before it.
SCRIPTS = (
    "core.js",
    "state.js",
    "save.js",
    "tables.js",
    "charts.js",
    "sections.js",
    "tuning.js",
    "papers.js",
    "drawer.js",
    "app.js",
)
STYLES = ("base.css", "parts.css")


def page_html(
    gathered: Gathered, papers: Sequence[PaperTable], published: Sequence[Cell], groups: Sequence[Group],
    foreign: Sequence[Foreign] = (), link: str | None = None,
) -> str:  # fmt: skip
    """Return the page.

    Args:
        link: path from the page to the folder that the records' paths start from, so that they can be followed; None
            where there is no such way, as for a page that leaves the repository.
    """
    data = page_data(gathered, papers, published, groups, foreign, link)
    marks = {
        "STYLE": "\n".join(_read(name) for name in STYLES),
        "DATA": embedded(dumps(data)),
        "SCRIPT": "\n".join(_read(name) for name in SCRIPTS),
    }
    text = _read("template.html")
    for name, content in marks.items():
        mark = f"@@{name}@@"
        assert text.count(mark) == 1, f"template.html: {mark} must stand there once"
        before, after = text.split(mark)
        text = before + content + after
    return text


def embedded(json_text: str) -> str:
    """Return JSON that cannot end the script element it stands in, whatever texts the records hold."""
    return json_text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _read(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")
