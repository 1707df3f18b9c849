"""`python -m suites gpu-check`: asks every question within a budget of time, and writes what a person can commit."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from results.gpu import GpuReport
    from suites.gpu.where import Where

BUDGET_S = 540.0
OUT = Path("results") / "reference" / "gpu"
Question = Callable[["Where"], None]


def questions() -> dict[str, Question]:
    """Return every question by name, in the order asked: what is wrong first, what is slow last."""
    from suites.gpu import correct, measured

    return {
        "fast against slow": correct.fast_against_slow,
        "8-bit": correct.eight_bit,
        "tracked against allocated": measured.tracked_against_allocated,
        "per-layer": measured.per_layer,
        "resume": correct.resuming,
        "one real run": correct.real_run,
        "step": measured.steps,
        "refresh": measured.refreshes,
        "layer": measured.layers,
        "tokens a second": measured.throughput,
        "contract pack": correct.contract_pack,
    }


def ask(
    where: Where,
    asked: Mapping[str, Question],
    budget_s: float,
    report: Callable[[str], None] = lambda name: None,
) -> GpuReport:
    """Ask one question after the other and return the record; what comes after the budget is skipped, and says so."""
    import torch

    from results.gpu import GpuReport
    from suites.measure.environment import environment

    started, begun, seconds = _now(), time.monotonic(), {}
    for name, question in asked.items():
        where.check = name
        if time.monotonic() - begun > budget_s:
            where.say("all of it", "skipped", f"the budget of {budget_s:g} s was used up")
            continue
        report(name)
        start = time.monotonic()
        try:
            question(where)
        except Exception as problem:  # noqa: BLE001  a question that breaks is answered with no; the others are asked
            text = " ".join(str(problem).split())[:300]
            where.say("all of it", "fails", f"{type(problem).__name__}: {text}")
        seconds[name] = round(time.monotonic() - start, 2)
    return GpuReport(
        started_at=started,
        finished_at=_now(),
        rehearsal=where.rehearsal,
        environment=environment(where.device, torch.get_num_threads(), 1),
        budget_s=budget_s,
        seconds=seconds,
        verdicts=where.verdicts,
    )


def file_of(found: GpuReport, out: Path) -> Path:
    """Return where a record goes: named by its device and day, a rehearsal apart from evidence."""
    name = "".join(letter if letter.isalnum() else "-" for letter in found.environment.device_name.lower())
    kind = "rehearsal" if found.rehearsal else "check"
    return out / f"{kind}-{name.strip('-')}-{found.started_at[:10]}.json"


def register(app: typer.Typer, console: Console, one_line_errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Add `gpu-check` to the command line of the suites."""

    @app.command("gpu-check")
    def gpu_check(
        device: Annotated[str, typer.Option(help="`cuda`, or `cpu` for a rehearsal with tiny shapes")] = "cuda",
        only: Annotated[str, typer.Option(help="comma-joined questions; default: all")] = "",
        budget: Annotated[float, typer.Option(help="seconds after which no further question is asked")] = BUDGET_S,
        out: Annotated[Path, typer.Option(help="folder of the record")] = OUT,
    ) -> None:
        """Check this code on a CUDA device, offline, within ten minutes, and write a record with verdicts."""
        # Before the first use of cuBLAS; without it deterministic algorithms are refused there.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        with one_line_errors():
            from baselines.registry import checked_name
            from results.store import check_writable, write_single
            from suites.gpu.where import Where
            from suites.options import resolve_device, split

            known = questions()
            names = [checked_name(name, known, "question") for name in split(only)] or list(known)
            where = Where(resolve_device(device))
            check_writable(out)
            if where.rehearsal:
                console.print("a rehearsal on a processor: it shows that the check works, nothing about a device")
            found = ask(where, {name: known[name] for name in names}, budget, lambda name: console.print(f"{name} ..."))
            for verdict in found.verdicts:
                console.print(f"{verdict.answer:>8}  {verdict.check}: {verdict.what}: {verdict.words}", markup=False)
            console.print(str(write_single(file_of(found, out), found)), markup=False)
            console.print(f"{found.failed} of {len(found.verdicts)} answers are no")
        raise typer.Exit(1 if found.failed else 0)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
