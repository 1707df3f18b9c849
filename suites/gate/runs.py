"""Which plans the gate runs, and where their records lie."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from baselines.registry import default_methods
from results.gate.comparable import stack_of
from results.gate.quantities import cell_of, names
from results.schema import Plan, Strict
from suites.measure.environment import CODE_FILES, ROOT, environment
from suites.plan import Request, comparison, make_plans
from suites.run.processes import shared_out
from suites.suite import Runtime

ROWS = Path(__file__).with_name("rows.toml")
PROFILE = "micro"
CODE = ("gnlorp", "baselines", "suites")
LATER = re.compile(r"-?(?:r\d+|s\d+|[0-9a-f]{12})(?=-|$)")
"""Pieces of a label that a plan must be made for: rank, seed and hash."""


class Row(Strict):
    """One comparison, of the usual methods unless it names them, see `rows.toml`."""

    suite: str
    rank: int = Field(gt=0)
    seeds: list[int]
    tasks: list[str] = []
    methods: list[str] = []
    variant: str = ""
    settings: dict[str, Any] = {}


def rows() -> list[Row]:
    """Return the rows of the gate, in order."""
    return [Row.model_validate(each) for each in tomllib.loads(ROWS.read_text())["row"]]


def gate_runtime(workers: int | None = None) -> Runtime:
    """Return the runtime of the gate: the processor, offline, a worker a core unless told.

    Raises:
        ValueError: `workers` outside its range.
    """
    return shared_out(Runtime(torch.device("cpu"), offline=True), workers)


def gate_plans(runtime: Runtime, only: Sequence[str] = ()) -> list[Plan]:
    """Return the gate's plans, those whose label or cell holds one of `only` as a part; all of them without any.

    Raises:
        ValueError: one of `only` is part of no label and no cell.
    """
    plans = []
    for row in rows():
        request = Request(
            suite=row.suite, profile=PROFILE, rank=row.rank, tasks=tuple(row.tasks), seeds=tuple(row.seeds),
            methods=tuple(row.methods or default_methods()), overrides=tuple(row.settings.items()),
        )  # fmt: skip
        # A task's data takes seconds to make: tasks that nothing names are left out beforehand.
        cells = comparison(request).cells()
        tasks = dict.fromkeys(task for task, method in cells if _may_hold(row, task, method, only))
        if tasks:
            marks = {"purpose": "gate", "variant": row.variant}
            made = make_plans(replace(request, tasks=tuple(tasks)), runtime)
            plans += [plan.model_copy(update=marks) for plan in made]
    return chosen(plans, only)


def _may_hold(row: Row, task: str, method: str, only: Sequence[str]) -> bool:
    cell = f"{row.suite}/{task}/{method} [{row.variant}]"
    stem = f"{row.suite}-{PROFILE}-{task}-{method}"
    return not only or any(part in cell or LATER.sub("", part) in stem for part in only)


def chosen(plans: Sequence[Plan], only: Sequence[str]) -> list[Plan]:
    """Return those of `plans` whose label or cell holds one of `only` as a part; all of them without any.

    Raises:
        ValueError: one of `only` is part of no label and no cell.
    """
    for part in only:
        if not any(names(part, plan) for plan in plans):
            cells = ", ".join(dict.fromkeys(cell_of(plan) for plan in plans)) or "suite/task/method [variant]"
            raise ValueError(f"only {part!r}: is part of no run's label and of no cell; cells are like: {cells}")
    return [plan for plan in plans if not only or any(names(part, plan) for part in only)]


def fingerprint(root: Path = ROOT) -> str:
    """Return 12 hex digits over all code and embedded data that a run depends on, and the stack.

    Records are kept by it, so that a changed tree runs anew and an unchanged one goes on where it stopped.
    """
    found = hashlib.sha256()
    for folder in CODE:
        for path in sorted((root / folder).rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.suffix in CODE_FILES and path.is_file():
                found.update(f"{name}\0".encode())
                found.update(hashlib.sha256(path.read_bytes()).digest())
    found.update(repr(sorted(stack_of(environment(torch.device("cpu"), 1, 1)).items())).encode())
    return found.hexdigest()[:12]
