"""One table, five forms: Markdown, LaTeX (booktabs), CSV and JSON of the values behind it, and the terminal."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table as Screen

from reports.tables.printed import printed, printed_notes
from results.store import TABLE

LATEX_WIDTH = 110

# Every character that is special to LaTeX, and every one beyond ASCII that the tables themselves print.
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "$": r"\$",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "×": r"$\times$", "÷": r"$\div$", "−": r"$-$", "–": "--", "—": "---",
    "·": r"$\cdot$", "`": r"\`{}", "≥": r"$\geq$", "≤": r"$\leq$", "√": r"$\surd$",
}  # fmt: skip
LIGATURES = re.compile(r"(?<=[-–—])(?=[-–—])|(?<=')(?=')|(?<=,)(?=,)")
"""Between characters that TeX would print as one: two hyphens as a dash."""


@dataclass(frozen=True)
class Entry:
    """One printed cell."""

    text: str
    bold: bool = False


EMPTY = Entry("—")


def with_sign(value: float, digits: int) -> str:
    """Return a change with its sign; one that is printed as nothing has none."""
    shown = f"{value:+.{digits}f}"
    return shown.replace("-", "−") if float(shown) else shown[1:]


@dataclass(frozen=True)
class Table:
    """A table as it is printed, with the machine values behind it.

    Attributes:
        name: stem of its files.
        caption: says by itself what the numbers are.
        heads: column titles; the first column is text, the others are numbers.
        rows: one tuple of entries a row.
        notes: sentences below the table.
        data: the values in full precision, bytes as integers: CSV and JSON.
    """

    name: str
    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...]
    data: pd.DataFrame = field(compare=False)

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.heads) for row in self.rows), f"{self.name}: a row of another width"


def to_csv(table: Table) -> str:
    """Return the values behind the table, unknown as an empty field, floats so that they read back exactly."""
    return str(table.data.to_csv(index=False, lineterminator="\n"))


def to_json(table: Table) -> str:
    """Return name, caption and notes, and the values behind the table as an object a row, unknown as null.

    Floats read back exactly; one that is infinite, which JSON has no word for, is a string.
    """
    names = [str(name) for name in table.data.columns]
    rows = [dict(zip(names, map(_plain, row), strict=True)) for row in table.data.itertuples(index=False, name=None)]
    told = {"name": table.name, "caption": table.caption, "notes": table.notes, "rows": rows}
    return json.dumps(told, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if pd.isna(value):
        return None
    plain = value.item() if hasattr(value, "item") else value
    known = isinstance(plain, (bool, int, str)) or (isinstance(plain, float) and math.isfinite(plain))
    return plain if known else str(plain)


def to_markdown(table: Table) -> str:
    """Return caption, table and notes as GitHub Markdown."""
    marks = ["---"] + ["---:"] * (len(table.heads) - 1)
    body = [[_bold(_markdown(entry.text), entry.bold) for entry in row] for row in table.rows]
    lines = [_line([_markdown(head) for head in table.heads]), _line(marks), *(_line(row) for row in body)]
    notes = [f"- {_markdown(note)}" for note in table.notes]
    return "\n".join([f"**{_markdown(table.caption)}**", "", *lines, "", *notes]).rstrip("\n") + "\n"


def _line(parts: list[str]) -> str:
    return f"| {' | '.join(parts)} |"


def _bold(text: str, bold: bool) -> str:
    return f"**{text}**" if bold else text


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*_`<>])", r"\\\1", " ".join(text.split()))


def latex_escape(text: str) -> str:
    """Return `text` so that pdflatex prints it as it is; a character that its fonts lack is printed as (U+code)."""
    parts = LIGATURES.split(" ".join(text.split()))
    return "{}".join("".join(LATEX.get(character, _latin(character)) for character in part) for part in parts)


def _latin(character: str) -> str:
    known = character.isascii() and character.isprintable()
    return character if known or (character.isalpha() and ord(character) < 0x180) else f"(U+{ord(character):04X})"


def to_latex(table: Table) -> str:
    """Return a `table` environment (packages booktabs and graphicx), ready for \\input, scaled down where too wide.

    Caption and notes are a paper's: see `printed`.
    """
    head, *rows = oriented(table, LATEX_WIDTH)
    sentences = printed_notes(table.notes)
    notes = [r"\par\smallskip\raggedright\footnotesize " + latex_escape(". ".join(sentences) + ".")]
    lines = [
        r"\begin{table}[htbp]",
        r"\centering\small\setlength{\belowcaptionskip}{6pt}",
        rf"\caption{{{latex_escape(printed(table.caption))}}}",
        rf"\label{{tab:{table.name}}}",
        r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        _latex_row(head),
        r"\midrule",
        *(_latex_row(row) for row in rows),
        r"\bottomrule",
        r"\end{tabular}}",
        *(notes if sentences else []),
        r"\end{table}",
    ]
    return "\n".join([*lines, ""])


def _latex_row(row: list[Entry]) -> str:
    return " & ".join(map(_cell, row)) + r" \\"


def oriented(table: Table, width: int) -> list[list[Entry]]:
    """Return head and rows as one grid, on its side where it is wider than `width` characters and that is narrower."""
    grid = [list(map(Entry, table.heads)), *map(list, table.rows)]
    turned = [list(column) for column in zip(*grid, strict=True)]
    turned[0][0] = Entry("")
    return turned if _width(grid) > width and _width(turned) < _width(grid) else grid


def _width(grid: list[list[Entry]]) -> int:
    return sum(max(len(entry.text) for entry in column) + 3 for column in zip(*grid, strict=True)) + 1


def _cell(entry: Entry) -> str:
    text = latex_escape(entry.text)
    return rf"\textbf{{{text}}}" if entry.bold else text


def latex_document(stems: list[str], figures: list[tuple[str, str]]) -> str:
    """Return a document that inputs the tables `stems`.tex and includes `figures` (file, caption) beside it."""
    tables = [rf"\input{{{stem}.tex}}" for stem in stems]
    pictures = [
        "\n".join(
            [r"\begin{figure}[htbp]", r"\centering", rf"\includegraphics[width=\textwidth]{{{file}}}",
             rf"\caption{{{latex_escape(printed(caption))}}}", r"\end{figure}"]
        )
        for file, caption in figures
    ]  # fmt: skip
    head = [
        r"\documentclass[a4paper]{article}",
        r"\usepackage[T1]{fontenc}",
        r"\usepackage[margin=2cm]{geometry}",
        r"\usepackage{booktabs,graphicx}",
        r"\begin{document}",
    ]
    return "\n".join([*head, *tables, r"\clearpage", *pictures, r"\end{document}", ""])


def to_screen(table: Table, width: int) -> Screen:
    """Return the table for a terminal of `width` columns, on its side where only that fits; no notes."""
    head, *rows = oriented(table, width)
    screen = Screen(title=escape(table.caption), title_justify="left", header_style="bold")
    for index, entry in enumerate(head):
        screen.add_column(escape(entry.text), justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        screen.add_row(*(f"[bold]{escape(e.text)}[/bold]" if e.bold else escape(e.text) for e in row))
    return screen


FORMS: Mapping[str, Callable[[Table], str]] = {
    "md": to_markdown,
    "csv": to_csv,
    TABLE.removeprefix("."): to_json,
    "tex": to_latex,
}
"""The forms that are written, by the ending of their files."""
