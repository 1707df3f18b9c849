"""LaTeX says what a paper says: no word in it that only this repository knows."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from reports.tables.printed import printed, printed_notes
from reports.write import report_files, suite_report
from results.schema import Record

INTERNAL = re.compile(r"\b(profile|Convention|commit|CSV|--[a-z]\w+|nox|hub|micro)\b|not the paper's numbers")


@pytest.mark.usefixtures("unsaved")
def test_no_internal_word_stands_in_the_latex_of_a_report(make_grid: Callable[..., list[Record]]) -> None:
    files = report_files(suite_report(make_grid(tasks=("rte", "cola")), "glue"))
    latex = {name: content.decode() for name, content in files.items() if name.endswith(".tex")}
    assert len(latex) > 5
    for name, text in latex.items():
        assert not INTERNAL.search(re.sub(r"\\(label|input|includegraphics)[^\n]*", "", text)), name
    assert "parts.pdf" in latex["report.tex"]
    # Where our own words are needed, they stay.
    assert "profile micro" in files["scores.md"].decode()


def test_words_are_replaced_and_notes_about_files_left_out() -> None:
    caption = "GLUE, profile small, rank 8: scores. Data: CoLA (directory). Convention: nine tasks."
    assert printed(caption) == "GLUE, rank 8: scores. Data: CoLA. Scores: nine tasks."
    assert printed_notes(["Code: commit abc", "n = 3"]) == ["n = 3"]
