"""The papers' tables as they are printed, with the long form of every cell as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from reports.paper.agreement import MEANINGS
from reports.paper.comparison import ComparedCell, PaperRow, PaperTable
from reports.tables.table import EMPTY, Entry, Table
from results.catalogue import committed
from results.protocols import MEANINGS as STATUSES
from results.protocols import read_protocols
from results.published import Cell, conflicts

MANY = "by cell"
SUFFIXES = {"M": "M", "MiB": " MiB", "G": "G", "GB": " GB", "GiB": " GiB", "percent": "", "perplexity": "",
            "s": " s", "h": " h", "tokens/s": " tokens/s", "billions": "B", "count": "", "nats": ""}  # fmt: skip
PROTOCOL_COLUMNS = ("Suite", "Methods", "Ranks", "Tasks or sizes", "Setting", "Value", "Status", "Source")
INEQUALITY = (
    "With d = |mean of ours − published| and b = t·s·√(1/n + 1/k) + half a unit of the last printed digit, with the "
    "two-sided 95 % t quantile for n − 1 degrees, s our standard deviation over n seeds, k the runs behind the "
    "published number (1 where not stated), and the stated margin m: holds if d + b ≤ m, does not hold if d − b > m, "
    "else undecided; bytes that no seed moves, by the rounding alone"
)


def printed(cell: Cell) -> str:
    """Return the published number as printed with its unit; a dash for none."""
    return "—" if cell.printed is None else cell.printed + SUFFIXES[cell.series.unit]


def decimals(cell: Cell) -> int:
    """Return how many decimals the published number has; ours is shown with as many."""
    return len((cell.printed or "0.00").partition(".")[2])


def ours_text(judged: ComparedCell) -> str:
    """Return "mean ± sd (n)" in the digits of the published number."""
    if judged.ours is None or judged.ours.summary.mean is None:
        return "—"
    summary, places = judged.ours.summary, decimals(judged.cell)
    mean = f"{summary.mean:.{places}f}".replace("-", "−")
    if judged.ours.exact:
        return mean
    spread = "" if summary.sd is None else f" ± {summary.sd:.{places}f}"
    return f"{mean}{spread} (n={summary.n})"


def difference_text(judged: ComparedCell) -> str:
    """Return ours minus published with its sign, the half-width of its interval and the margin where applied."""
    difference, bound, margin = judged.verdict.difference, judged.verdict.bound, judged.verdict.margin
    if difference is None:
        return "—"
    places = decimals(judged.cell)
    text = f"{difference:+.{places}f}".replace("-", "−")
    places = max(places, 2)
    if margin is not None:
        return f"{text} ± {bound:.{places}f} (margin {margin:.{places}f})"
    return text if bound is None else f"{text} (bound {bound:.{places}f})"


def to_table(paper: PaperTable) -> Table:
    """Return the table: a row of published values for each method and source, and ours below it where anything ran."""
    columns = list(paper.columns)
    scoped = any(row.scope for row in paper.rows)
    rows: list[tuple[Entry, ...]] = []
    for row in paper.rows:
        lead = (Entry(f"{row.title} [{row.source}]"), *([Entry(row.scope or "—")] if scoped else []))
        rows.append((*lead, *_line(row, columns, lambda j: printed(j.cell)), Entry(_verdict(row))))
        if any(judged.ours for judged in row.cells.values()):
            blank = (Entry(""),) if scoped else ()
            for name, show in (("ours", ours_text), ("difference", difference_text), ("verdict", _word)):
                last = Entry("") if name != "verdict" else EMPTY
                rows.append((Entry(f"· {name}"), *blank, *_line(row, columns, show), last))
    heads = ("Method [source]", *(["What it counts"] if scoped else []), *paper.columns.values(), "Verdict")
    caption = f"{paper.title}: {paper.what}. Published numbers as printed; ours from runs of the profile paper only."
    notes = (*paper.notes, *_reasons(paper), *meanings(paper), INEQUALITY)
    return Table(paper.name, caption, heads, tuple(rows), notes, long_form([paper]))


def _line(row: PaperRow, columns: Sequence[str], show: Any) -> list[Entry]:
    return [Entry(show(row.cells[column])) if column in row.cells else EMPTY for column in columns]


def _word(judged: ComparedCell) -> str:
    return judged.verdict.word


def _verdict(row: PaperRow) -> str:
    return row.words[0] if len(row.words) == 1 else MANY


def _reasons(paper: PaperTable) -> list[str]:
    found: dict[str, None] = {}
    for row in paper.rows:
        for judged in row.cells.values():
            for reason in judged.verdict.reasons:
                found[f"{row.title}: {judged.verdict.word}: {reason}"] = None
    return list(found)


def meanings(paper: PaperTable) -> list[str]:
    """Return what each verdict word of the table means."""
    words = dict.fromkeys(judged.verdict.word for judged in paper.cells)
    return [f"{word[0].upper()}{word[1:]}: {MEANINGS[word]}" for word in MEANINGS if word in words]


def long_form(tables: Sequence[PaperTable]) -> pd.DataFrame:
    """Return one row a published cell with everything known about it and about ours."""
    rows = [_long_row(paper, row, judged) for paper in tables for row in paper.rows for judged in row.cells.values()]
    frame = pd.DataFrame(rows)
    whole = ["published_seeds", "rank", "n"]
    real = ["published", "rounding", "ours", "sd", "difference", "bound", "margin"]
    return frame.astype(dict.fromkeys(whole, "Int64") | dict.fromkeys(real, "Float64"))


def _long_row(paper: PaperTable, row: PaperRow, judged: ComparedCell) -> dict[str, Any]:
    cell, verdict = judged.cell, judged.verdict
    summary = judged.ours.summary if judged.ours else None
    return {
        "table": paper.name, "method": row.method, "title": cell.row.title, "rank": cell.row.rank,
        "setting": cell.row.setting, "column": cell.column, **published_fields(cell),
        "ours": summary.mean if summary else None, "sd": summary.sd if summary else None,
        "n": summary.n if summary else 0, "difference": verdict.difference, "bound": verdict.bound,
        "margin": verdict.margin,
        "verdict": verdict.word, "reasons": "; ".join(verdict.reasons),
        "records": " ".join(judged.ours.records) if judged.ours else "",
    }  # fmt: skip


def published_fields(cell: Cell) -> dict[str, Any]:
    """Return what the source prints and how, as flat fields."""
    series = cell.series
    return {
        "published": cell.value, "printed": cell.printed, "rounding": cell.rounding if cell.printed else None,
        "quantity": series.quantity, "unit": series.unit, "basis": series.basis, "metric": series.metric,
        "split": series.split, "epoch_rule": series.epoch_rule, "published_seeds": series.seeds,
        "scope": series.scope, "model": cell.model, "source": cell.source.letter, "source_name": cell.source.name,
        "place": cell.source.place, "status": cell.source.status, "file": f"results/published/{cell.file}",
        "remark": cell.why,
    }  # fmt: skip


def verdict_table(tables: Sequence[PaperTable]) -> Table:
    """Return how many cells of each table got which verdict."""
    words = list(MEANINGS)
    rows = []
    total = dict.fromkeys(words, 0)
    data: list[dict[str, Any]] = []
    for paper in tables:
        counts = {word: sum(judged.verdict.word == word for judged in paper.cells) for word in words}
        rows.append((Entry(paper.title), *(Entry(str(count)) for count in counts.values())))
        data.append({"table": paper.name, **counts})
        total = {word: total[word] + counts[word] for word in words}
    rows.append((Entry("All"), *(Entry(str(count)) for count in total.values())))
    notes = (*(f"{word[0].upper()}{word[1:]}: {text}" for word, text in MEANINGS.items()), INEQUALITY)
    caption = "Published cells by verdict. Only runs of the profile paper are compared; others have own tables."
    return Table("verdicts", caption, ("Table", *words), tuple(rows), notes, pd.DataFrame(data))


def protocol_table() -> Table:
    """Return every setting of the published runs, with where it stands."""
    titles = committed()
    rows, data = [], []
    for suite, protocol in read_protocols().items():
        for each in protocol.statements:
            methods = ", ".join(titles.method(name).title for name in each.methods) or "all"
            ranks, places = ", ".join(map(str, each.ranks)) or "all", ", ".join(each.places) or "all"
            for name, value in each.values.items():
                text = "one for all" if value is None else str(value)
                words = (titles.suite(suite).title, methods, ranks, places, name, text, each.status, each.source)
                rows.append(tuple(map(Entry, words)))
                data.append(dict(zip(PROTOCOL_COLUMNS, words, strict=True)))
    notes = [f"{word[0].upper()}{word[1:]}: {text}" for word, text in STATUSES.items()]
    for suite, protocol in read_protocols().items():
        margins = ", ".join(f"{quantity} {size:g}" for quantity, size in protocol.margins.items())
        notes.append(f"Margins, {titles.suite(suite).title}: {margins} ({protocol.margins_source})")
    caption = "Settings of the published runs and of the profile `paper`, with sources; the last row that fits counts."
    return Table("protocol", caption, PROTOCOL_COLUMNS, tuple(rows), tuple(notes), pd.DataFrame(data))


def elsewhere_table(cells: Sequence[Cell]) -> Table:
    """Return the published numbers that this suite has no run for."""
    rows = [
        (Entry(cell.benchmark), Entry(cell.series.quantity.replace("_", " ")), Entry(_who(cell)), Entry(cell.column),
         Entry(printed(cell)), Entry(cell.series.basis), Entry(f"[{cell.source.letter}] {cell.source.place}"))
        for cell in cells
    ]  # fmt: skip
    data = pd.DataFrame([{**_place(cell), **published_fields(cell)} for cell in cells])
    heads = ("Benchmark", "Quantity", "Method", "Column", "Published", "Basis", "Source")
    caption = "Other published numbers: quoted for reference, nothing of the kind is run here."
    return Table("elsewhere", caption, heads, tuple(rows), (), data)


def _place(cell: Cell) -> dict[str, Any]:
    return {"benchmark": cell.benchmark, "method": cell.row.method, "title": cell.row.title, "rank": cell.row.rank,
            "setting": cell.row.setting, "column": cell.column}  # fmt: skip


def _who(cell: Cell) -> str:
    """Return title, rank and setting; the setting only where the title does not say it."""
    parts = [cell.row.title]
    parts += [f"rank {cell.row.rank}"] if cell.row.rank is not None and "rank" not in cell.row.title else []
    parts += [cell.row.setting] if cell.row.setting and cell.row.setting not in cell.row.title else []
    return ", ".join(parts)


def conflict_table(cells: Sequence[Cell]) -> Table:
    """Return the places for which sources print different numbers, all of them side by side."""
    rows, data = [], []
    for found in conflicts(cells):
        first = found[0]
        rank = f", rank {first.row.rank}" if first.row.rank is not None else ""
        what = f"{first.benchmark} {first.series.quantity.replace('_', ' ')}, {first.row.method}{rank}, {first.column}"
        times = ratio(found)
        texts = [f"{printed(cell)} [{cell.source.letter}]{_circumstance(cell)}" for cell in found]
        rows.append((Entry(what), Entry("; ".join(texts)), Entry("—" if times is None else f"{times:.2f}")))
        data += [{**_place(cell), **published_fields(cell)} for cell in found]
    caption = "The same cell in different papers: kept as printed, neither averaged nor corrected."
    notes = ("Largest ÷ smallest: only where all are in one unit",)
    return Table("conflicts", caption, ("Cell", "Values", "Largest ÷ smallest"), tuple(rows), notes, pd.DataFrame(data))


def _circumstance(cell: Cell) -> str:
    parts = [cell.row.setting] if cell.row.setting else []
    parts += [cell.series.basis] if "memory" in cell.series.quantity else []
    return f" ({', '.join(parts)})" if parts else ""


def ratio(found: Sequence[Cell]) -> float | None:
    """Return the largest over the smallest value; None where they are not all in one unit."""
    values = [cell.value for cell in found if cell.value]
    units = {"G" if cell.series.unit == "GB" else cell.series.unit for cell in found}
    return max(values) / min(values) if len(units) == 1 and values else None
