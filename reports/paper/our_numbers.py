"""Our side of a published cell: which records answer it, in the unit it is printed in, and where they depart from it.

Only runs of the profile `paper` stand beside a paper's value; those of other profiles have tables of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from reports.averages.convention import convention_of
from reports.averages.glue import average
from reports.paper.agreement import Ours
from reports.paper.departures import UNSTATED, departures, model_size, unstated
from reports.records.frames import ROW, described
from reports.records.reading import Gathered
from reports.records.report_runs import Context
from reports.records.rows import told_apart
from reports.records.selection import table_rank
from reports.tables.standing import reduction_of
from results.published import Cell
from results.schema import Record

PROFILE = "paper"
UNIT_BYTES = {"M": 10**6, "MiB": 2**20, "G": 10**9, "GB": 10**9, "GiB": 2**30}
BITS = {"": 32, "8-bit": 8}
ALL_TASKS = "all GLUE tasks"


@dataclass(frozen=True)
class PaperRuns:
    """The records as the paper's tables look at them."""

    gathered: Gathered

    def of(self, suite: str) -> list[Record]:
        """Return the result runs of one suite in the profile that papers are compared with."""
        return self._by_suite.get(suite, [])

    @cached_property
    def _by_suite(self) -> dict[str, list[Record]]:
        found: dict[str, list[Record]] = {}
        for record in self.gathered.results:
            if record.plan.profile == PROFILE:
                found.setdefault(record.plan.suite, []).append(record)
        return found

    @cached_property
    def _contexts(self) -> dict[tuple[int, int], Context | None]:
        return {}

    def glue(self, rank: int, tasks: int = 8) -> Context | None:
        """Return the paper-profile GLUE runs of one rank with 32-bit state under GaLore's convention; None: no run."""
        key = (rank, tasks)
        if key not in self._contexts:
            bits = [record for record in self.of("glue") if record.plan.training.state_bits == BITS[""]]
            chosen = [record for record in bits if table_rank(record) in (rank, None)]
            self._contexts[key] = self._context(chosen, rank, tasks) if chosen else None
        return self._contexts[key]

    def _context(self, chosen: list[Record], rank: int, tasks: int) -> Context:
        suite = described(chosen).suite(chosen[0].plan.suite)
        return Context(chosen, PROFILE, rank, convention_of(suite, tasks=tasks))

    def paths(self, records: Iterable[Record]) -> tuple[str, ...]:
        """Return the files of some records."""
        return self.gathered.paths_of(record.plan_hash for record in records)


Answer = Callable[[Cell, PaperRuns], Ours | None]


def glue_score(cell: Cell, paper_runs: PaperRuns, rank: int) -> Ours | None:
    """Answer a GLUE score or average in percent."""
    context = paper_runs.glue(rank, 9 if cell.row.setting == ALL_TASKS else 8)
    if context is None:
        return None
    task = cell.column
    whole = task == "average"
    runs = [r for r in context.records if r.plan.method.partition(ROW)[0] == cell.row.method]
    runs, known = nearest_row([r for r in runs if whole or r.plan.task == task])
    if not runs:
        return None
    method = runs[0].plan.method
    if whole:
        found = average(context, method)
        scores, broken = found.scores, [f"no average: {text}" for text in found.missing] if not found.scores else []
    else:
        place = context.grid[method, task]
        scores = place.scores
        broken = [f"runs without a score: {place.trouble(context.seeds)}"] if place.broken else []
    open_ = (UNSTATED,) if cell.row.setting == ALL_TASKS else ()
    values = {seed: 100 * value for seed, value in scores.items()}
    return Ours(values, paper_runs.paths(runs), (*open_, *known, *broken), chosen=departures(runs, unstated))


def glue_memory(cell: Cell, paper_runs: PaperRuns) -> Ours | None:
    """Answer a GLUE memory cell with the highest count over the tasks that every seed has."""
    runs = [r for r in paper_runs.of("glue") if r.plan.method == cell.row.method]
    runs = [r for r in runs if table_rank(r) in (cell.row.rank, None) and r.plan.training.state_bits == 32]
    return _memory(cell, paper_runs, *nearest_row(runs))


def c4_perplexity(cell: Cell, paper_runs: PaperRuns) -> Ours | None:
    """Answer the perplexity of one model size at the end of training."""
    return _by_seed(*_c4_runs(cell, paper_runs, cell.column), paper_runs, lambda record: _main(record, None))


def c4_memory(cell: Cell, paper_runs: PaperRuns) -> Ours | None:
    """Answer a memory cell of one model size."""
    return _memory(cell, paper_runs, *_c4_runs(cell, paper_runs, cell.column))


def seven_perplexity(cell: Cell, paper_runs: PaperRuns) -> Ours | None:
    """Answer the perplexity of the 7B model at a step such as "40k"."""
    step = 1000 * int(cell.column.removesuffix("k"))
    return _by_seed(*_c4_runs(cell, paper_runs, "7b"), paper_runs, lambda record: _main(record, step))


def seven_memory(cell: Cell, paper_runs: PaperRuns) -> Ours | None:
    """Answer a memory cell of the 7B model."""
    return _memory(cell, paper_runs, *_c4_runs(cell, paper_runs, "7b"))


def state_reduction(cell: Cell, paper_runs: PaperRuns) -> Ours | None:
    """Answer "up to X %" with the largest reduction of any paper-profile run of the method and state width."""
    bits = BITS.get(cell.row.setting)
    runs = [r for r in paper_runs.gathered.results if r.plan.profile == PROFILE and r.plan.method == cell.row.method]
    runs = [r for r in runs if r.plan.training.state_bits == bits]
    values = {r.plan_hash: reduction for r in runs if (reduction := reduction_of(r)) is not None}
    if not values:
        return _without_values(runs, paper_runs)
    best = max(runs, key=lambda r: values.get(r.plan_hash, float("-inf")))
    why = "ours is against AdamW in fp32 on every weight; the abstract does not state its baseline"
    return Ours({best.plan.seed: values[best.plan_hash]}, paper_runs.paths([best]), accounting=why, exact=True)


def _c4_runs(cell: Cell, paper_runs: PaperRuns, size: str) -> tuple[list[Record], tuple[str, ...]]:
    bits = BITS.get(cell.row.setting)
    runs = [r for r in paper_runs.of("c4") if r.plan.method == cell.row.method and model_size(r) == size]
    return nearest_row([r for r in runs if r.plan.training.state_bits == bits])


def nearest_row(runs: Sequence[Record]) -> tuple[list[Record], tuple[str, ...]]:
    """Return those runs of a method under several settings that depart least from the published protocol, and how.

    Where the protocol does not tell settings apart, those of the most runs stand for them, whatever they scored, and
    that is a departure too.
    """
    rows: dict[str, list[Record]] = {}
    for record in told_apart(runs):
        rows.setdefault(record.plan.method, []).append(record)
    if not rows:
        return [], ()
    far = {name: len(departures(row)) for name, row in rows.items()}
    nearest = [name for name in rows if far[name] == min(far.values())]
    chosen = min(nearest, key=lambda name: (-len(rows[name]), name))
    alike = f"{chosen.partition(ROW)[2]}: one of {len(nearest)} settings that the protocol does not tell apart"
    return rows[chosen], (*departures(rows[chosen]), *([alike] if len(nearest) > 1 else []))


def _main(record: Record, step: int | None) -> float | None:
    """Return the main metric at a step, or at the last evaluation."""
    if record.status != "ok" or record.main_metric is None or not record.evaluations:
        return None
    last = max(evaluation.step for evaluation in record.evaluations)
    wanted = last if step is None else step
    return next((e.metrics.get(record.main_metric) for e in record.evaluations if e.step == wanted), None)


def _by_seed(
    runs: list[Record], known: tuple[str, ...], paper_runs: PaperRuns, value: Callable[[Record], float | None]
) -> Ours | None:
    found = [(record, value(record)) for record in runs]
    values = {record.plan.seed: number for record, number in found if number is not None}
    if not values:
        return _without_values(runs, paper_runs, known)
    left = (*known, *_trouble(record for record, number in found if number is None))
    return Ours(values, paper_runs.paths(runs), left, chosen=departures(runs, unstated))


def _without_values(runs: Sequence[Record], paper_runs: PaperRuns, known: tuple[str, ...] = ()) -> Ours | None:
    """Return runs none of which has the number: those that broke; None where all that there are ended well."""
    broken = [record for record in runs if record.status != "ok"]
    return Ours({}, paper_runs.paths(runs), (*known, *_trouble(broken))) if broken else None


def _trouble(runs: Iterable[Record]) -> tuple[str, ...]:
    """Return what became of runs without a value, as "seed 2 without a value (diverged)"."""
    words = (f"seed {run.plan.seed} without a value ({run.status.replace('_', ' ')})" for run in runs)
    return tuple(dict.fromkeys(words))


def _memory(cell: Cell, paper_runs: PaperRuns, runs: list[Record], known: tuple[str, ...]) -> Ours | None:
    """Answer with what the cell says it counts: device peaks if it was measured, else counted tensors."""
    measured = cell.series.basis == "measured"
    count = _device_peak if measured else COUNTS[cell.series.quantity]
    unit = UNIT_BYTES[cell.series.unit]
    by_seed: dict[int, dict[str, float]] = {}
    for record in runs:
        amount = count(record) if record.status == "ok" else None
        if amount is not None:
            by_seed.setdefault(record.plan.seed, {})[record.plan.task] = amount / unit
    if not by_seed:
        return _without_values(runs, paper_runs, known)
    # The highest over other tasks is another number.
    shared = set.intersection(*map(set, by_seed.values()))
    values = {seed: max(amounts[task] for task in shared) for seed, amounts in by_seed.items() if shared}
    trouble = _trouble(record for record in runs if record.status != "ok")
    left = (*known, *trouble, *(() if shared else ("no task that every seed has",)))
    scope = cell.series.scope or "scope not stated"
    why = None if measured else f"ours is counted from live tensors; published is {cell.series.basis}: {scope}"
    # What a device took may differ from seed to seed, which one seed does not tell.
    exact = len(set(values.values())) == 1 and not (measured and len(values) == 1)
    return Ours(values, paper_runs.paths(runs), left, why, exact)


def _device_peak(record: Record) -> int | None:
    return record.memory.device_reserved_bytes if record.memory else None


def _weights(record: Record) -> int | None:
    return record.memory.weight_bytes if record.memory else None


def _state(record: Record) -> int | None:
    return record.memory.state_bytes if record.memory else None


def _both(record: Record) -> int | None:
    return record.memory.weight_bytes + record.memory.state_bytes if record.memory else None


COUNTS: dict[str, Callable[[Record], int | None]] = {
    "memory": _both, "weight_memory": _weights, "state_memory": _state,
}  # fmt: skip
