"""What weights in bf16 cost, by the rule that they take updates under: the same pre-training in fp32 and in every arm.

python -m suites bf16-study --data-dir DIR --seeds 0,1,2
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from suites.options import RUNS, Options, overrides_of, takes_options

if TYPE_CHECKING:
    from results.schema import Plan, Record
    from suites.plan import Request
    from suites.suite import Runtime

BASELINE = "fp32"
ARMS: dict[str, dict[str, Any]] = {
    BASELINE: {"precision": "fp32"},
    "bf16, nearest": {"precision": "bf16"},
    "bf16, stochastic": {"precision": "bf16", "bf16_updates": "stochastic"},
    "bf16, kahan": {"precision": "bf16", "bf16_updates": "kahan"},
    "bf16, master": {"precision": "bf16", "bf16_updates": "master"},
}
SET = {name for settings in ARMS.values() for name in settings}
"""What the arms set, and nobody else may."""
OUT = RUNS / "bf16-study"
LOSS = "loss"
PRODUCTS = "bf16_products"
"""How the arms in bf16 multiply, where it is set; fp32's has nothing to choose."""


def arm_plans(request: Request, runtime: Runtime) -> list[Plan]:
    """Return the request's plans in every arm, seed by seed, then arm by arm: a cut-off leaves whole comparisons."""
    from suites.plan import make_plans

    found = []
    for arm, settings in ARMS.items():
        given = dict(request.overrides) | settings
        if arm == BASELINE:
            given.pop(PRODUCTS, None)
        asked = replace(request, overrides=tuple(given.items()))
        for plan in make_plans(asked, runtime):
            found.append(plan.model_copy(update={"variant": f"bf16 study: {arm}"}))
    return sorted(found, key=lambda plan: request.seeds.index(plan.seed))


def names_of(table: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of settings in a table and in the tables inside it, which beat those outside."""
    for name, value in table.items():
        yield name
        if isinstance(value, Mapping):
            yield from names_of(value)


def final_losses(plans: Sequence[Plan], records: Sequence[Record]) -> dict[tuple[str, str], list[float | None]]:
    """Return (method, arm) -> last evaluated loss by seed, None where there is none."""
    by_hash = {record.plan_hash: record for record in records if record.status == "ok"}
    found: dict[tuple[str, str], list[float | None]] = {}
    for plan in plans:
        record = by_hash.get(plan.hash())
        last = record.evaluations[-1].metrics if record is not None and record.evaluations else {}
        loss = next((value for name, value in last.items() if name.endswith(f"/{LOSS}")), None)
        found.setdefault((plan.method, plan.variant.partition(": ")[2]), []).append(loss)
    return found


def study_table(losses: dict[tuple[str, str], list[float | None]]) -> Table:
    """Return a line an arm: mean loss, deviation over seeds, and the paired difference to fp32 with its 95 % bound."""
    table = Table("method", "weights", "seeds", "loss", "deviation", "loss - fp32", "95 % interval", "in fp32's noise")
    for (method, arm), values in losses.items():
        base = losses.get((method, BASELINE), [])
        known = [value for value in values if value is not None]
        pairs = [one - other for one, other in zip(values, base, strict=False) if one is not None and other is not None]
        cells = ["-", "-", "-", "-", "-"]
        if known:
            cells[0] = f"{statistics.fmean(known):.4f}"
            cells[1] = f"{statistics.stdev(known):.4f}" if len(known) > 1 else "-"
        if pairs and arm != BASELINE:
            cells[2] = f"{statistics.fmean(pairs):+.4f}"
            if len(pairs) > 1:
                low, high = interval(pairs)
                cells[3] = f"{low:+.4f} to {high:+.4f}"
                spread = [value for value in base if value is not None]
                cells[4] = "yes" if abs(statistics.fmean(pairs)) <= statistics.stdev(spread) else "no"
        table.add_row(method, arm, str(len(known)), *cells)
    return table


def interval(pairs: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a mean by Student's t."""
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(pairs) - 1)) * statistics.stdev(pairs) / math.sqrt(len(pairs))
    return statistics.fmean(pairs) - half, statistics.fmean(pairs) + half


def register(
    app: typer.Typer,
    console: Console,
    one_line_errors: Callable[[], AbstractContextManager[None]],
    prepare: Callable[..., Any],
    start: Callable[[list[Plan], Runtime, Path, bool], int],
) -> None:
    """Add `bf16-study` to the command line of the suites."""

    @app.command("bf16-study")
    # Of a sweep the table would take every value for a seed.
    @takes_options(fixed={"suite": "c4", "sweep": None}, defaults={"profile": "small", "out": OUT})
    def bf16_study(options: Options) -> None:
        """Pre-train in fp32 and with weights in bf16 under every rule, and print the losses side by side."""
        with one_line_errors():
            from results.store import read_records
            from suites.registry import get_suite

            taken = SET & set(names_of(overrides_of(options, get_suite(options.suite))))
            if taken:
                raise ValueError(f"--set {min(taken)}: the study sets it in every arm ({', '.join(ARMS)})")
            prepared = prepare(options, plans=False)
            plans = arm_plans(prepared.request, prepared.runtime)
            failed = start(plans, prepared.runtime, options.out, options.fresh)
            console.print(study_table(final_losses(plans, read_records([options.out]))))
        raise typer.Exit(1 if failed else 0)
