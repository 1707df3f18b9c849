"""Markdown, LaTeX, CSV and the terminal: structure, escapes, exact values."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from reports.figures.style import FREE_COLOURS, GIB, KIB, MIB, SLOTS, byte_unit, in_unit, looks, seed_words
from reports.tables.table import (
    Entry,
    Table,
    latex_document,
    latex_escape,
    to_csv,
    to_latex,
    to_markdown,
    to_screen,
    with_sign,
)
from results.catalogue import Catalogue, MethodEntry, SuiteEntry, committed, joined

NASTY = r"50% of a_b & {c} #1 $x$ ~ ^ \d <e> |f| ± × ÷ − – — é → 数"


def table_of(columns: int = 3, text: str = "1.0 ± 0.1") -> Table:
    """Return a table with one bold cell and nasty words in every place."""
    row = (Entry(NASTY), *(Entry(text, bold=index == 0) for index in range(columns - 1)))
    heads = ("Method", *(f"a_{index}%" for index in range(columns - 1)))
    data = pd.DataFrame({"x": [0.1 + 0.2], "bytes": pd.array([None], dtype="Int64")})
    return Table("scores", NASTY, heads, (row, row), (NASTY,), data)


def test_csv_reads_back_exactly() -> None:
    frame = pd.read_csv(io.StringIO(to_csv(table_of())))
    assert frame.loc[0, "x"] == 0.1 + 0.2
    assert pd.isna(frame.loc[0, "bytes"])


def test_markdown_has_equal_columns_and_escaped_bars() -> None:
    lines = [line for line in to_markdown(table_of()).splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4}
    assert "**1.0 ± 0.1**" in lines[2]


def test_latex_structure() -> None:
    text = to_latex(table_of())
    for command in (
        r"\begin{table}",
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        r"\end{table}",
        r"\caption{",
        r"\label{",
    ):
        assert text.count(command) == 1
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 3
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {2}
    assert r"\begin{tabular}{lrr}" in text
    assert r"\textbf{1.0 $\pm$ 0.1}" in text
    plain = re.sub(r"\\[\\{}%_&#$]", "", text)
    assert plain.count("{") == plain.count("}")


def test_latex_joins_no_characters_into_another() -> None:
    assert latex_escape("`run --seeds` a---b ''c'' 1,,2 - 3–4") == (
        r"\`{}run -{}-seeds\`{} a-{}-{}-b '{}'c'{}' 1,{},2 - 3--4"
    )


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "+1.00"), (-1.0, "−1.00"), (-0.004, "0.00"), (0.0, "0.00"), (0.006, "+0.01")]
)
def test_a_change_has_its_sign_and_nothing_has_none(value: float, text: str) -> None:
    assert with_sign(value, 2) == text


def test_latex_escapes_every_special_character() -> None:
    escaped = latex_escape(NASTY)
    assert r"50\% of a\_b \& \{c\} \#1 \$x\$" in escaped
    assert "(U+2192) (U+6570)" in escaped
    assert "é" in escaped


def test_wide_tables_lie_on_their_side() -> None:
    wide = to_latex(table_of(columns=11, text="−4.3 [−8.4, −0.3]"))
    assert r"\begin{tabular}{lrr}" in wide
    assert sum(line.endswith(r"\\") for line in wide.splitlines()) == 11


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX engine here")
def test_latex_compiles(tmp_path: Path) -> None:
    (tmp_path / "scores.tex").write_text(to_latex(table_of()), encoding="utf-8")
    (tmp_path / "wide.tex").write_text(to_latex(table_of(11)), encoding="utf-8")
    (tmp_path / "report.tex").write_text(latex_document(["scores", "wide"], []), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "report.pdf").stat().st_size > 0
    assert "Overfull" not in done.stdout


@pytest.mark.parametrize("width", [80, 200])
def test_terminal_breaks_no_word(width: int) -> None:
    console = Console(width=width, file=io.StringIO())
    heads = ("Method", *(f"Task{index}" for index in range(10)))
    rows = tuple((Entry(name), *[Entry("54.7 ± 0.2")] * 10) for name in ("Full", "LoRA", "DoRA", "GaLore"))
    console.print(to_screen(Table("t", "c", heads, rows, (), pd.DataFrame()), width))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().count("54.7 ± 0.2") == 40


def test_bytes_are_printed_in_binary_units() -> None:
    assert byte_unit(3 * GIB) == ("GiB", GIB)
    assert byte_unit(GIB - 1) == ("MiB", MIB)
    assert byte_unit(2048) == ("KiB", KIB)
    assert byte_unit(0) == ("bytes", 1)
    assert (in_unit(1536 * KIB, MIB), in_unit(0, MIB), in_unit(10, MIB), in_unit(7, 1)) == ("1.50", "0", "<0.01", "7")


def test_many_seeds_in_a_row_are_shortened() -> None:
    assert seed_words([0, 1, 2]) == "seeds 0, 1, 2"
    assert seed_words(range(5, 40)) == "seeds 5 to 39"
    assert seed_words([0, 1, 2, 3, 4, 5, 9]) == "seeds 0, 1, 2, 3, 4, 5, 9"
    assert seed_words([4]) == "seed 4"


def test_looks_are_fixed_and_unknown_methods_get_their_own() -> None:
    strangers = [f"method{index}" for index in range(20)]
    found = looks(["gradnormlorp", *strangers, "full"], committed())
    assert list(found)[:2] == ["full", "gradnormlorp"]
    assert len({(look.colour, look.marker) for look in found.values()}) == 22
    assert found["full"] == looks(["full"], committed())["full"]
    assert found["method0"].title == "method0"


def test_a_method_looks_alike_beside_whichever_others_it_stands() -> None:
    known = [method.name for method in committed().methods]
    every = looks([*known, "stranger", f"{known[-1]}:rank=4"], committed())
    for name in known:
        assert looks([name], committed())[name] == looks([name, "stranger"], committed())[name] == every[name]
    free = [look for name, look in every.items() if committed().method(name).slot is None]
    assert len({(look.colour, look.dashed) for look in free[:10]}) == 10


def test_twenty_methods_of_the_catalogue_differ() -> None:
    known = [method.name for method in committed().methods if not method.control]
    found = looks([*known, *(f"method{index}" for index in range(19))], committed())
    assert len(known) >= 20
    assert len({(look.colour, look.marker, look.dashed) for look in found.values()}) == len(found)


def test_a_title_comes_from_the_catalogue_and_a_slot_is_kept_for_its_method() -> None:
    entries = [MethodEntry(name=f"m{place}", title=f"Method {place}", order=place, slot=1) for place in (2, 1)]
    suite = SuiteEntry(name="s", title="S", yardstick_title="Full training")
    found = looks(["m2", "m1", "full"], joined([committed(), Catalogue(methods=entries)]), suite)
    assert [look.title for look in found.values()] == ["Full training", "Method 1", "Method 2"]
    assert looks(["lora"], committed())["lora"].colour == SLOTS[1][0]
    assert {found["m1"].colour, found["m2"].colour} < set(FREE_COLOURS)
    assert found["m1"].colour != found["m2"].colour
