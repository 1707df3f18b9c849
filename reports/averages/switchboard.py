"""The GLUE average under every convention from the same runs: what the choice alone moves."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import product
from typing import Any, get_args, get_type_hints

import pandas as pd

from reports.averages.glue import Cell, Convention, average, cells, scores_frame
from reports.records.context import Context
from reports.stats.seeds import Summary
from reports.tables.render import Entry, Table
from reports.tables.scores import percent, signed

EMPTY = Entry("—")
CHOICES: dict[str, tuple[Any, ...]] = {
    item.name: get_args(get_type_hints(Convention)[item.name]) for item in fields(Convention) if item.name != "seeds"
}
# Choices that change one task's score alone, and the task.
OF_TASK = {"mnli": "mnli", "mrpc": "mrpc", "qqp": "qqp", "stsb": "stsb"}
PUBLISHED = (
    "Published averages that are called RoBERTa, LoRA, rank 8, GLUE: 85.93 [G] over eight tasks, 79.23 [N] over all "
    "GLUE tasks (abstract; its convention is not stated)"
)


@dataclass(frozen=True)
class Switchboard:
    """Method -> average for every convention."""

    conventions: tuple[Convention, ...]
    averages: tuple[dict[str, Summary], ...]
    default: int


def all_conventions(seeds: str) -> list[Convention]:
    """Return every combination of choices, the default values first in each."""
    return [Convention(**dict(zip(CHOICES, values, strict=True)), seeds=seeds) for values in product(*CHOICES.values())]  # type: ignore[arg-type]


def switchboard(context: Context) -> Switchboard:
    """Return the averages of a report under every convention; seeds are treated as the report does."""
    grids = _grids(context)
    conventions = all_conventions(context.convention.seeds)
    averages = []
    for convention in conventions:
        grid = {
            (method, task): cell
            for task in convention.names
            for method in context.methods
            if (cell := grids[convention.epoch, _rule(convention, task)].get((method, task))) is not None
        }
        found = {method: average(method, grid, context.seeds, convention) for method in context.methods}
        averages.append({method: item.summary for method, item in found.items()})
    return Switchboard(tuple(conventions), tuple(averages), conventions.index(context.convention))


def _rule(convention: Convention, task: str) -> int:
    """Return which of a task's rules a convention takes, by number; 0 where a task has one alone."""
    name = OF_TASK.get(task)
    return CHOICES[name].index(getattr(convention, name)) if name else 0


def _grids(context: Context) -> dict[tuple[str, int], dict[tuple[str, str], Cell]]:
    """Return (epoch, rule number) -> cells, all four choices of a task at their rule of that number at once."""
    grids = {}
    for epoch, number in product(CHOICES["epoch"], range(3)):
        rules = {name: CHOICES[name][number] for name in OF_TASK}
        convention = Convention(epoch=epoch, **rules)
        grids[epoch, number] = cells(scores_frame(context.runs, context.metrics, convention))
    return grids


def switchboard_table(context: Context) -> Table | None:
    """Return the default average, each choice changed alone, and the range over all; None if nothing has an average."""
    board = switchboard(context)
    if not any(summary.n for row in board.averages for summary in row.values()):
        return None
    base = board.averages[board.default]
    rows = [(Entry("as in the score table"), *(_entry(base[m]) for m in context.methods))]
    for name, values in CHOICES.items():
        for value in values:
            changed = Convention(**{**_choices(context.convention), name: value, "seeds": context.convention.seeds})
            if changed != context.convention:
                found = board.averages[board.conventions.index(changed)]
                rows.append((Entry(f"{name}: {value}"), *(_change(found[m], base[m]) for m in context.methods)))
    for label, pick in (("lowest of all", min), ("highest of all", max)):
        rows.append((Entry(label), *(_extreme(board, m, pick) for m in context.methods)))
    heads = ("Convention", *(context.title(method) for method in context.methods))
    what = f"average in percent under {len(board.conventions)} conventions, the same runs"
    notes = ("A row with a sign: one choice changed, difference to the first row in points", PUBLISHED)
    return Table("switchboard", context.caption(what, scores=True), heads, tuple(rows), notes, _data(context, board))


def _choices(convention: Convention) -> dict[str, Any]:
    return {name: getattr(convention, name) for name in CHOICES}


def _entry(summary: Summary) -> Entry:
    return Entry(percent(summary)) if summary.n else EMPTY


def _change(found: Summary, base: Summary) -> Entry:
    if found.mean is None:
        return EMPTY
    return _entry(found) if base.mean is None else Entry(signed(found.mean - base.mean))


def _extreme(board: Switchboard, method: str, pick: Any) -> Entry:
    known = [row[method].mean for row in board.averages if row[method].mean is not None]
    return Entry(f"{100 * pick(known):.1f}".replace("-", "−")) if known else EMPTY


def _data(context: Context, board: Switchboard) -> pd.DataFrame:
    rows = [
        {**_choices(convention), "seeds": convention.seeds, "method": method, "n": summary.n,
         "mean": summary.mean, "sd": summary.sd}
        for convention, found in zip(board.conventions, board.averages, strict=True)
        for method, summary in found.items()
    ]  # fmt: skip
    return pd.DataFrame(rows).astype({"n": "Int64", "mean": "Float64", "sd": "Float64"})
