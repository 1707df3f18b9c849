"""Tables of the committed snapshot inside README.md and docs/*.md, so that no number there is typed by hand.

Between `<!-- table: FOLDER/NAME.md -->` and `<!-- end -->` stand the caption and the table of that file under
`reports/snapshot/`; its notes stay in the file. `NAME` alone stands for `NAME/NAME.md`.
"""

from __future__ import annotations

import re
from pathlib import Path

BLOCK = re.compile(r"(<!-- table: (?P<name>[\w./-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def documents(root: Path) -> list[Path]:
    """Return the documents of the repository at `root` that may hold tables: its README first, then docs/."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def filled(text: str, snapshot: Path) -> str:
    """Return a document's text with every marked table as it stands in the snapshot.

    Raises:
        ValueError: a marked file is not in the snapshot, or holds no table.
    """

    def block(match: re.Match[str]) -> str:
        name = match["name"] if match["name"].endswith(".md") else f"{match['name']}/{match['name']}.md"
        return f"{match[1]}\n{caption_and_table(snapshot / name)}\n{match[3]}"

    return BLOCK.sub(block, text)


def caption_and_table(path: Path) -> str:
    """Return the part of a Markdown table's file before its notes.

    Raises:
        ValueError: the file is missing or holds no table.
    """
    if not path.is_file():
        suite = path.parent.name.partition("-")[0]
        raise ValueError(f"{path}: no such table; build it with `python -m reports {suite} --out {path.parent.parent}`")
    lines = path.read_text().splitlines()
    rows = [index for index, line in enumerate(lines) if line.startswith("|")]
    if not rows:
        raise ValueError(f"{path}: holds no table")
    return "\n".join(lines[: rows[-1] + 1]) + "\n"
