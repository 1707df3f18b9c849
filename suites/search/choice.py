"""What a search chose: as a table, and as a delta beside the profile that runs take up by themselves."""

from __future__ import annotations

import json
import statistics
import tomllib
from pathlib import Path
from typing import Any

from rich.table import Table

from results.search import AtLength, Choice, Search, Trial
from results.store import FINAL, read_record, write_atomically
from suites.config import tuned_path
from suites.measure.environment import ROOT
from suites.search.journal import FILE
from suites.search.trials import RESULT


def choice_table(search: Search) -> Table:
    """Return a line a method: trials, ranges, the best trial, how it stands among the others, rates at an edge."""
    rounds = 1 + max(space.round for space in search.spaces)
    scored = f"mean held-out score ({search.better} is better) on {', '.join(search.tasks)}"
    table = Table(
        "method", "trials", "diverged", "learning rate", "of the rest", "best score", "median", "at an edge",
        title=f"{search.trials} trials of every method in each of {rounds} round(s){_again(search)}; {scored}",
        title_justify="left",
    )  # fmt: skip
    chosen = {choice.method: choice for choice in search.choices}
    for method in dict.fromkeys(space.method for space in search.spaces):
        own = [trial for trial in search.results if trial.method == method]
        scores = [trial.score for trial in own if trial.score is not None]
        best = chosen.get(method)
        table.add_row(
            method,
            f"{sum(trial.status in RESULT for trial in own)} of {len(own)}",
            str(sum(trial.status == "diverged" for trial in own)),
            *_rates(search, method, best),
            "-" if best is None else f"{best.score:.4f}{_at_length(best)}",
            f"{statistics.median(scores):.4f}" if scores else "-",
            "-" if best is None else ", ".join(best.edges) or "no",
        )
    return table


def _again(search: Search) -> str:
    if not search.confirm:
        return ""
    also = f", on {', '.join(search.confirm_tasks)} too" if search.confirm_tasks else ""
    return (
        f", the first of the best {search.confirm} that at full length is no worse and better than the constant "
        f"prediction{also}"
    )


def _at_length(best: Choice) -> str:
    return "" if best.confirmed is None else f" ({best.confirmed:.4f} at length)"


def _rates(search: Search, method: str, best: Choice | None) -> tuple[str, str]:
    space = [space for space in search.spaces if space.method == method][-1]
    own, rest = space.learning_rate, space.rest_learning_rate
    found = (None, None) if best is None else (best.learning_rate, best.rest_learning_rate)
    spans = ["none trained" if span is None else f"{span.low:g} to {span.high:g}" for span in (own, rest)]
    shown = [span if rate is None else f"{rate:g} of {span}" for rate, span in zip(found, spans, strict=True)]
    return shown[0], shown[1]


def write_choice(search: Search, folder: Path) -> Path:
    """Write the choice beside the profile and return its path; methods that were not searched keep an earlier one.

    Raises:
        ValueError: a method's trials do not all have a result, or none of them has a number.
    """
    chosen = {choice.method: choice for choice in search.choices}
    methods = list(dict.fromkeys(space.method for space in search.spaces))
    lost = [method for method in methods if method not in chosen]
    if lost:
        raise ValueError("; ".join(_why_none(search, method, folder) for method in lost))
    lengths = {method: sum(space.method == method for space in search.spaces) for method in methods}
    rounds = max(lengths.values())
    if behind := [method for method in methods if lengths[method] < rounds]:
        raise ValueError(
            f"no choice: {', '.join(behind)} have had fewer than {rounds} rounds, and every method gets as many: "
            f"search all of them, --method {','.join(methods)}"
        )
    resolved = folder.resolve()
    place = resolved.relative_to(ROOT).as_posix() if resolved.is_relative_to(ROOT) else folder.name
    command = (
        f"suites tune {search.suite} --profile {search.profile} --rank {search.rank} --task {','.join(search.tasks)}"
    )
    lines = [
        f"# Written by `{command}`:",
        f"# the best of {search.trials} trials in each of {rounds} round(s), as many for every method, by the mean",
        f"# score on held-out train rows, seed {search.seed}; validation not looked at. Records and",
        f"# journal: {place}, {FILE} in it",
        *([f"# The{_again(search).removeprefix(', the')}."] if search.confirm else []),
    ]
    path = tuned_path(search.profile, search.suite, search.rank)
    table: dict[str, Any] = tomllib.loads(path.read_text()).get("method", {}) if path.exists() else {}
    for method, choice in chosen.items():
        own = choice.rest_learning_rate if choice.learning_rate is None else choice.learning_rate
        table[method] = {"learning_rate": own, "rest_learning_rate": choice.rest_learning_rate}
    for method, settings in sorted(table.items()):
        lines += ["", f"[method.{method}]", *(f"{name} = {_toml(value)}" for name, value in settings.items())]
    return write_atomically(path, ("\n".join(lines) + "\n").encode())


def _why_none(search: Search, method: str, folder: Path) -> str:
    """Return why a method has no choice, and what to do: the same command leaves alone what has a final record."""
    own = [trial for trial in search.results if trial.method == method]
    ran: list[Trial | AtLength] = [*own, *(trial.at_length for trial in own if trial.at_length is not None)]
    of_all = " at the runs' own length" if len(ran) > len(own) else ""
    if all(trial.status in RESULT for trial in ran):
        return (
            f"no choice for {method}: none of its trials has a number{of_all}; begin anew with another range, such as "
            f"--set method.{method}.range=[1e-5,1e-3], in another --out folder"
        )
    paths = [path for trial in ran for key in trial.plans.values() for path in folder.glob(f"*-{key}.json")]
    final = [path.name for path in paths if read_record(path).status in FINAL - RESULT]
    first = f"make room, such as by --workers 1, remove {', '.join(final)} from {folder}, and " if final else ""
    return f"no choice for {method}: not all of its trials have a result: {first}give the same command again"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_toml(each)}" for name, each in value.items()) + " }"
    return repr(value) if isinstance(value, float) else json.dumps(value)
