"""The reports from Python: records as typed pandas frames, a report's tables as frames, its figures as matplotlib's.

    from reports import api

    runs = api.frame("results/runs")
    scores = api.table("scores", suite="glue")
    figure = api.plot("dots", suite="glue")

`suites.api` is the other half: what is to run, and running it. Neither prints anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
from matplotlib.figure import Figure

from reports.averages.convention import convention_of
from reports.records.frames import curves_frame, described, metrics_frame, runs_frame
from reports.records.reading import read_searches
from reports.records.rows import told_apart
from reports.records.selection import Rank, ReportError, existing, matching, select
from reports.records.tuning import tuning_of
from reports.write import PLOTS, TABLES, Report, context_of, report_of
from results.choice import check_choice
from results.schema import Record
from results.store import read_records

RUNS = Path("results") / "runs"
KINDS = {"runs": runs_frame, "metrics": metrics_frame, "curves": curves_frame}
Places = Path | str | Sequence[Path | str]
Kind = Literal["runs", "metrics", "curves"]


def frame(records: Places = RUNS, kind: Kind = "runs", where: Iterable[str] = ()) -> pd.DataFrame:
    """Return the records below some folders as one typed frame.

    Args:
        records: a folder or file of records, or several.
        kind: "runs", a row a run; "metrics", a row a value; "curves", a row an optimizer step.
        where: "field=value" conditions on the plans, such as "training.state_bits=32".

    Returns:
        Whole numbers as `Int64` (bytes among them), others as `Float64`, text as `string`; unknown is `<NA>`. A
        method under several settings bears a name for each, as `lora:alpha=8`, and a title that says what differs.

    Raises:
        ValueError: no such folder, a file that is no record, an unknown kind or field.
    """
    check_choice(kind, tuple(KINDS), "kind of frame")
    found = matching(_read(records), where)
    places: dict[tuple[object, ...], list[Record]] = {}
    for record in found:
        places.setdefault((record.plan.suite, record.plan.profile, record.plan.purpose), []).append(record)
    return KINDS[kind]([record for group in places.values() for record in told_apart(group)])


def table(
    name: str = "scores", records: Places = RUNS, *, suite: str | None = None, profile: str | None = None,
    rank: Rank = None, where: Iterable[str] = (), against: str | None = None, **convention: object,
) -> pd.DataFrame:  # fmt: skip
    """Return the values behind one table of a suite's report, in full precision and in its order.

    Args:
        name: "scores", "findings", "differences", "ablation", "status", "memory", "peaks", "process", "estimates",
            "time", "tuned" or "trials".
        suite, profile, rank: of which runs; None where the records hold one only; rank "all" makes each a row.
        where: "field=value" conditions on the plans.
        against: row of the paired differences, by name or title; None: the yardstick.
        convention: how averages are taken, as `epoch="best"`, `tasks=8`, `seeds="shared"`.

    Raises:
        ValueError: nothing fits, or a name is unknown; the text lists the known ones.
    """
    check_choice(name, TABLES, "table")
    found = _report(records, suite, profile, rank, where, against, convention).table(name)
    if found is None:
        raise ReportError(f"table {name!r}: the records hold no values for it")
    return found.data


def plot(
    name: str = "front", records: Places = RUNS, *, suite: str | None = None, profile: str | None = None,
    rank: Rank = None, where: Iterable[str] = (), **convention: object,
) -> Figure:  # fmt: skip
    """Return one figure of a suite's report: "front", "dots", "validation", "parts", "curves", "sensitivity" or
    "budget".

    Arguments and errors are those of `table`. The figure is not pyplot's: nothing is to be closed, `savefig` writes it.
    """
    check_choice(name, tuple(PLOTS), "figure")
    context = _report(records, suite, profile, rank, where, None, convention, tables=False).context
    made = PLOTS[name](context)
    if made is None or made.figure is None:
        raise ReportError(f"figure {name!r}: the records hold no values for it")
    return made.figure


def _read(records: Places) -> list[Record]:
    return read_records(existing(_roots(records)))


def _roots(records: Places) -> list[Path]:
    return [Path(root) for root in ([records] if isinstance(records, (str, Path)) else records)]


def _report(
    records: Places, suite: str | None, profile: str | None, rank: Rank, where: Iterable[str], against: str | None,
    choices: dict[str, object], tables: bool = True,
) -> Report:  # fmt: skip
    found = _read(records)
    suites = sorted({record.plan.suite for record in found})
    if suite is None and len(suites) > 1:
        raise ReportError(f"the records hold several suites, choose one with suite=...: {', '.join(suites)}")
    chosen = select(found, suite or next(iter(suites), ""), profile, rank, where)
    entry = described(chosen).suite(chosen[0].plan.suite)
    convention = convention_of(entry, **choices) if choices else None  # type: ignore[arg-type]
    tuning = tuning_of(found, read_searches(_roots(records)), chosen)
    context = context_of(chosen, rank, convention, tuning)
    return report_of(context, against) if tables else Report(context, (), ())
