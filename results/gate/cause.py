"""The likely cause of a finding, by class: stack, configuration, code or noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from results.gate.comparable import machine_differences
from results.gate.quantities import Quantity
from results.schema import Environment

Cause = Literal["stack", "configuration", "code", "noise"]
NEAR = 2.0
"""A lone number within this many bounds of its reference may still be noise that the replicates did not show."""


@dataclass(frozen=True)
class Judged:
    """A quantity that lies outside its band, not yet explained."""

    quantity: Quantity
    before: Any
    after: Any
    deviation: float | None
    bound: float | None


def cause_of(judged: Judged, others: Sequence[Judged], before: Environment, after: Environment) -> tuple[Cause, str]:
    """Return the likely cause of a finding in a run whose plan is the same, and the reason in a sentence.

    Args:
        others: everything that was found in the same run, `judged` included.
    """
    machines = machine_differences(before, after)
    same_code = before.commit is not None and before.commit == after.commit and not (before.dirty or after.dirty)
    counted = any(each.quantity.kind in ("exact", "peak") for each in others)
    if same_code:
        if machines:
            return "stack", f"the commit is the same and clean; the machine is another: {'; '.join(machines)}"
        return "noise", "commit and machine are the same: the run does not repeat itself, or was disturbed"
    near = all(
        each.deviation is not None and each.bound is not None and each.deviation <= NEAR * each.bound for each in others
    )
    if not counted and near and len(others) == 1:
        return "noise", f"a single number, within {NEAR:g} bounds, while every count and every byte is the same"
    if counted:
        return "code", "counts or bytes changed, which no machine of the same stack changes"
    where = f"the machine is another: {'; '.join(machines)}"
    if machines and near:
        return "stack", f"nothing moved further than {NEAR:g} bounds, and {where}"
    if machines and not _early(others):
        return "stack", f"only late steps or scores moved, and {where}"
    why = "the numbers moved further than any replicate did, with plan and stack the same"
    return "code", f"{why}; {where}" if machines else why


def _early(found: Sequence[Judged]) -> bool:
    return any(each.quantity.item in ("step 1", "step 2", "steps 3-4", "steps 5-8") for each in found)
