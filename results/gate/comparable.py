"""Whether two sets of records may be compared at all: same stack, profiles, data, models and schema."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from results.schema import Environment, Plan, Record
from results.store import StoreError, read_records

PACKAGES = ("torch", "transformers", "bitsandbytes", "peft", "tokenizers", "numpy")
"""Packages that numbers depend on; of a version, what follows a "+" names a build and is left out."""
REFRESH = "python -m nox -s regression -- --update"


class Refusal(ValueError):
    """The two sides cannot be compared: no verdict, exit code 2."""


def load(folder: Path, what: str) -> list[Record]:
    """Return the records of `folder`, which is the gate's `what` ("reference" or "records").

    Raises:
        Refusal: there is none, one cannot be read, or two hold the same plan.
    """
    if not folder.exists():
        raise Refusal(f"{what} {folder} does not exist: {_remedy(what)}")
    try:
        records = read_records([folder])
    except StoreError as error:
        raise Refusal(f"{what}: {error}") from error
    if not records:
        raise Refusal(f"{what} {folder} holds no record: {_remedy(what)}")
    return records


def check_comparable(reference: Sequence[Record], current: Sequence[Record]) -> None:
    """Raise Refusal naming the first field that differs between the two sides, or inside one of them."""
    before = _one_stack(reference, "the reference")
    after = _one_stack(current, "the records")
    for name in before:
        if before[name] != after[name]:
            raise Refusal(_differs(name, before[name], after[name]))
    _check_same_kind(reference, current)
    known = {_place(record.plan): record.plan for record in reference}
    profiles = {suite: _profiles(reference, suite) for suite in {record.plan.suite for record in reference}}
    for record in current:
        plan = record.plan
        wanted = profiles.get(plan.suite)
        if wanted is not None and plan.profile not in wanted:
            raise Refusal(_differs(f"profile of {plan.suite}", ", ".join(sorted(wanted)), plan.profile))
        old = known.get(_place(plan))
        if old is None:
            continue
        for field, one, other in (
            ("data.source", old.data.source, plan.data.source),
            ("data.digest", old.data.digest, plan.data.digest),
            ("data.revision", old.data.revision, plan.data.revision),
            ("model.digest", old.model.digest, plan.model.digest),
        ):
            if one != other:
                raise Refusal(_differs(f"plan.{field} of {plan.suite}/{plan.task}", one, other))


def _check_same_kind(reference: Sequence[Record], current: Sequence[Record]) -> None:
    """Raise Refusal where the records are not the gate's at all: of another purpose, or of other suites and tasks."""
    purposes = [sorted({record.plan.purpose for record in side}) for side in (reference, current)]
    if not set(purposes[0]) & set(purposes[1]):
        raise Refusal(
            f"the records are runs of purpose {', '.join(purposes[1])}, those of the reference of {purposes[0][0]}: "
            f"this folder is not the gate's; {_remedy('records')}"
        )
    cells = [{f"{record.plan.suite}/{record.plan.task}" for record in side} for side in (reference, current)]
    if not cells[0] & cells[1]:
        raise Refusal(
            f"the records are of {', '.join(sorted(cells[1])[:3])}, of which the reference has no run; it has "
            f"{', '.join(sorted(cells[0])[:3])} and {max(0, len(cells[0]) - 3)} more: {_remedy('records')}"
        )


def stack_of(environment: Environment) -> dict[str, str]:
    """Return the fields that must be equal for two runs to be of one stack."""
    found = {
        "environment.python": ".".join(environment.python.split(".")[:2]),
        "environment.device": environment.device,
    }
    found["environment.platform"] = _platform(environment.platform)
    if environment.device != "cpu":
        found["environment.device_name"] = environment.device_name
    for name in PACKAGES:
        found[f"environment.packages.{name}"] = environment.packages.get(name, "not installed").partition("+")[0]
    return found


def machine_differences(before: Environment, after: Environment) -> list[str]:
    """Return what differs between two machines of one stack: builds, processor, threads, operating system."""
    pairs = [("device_name", before.device_name, after.device_name), ("threads", before.threads, after.threads)]
    pairs += [("platform", before.platform, after.platform)]
    pairs += [(name, before.packages.get(name), after.packages.get(name)) for name in PACKAGES]
    return [f"{name} {one} -> {other}" for name, one, other in pairs if one != other]


def _one_stack(records: Sequence[Record], side: str) -> dict[str, str]:
    first = stack_of(records[0].environment)
    for record in records[1:]:
        for name, value in stack_of(record.environment).items():
            if value != first.get(name):
                raise Refusal(f"{side} mixes two stacks: {name} is {first.get(name)} and {value}: {_remedy('records')}")
    return first


def _platform(text: str) -> str:
    machine = re.search(r"x86_64|amd64|arm64|aarch64|i686|ppc64le|s390x|riscv64", text, re.IGNORECASE)
    return f"{text.partition('-')[0]} {machine.group(0).lower() if machine else 'unknown'}"


def _profiles(records: Sequence[Record], suite: str) -> set[str]:
    return {record.plan.profile for record in records if record.plan.suite == suite}


def _place(plan: Plan) -> tuple[str, str, str]:
    return plan.suite, plan.profile, plan.task


def _differs(name: str, before: object, after: object) -> str:
    return (
        f"{name} is {before} in the reference and {after} now: numbers of the two do not compare; "
        f"use the reference's, or make a new reference with `{REFRESH}`"
    )


def _remedy(what: str) -> str:
    return f"make one with `{REFRESH}`" if what == "reference" else "run `python -m suites gate run` into a new folder"
