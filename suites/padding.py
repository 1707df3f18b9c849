"""How much of GLUE's batches is padding, and what grouping by length makes of it: shares, and tokens a second.

python -m suites padding --model minilm --data-dir DIR --timed 20
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from suites.options import Options, takes_options

if TYPE_CHECKING:
    from results.schema import Plan
    from suites.suite import Batch, Runtime

GROUPING = 50
WARM_UP = 2


@dataclass(frozen=True)
class Padding:
    """One task's padding without and with grouping, and real tokens a second of the same steps where they were timed.

    `ratios`: grouped over plain, step by step taken in turns.
    """

    task: str
    rows: int
    tokens_a_row: float
    share: float
    grouped_share: float
    ratios: tuple[float, ...] = ()
    rates: tuple[float, float] | None = None


def padding_of(plan: Plan, runtime: Runtime, steps: int, grouping: int = GROUPING) -> Padding:
    """Return the padding of a plan's task; `steps` optimizer steps are timed each way, in turns, none for 0."""
    from suites.glue import SUITE
    from suites.text import encode

    _, train, _ = SUITE.encoded(plan, runtime)
    size = plan.training.batch_size // plan.training.accumulation
    plain, grouped = (
        encode.padding_share(train.lengths, size, plan.data.max_length, grouping=each) for each in (0, grouping)
    )
    found = Padding(plan.task, len(train), float(train.lengths.mean()), plain, grouped)
    return found if steps < 1 else replace(found, **_timed(plan, runtime, steps, grouping))


def _timed(plan: Plan, runtime: Runtime, steps: int, grouping: int) -> dict[str, Any]:
    """Return tokens a second each way and their ratios: one model, steps in turns, so both meet the same machine."""
    from suites.resolved import resolved
    from suites.run.build import build

    cases = [
        resolved(plan.model_copy(update={"data": plan.data.model_copy(update={"length_grouping": each})}), runtime)
        for each in (0, grouping)
    ]
    case, jobs = cases[0], [each.job() for each in cases]
    job, streams = jobs[0], [each.batches(0) for each in jobs]
    step = _step(build(job.model(), job.placement, case), job, case)
    seconds: list[list[float]] = [[], []]
    tokens: list[list[int]] = [[], []]
    for turn in range(WARM_UP + steps):
        for way in (0, 1) if turn % 2 == 0 else (1, 0):
            spent, held = step(streams[way])
            if turn >= WARM_UP:
                seconds[way].append(spent)
                tokens[way].append(held)
    rates = [sum(held) / sum(spent) for held, spent in zip(tokens, seconds, strict=True)]
    by_step = [[t / s for t, s in zip(held, spent, strict=True)] for held, spent in zip(tokens, seconds, strict=True)]
    ratios = tuple(after / before for before, after in zip(*by_step, strict=True))
    return {"rates": (rates[0], rates[1]), "ratios": ratios}


def _step(built: Any, job: Any, case: Any) -> Callable[[Iterator[Batch]], tuple[float, int]]:
    """Return what does an optimizer step on the next batches and says its seconds and real tokens."""
    from suites.run.clock import Clock
    from suites.run.feed import to_device
    from suites.run.loop import train_step

    def step(stream: Iterator[Batch]) -> tuple[float, int]:
        given = [next(stream) for _ in range(case.training.accumulation)]
        tokens = sum(job.tokens(batch) for batch in given)
        begun = time.perf_counter()
        batches = [to_device(batch, case.runtime.device) for batch in given]
        train_step(built.model, built.optimizer, batches, job, case.training, Clock(case.runtime.device))
        return time.perf_counter() - begun, tokens

    return step


def padding_table(found: Sequence[Padding]) -> Table:
    """Return a line a task."""
    table = Table("task", "rows", "tokens a row", "padding", "grouped", "tokens/s", "grouped", "ratio (median)")
    for each in found:
        rates = ("-", "-") if each.rates is None else tuple(f"{rate:,.0f}" for rate in each.rates)
        ratio = f"{statistics.median(each.ratios):.2f}" if each.ratios else "-"
        shares = (f"{100 * each.share:.1f} %", f"{100 * each.grouped_share:.1f} %")
        table.add_row(each.task, f"{each.rows:,}", f"{each.tokens_a_row:.1f}", *shares, *rates, ratio)
    return table


def register(
    app: typer.Typer,
    console: Console,
    one_line_errors: Callable[[], AbstractContextManager[None]],
    prepare: Callable[..., Any],
) -> None:
    """Add `padding` to the command line of the suites."""

    @app.command()
    @takes_options(fixed={"suite": "glue", "seeds": "0"}, defaults={"profile": "small", "method": "full"})
    def padding(
        options: Options,
        timed: Annotated[int, typer.Option(help="optimizer steps to time each way, in turns; 0: shares alone")] = 0,
    ) -> None:
        """Print how much of each task's batches is padding, without and with rows of like length together."""
        with one_line_errors():
            prepared = prepare(options)
            console.print(padding_table([padding_of(plan, prepared.runtime, timed) for plan in prepared.plans]))
