"""LaTeX: the structure always, and a real compilation where an engine is present."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from reports.paper.write import paper, write_paper
from reports.records.reading import gather
from results.published import published_cells
from results.schema import Record
from results.store import write_record

ENGINES = ("pdflatex", "tectonic", "lualatex", "xelatex")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_grid: Callable[..., list[Record]]) -> Path:
    """Return the folder of the papers' tables of a micro grid whose one run failed with an awkward text."""
    store, out = tmp_path_factory.mktemp("store"), tmp_path_factory.mktemp("out")
    for record in make_grid(methods=("full", "gradnormlorp"), seeds=(0, 1)):
        write_record(store, record)
    write_paper(paper(gather([store]), published_cells()), out)
    return out / "paper"


def test_every_table_is_well_formed(folder: Path) -> None:
    tables = [path for path in folder.glob("*.tex") if path.name != "paper.tex"]
    assert len(tables) > 10
    for path in tables:
        text = path.read_text()
        for name in ("table", "tabular"):
            assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1, path.name
        columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1])  # type: ignore[index]
        body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert rows
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {columns}, path.name
        braces = re.sub(r"\\[{}]", "", text)
        assert braces.count("{") == braces.count("}"), path.name
        assert not re.search(r"(?<!\\)[#_^]", re.sub(r"\\label\{[^}]*\}", "", text)), path.name
        assert text.isascii() or not re.search(r"[^\x00-ſ]", text), path.name


def test_the_document_compiles(folder: Path, tmp_path: Path) -> None:
    engine = next((name for name in ENGINES if shutil.which(name)), None)
    if engine is None:
        pytest.skip(f"no TeX engine on this machine (any of {', '.join(ENGINES)})")
    shutil.copytree(folder, tmp_path / "tex")
    command = (
        [engine, "paper.tex"]
        if engine == "tectonic"
        else [engine, "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    )
    result = subprocess.run(command, cwd=tmp_path / "tex", capture_output=True, check=False, timeout=120)
    log = result.stdout.decode(errors="replace")
    assert result.returncode == 0, log[-2000:]
    assert (tmp_path / "tex" / "paper.pdf").stat().st_size > 10_000
    assert "Float too large" not in log
