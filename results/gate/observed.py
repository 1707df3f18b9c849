"""The gate for anything that is no run of the suites: named numbers of a user's own function, with replicates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, JsonValue

from results.gate.comparable import Refusal
from results.gate.quantities import window_name, windows
from results.gate.tolerances import FALSE_ALARM, deviation, log_normal_bound
from results.schema import Strict
from results.store import StoreError, read_single, write_single

REPLICATES = 5
Run = Callable[[int], Mapping[str, Any]]


class NoReference(ValueError):
    """What a function returns cannot be a reference: it is not finite, or not the same in its replicates."""


class Observed(Strict):
    """What a function returned the first time, and how far it moved in its replicates."""

    schema_version: int = Field(default=1, ge=1, le=1)
    stack: dict[str, str] = Field(description="fields that must be equal for two calls to compare")
    replicates: int = Field(ge=2)
    exact: dict[str, JsonValue]
    real: dict[str, float] = Field(description="real numbers; of a list its windows of steps")
    bounds: dict[str, float] = Field(description="largest relative deviation of each that is taken for noise")


def observe(run: Run, stack: Mapping[str, str], replicates: int = REPLICATES) -> Observed:
    """Return the reference of `run`, called with 0, 1, ..., replicates - 1.

    `run` gets the number of the replicate, so that it can vary what should not matter (threads, the order of a sum);
    it returns names with whole numbers, texts or structures, which must be equal ever after, or with real numbers or
    lists of them (curves), which get a band.

    Raises:
        ValueError: fewer than 2 replicates; a number that is not finite; something exact differs between two of them,
            or a name is missing.
    """
    if replicates < 2:
        raise ValueError(f"replicates {replicates}: must be at least 2 (usual: {REPLICATES})")
    sides = [_split(run(number)) for number in range(replicates)]
    for number, (_, values) in enumerate(sides):
        wrong = next((name for name, value in values.items() if not math.isfinite(value)), None)
        if wrong is not None:
            raise NoReference(
                f"{wrong}: {values[wrong]} in replicate {number}: nothing compares with it, so it is no reference"
            )
    exact, real = sides[0]
    for number, (other, _) in enumerate(sides[1:], 1):
        for name in exact.keys() | other.keys():
            if exact.get(name) != other.get(name):
                raise NoReference(f"{name}: {exact.get(name)!r} in replicate 0, {other.get(name)!r} in {number}")
    bounds = {}
    for name, value in real.items():
        moved = [deviation("loss", value, other.get(name, math.nan)) for _, other in sides[1:]]
        bounds[name] = log_normal_bound(moved, FALSE_ALARM / len(real))
    return Observed(stack=dict(stack), replicates=replicates, exact=exact, real=real, bounds=bounds)


def differences(reference: Observed, values: Mapping[str, Any], stack: Mapping[str, str]) -> list[str]:
    """Return a line for each thing of `values` that is not as in `reference`.

    Raises:
        Refusal: the stack is another one.
    """
    for name, before in reference.stack.items():
        if stack.get(name) != before:
            raise Refusal(f"{name} is {before} in the reference and {stack.get(name)} now: the numbers do not compare")
    exact, real = _split(values)
    lines = [
        f"{name}: {reference.exact.get(name)!r} -> {exact.get(name)!r} (exact)"
        for name in sorted(reference.exact.keys() | exact.keys())
        if reference.exact.get(name) != exact.get(name)
    ]
    for name in sorted(reference.real.keys() | real.keys(), key=[*reference.real, *real].index):
        old, new = reference.real.get(name), real.get(name)
        if old is None or new is None:
            lines.append(f"{name}: {old} -> {new} (missing on one side)")
            continue
        moved, bound = deviation("loss", old, new), reference.bounds[name]
        # A NaN is within no bound.
        if not moved <= bound:
            lines.append(f"{name}: {old:.8g} -> {new:.8g} (off by {moved:.2g}, band {bound:.2g})")
    return lines


def check(name: str, run: Run, folder: Path, stack: Mapping[str, str], update: bool = False) -> list[str]:
    """Compare one call of `run` with folder/NAME.observed, or with `update` write that file; return the differences.

    Raises:
        Refusal: there is no reference, it cannot be read, or it is of another stack.
        ValueError: see `observe`.
    """
    path = folder / f"{name}.observed"
    if update:
        write_single(path, observe(run, stack))
        return []
    if not path.exists():
        raise Refusal(f"{path} does not exist: make it with --gnlorp-update")
    try:
        reference = read_single(path, Observed)
    except StoreError as error:
        raise Refusal(str(error)) from error
    return differences(reference, run(0), stack)


def _split(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """Return what must be equal, and real numbers by name; of a list of real numbers the means of its windows."""
    exact: dict[str, Any] = {}
    real: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, float):
            real[name] = value
        elif isinstance(value, Sequence) and value and all(isinstance(each, float) for each in value):
            for first, last in windows(len(value)):
                real[f"{name}, {window_name(first)}"] = sum(value[first - 1 : last]) / (last - first + 1)
        else:
            exact[name] = value
    return exact, real
