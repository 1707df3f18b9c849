"""The gate's commands: `gate` and `gate-tolerances` of `python -m reports`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from reports.gate.texts import REFERENCE, to_annotations, to_junit, to_markdown, to_text
from results.ending import BAD_INPUT, one_line_errors
from results.gate.accept import changelog_entry, changelog_with, replace_reference
from results.gate.comparable import Refusal, load
from results.gate.compare import compare
from results.gate.quantities import cell_of, names
from results.gate.tolerances import (
    FALSE_ALARM,
    FILE,
    Replicate,
    Tolerances,
    derive,
    joined,
    read_tolerances,
    write_tolerances,
)
from results.schema import Record
from results.store import StoreError, write_atomically

REPLICATES = Path("results") / "runs" / "gate" / "replicates"
SKIP = 125
"""Exit code by which `git bisect run` passes over a commit."""
Reference = Annotated[Path, typer.Option(metavar="DIR", help="Folder of the reference: records and tolerances.json.")]


def register(app: typer.Typer) -> None:
    """Add the gate's commands to the command line of the reports."""
    app.command()(gate)
    app.command("gate-tolerances")(derive_tolerances)


def gate(
    records: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the records to judge.")],
    reference: Reference = Path(REFERENCE),
    only: Annotated[
        list[str] | None,
        typer.Option(help="Judge the reference's runs whose label or cell holds this alone; repeatable."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="A line a finding instead of a line a cell.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write gate.txt, gate.md and gate.xml (JUnit) there.")
    ] = None,
    github: Annotated[bool, typer.Option(help="Print annotations, and add the Markdown to the job's summary.")] = bool(
        os.environ.get("GITHUB_ACTIONS")
    ),
    time_factor: Annotated[
        float | None, typer.Option(help="Fail where a method's time over full training's grew by this factor.")
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Make the records the new reference, and write a changelog entry.")
    ] = False,
    bisect: Annotated[
        bool, typer.Option("--bisect", help=f"Exit code {SKIP} in place of {BAD_INPUT}, for `git bisect run`.")
    ] = False,
    changelog: Annotated[Path, typer.Option(help="Changelog for --update.")] = Path("CHANGELOG.md"),
) -> None:
    """Compare records with the reference: exit code 0 as it was, 1 something changed, 2 not comparable.

    Counts, shapes and bytes must be equal; curves and scores must lie in the bands of tolerances.json, derived from
    replicate runs. Improvements are findings too: an update of the reference makes them the rule.

    Example: python -m reports gate --records results/runs/gate/0123456789ab
    """
    with one_line_errors(SKIP if bisect else BAD_INPUT):
        current = load(records, "records")
        if update and only:
            raise ValueError("update with only: a reference is renewed as a whole; leave one of the two out")
        if update:
            _update(reference, current, changelog)
            return
        wanted = _only(load(reference, "reference"), only or [])
        tolerances = _tolerances(reference)
        judged = _only(current, only) if only else current
        verdict = compare(wanted, judged, tolerances, time_factor)
        cells = [cell_of(record.plan) for record in wanted]
        texts = {
            "gate.txt": to_text(verdict, tolerances, everything=True),
            "gate.md": to_markdown(verdict, tolerances),
            "gate.xml": to_junit(verdict, cells),
        }
        for name, text in texts.items() if out is not None else ():
            write_atomically(Path(out) / name, text.encode())  # type: ignore[arg-type]
        sys.stdout.write(to_text(verdict, tolerances, everything))
        if github:
            sys.stdout.write(to_annotations(verdict))
            if page := os.environ.get("GITHUB_STEP_SUMMARY"):
                with open(page, "a") as stream:
                    stream.write(texts["gate.md"])
    raise typer.Exit(verdict.exit_code)


def derive_tolerances(
    replicates: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help=f"Folder of one replicate; repeatable [every folder in {REPLICATES}]."),
    ] = None,
    reference: Reference = Path(REFERENCE),
    false_alarm: Annotated[
        float, typer.Option(help="Chance of any false alarm in one pass of an unchanged tree.")
    ] = FALSE_ALARM,
    add: Annotated[
        bool, typer.Option("--add", help="Keep the bands that there are where they are wider: for another processor.")
    ] = False,
) -> None:
    """Derive the bands from replicates of the reference and write them beside it; hold each against the others'.

    A replicate is a folder of records of the same plans under other circumstances: of `python -m suites gate
    replicate`, or of `python -m suites gate run` on another machine.
    """
    with one_line_errors():
        if not 0 < false_alarm < 1:
            raise ValueError(f"false-alarm {false_alarm}: must lie between 0 and 1 (usual: {FALSE_ALARM})")
        folders = replicates or sorted(path for path in REPLICATES.glob("*") if path.is_dir())
        if not folders:
            raise ValueError(f"no replicate in {REPLICATES}: run `python -m suites gate replicate` first")
        known, sides = load(reference, "reference"), [_replicate(folder) for folder in folders]
        made = derive(known, sides, false_alarm)
        if add:
            made = joined(_tolerances(reference), made)
        # A replicate that cannot be compared is refused before the bands are replaced.
        lines = list(_left_out(known, sides, false_alarm))
        path = write_tolerances(reference / FILE, made)
        for line in lines:
            sys.stdout.write(f"{line}\n")
        sys.stdout.write(f"{len(made.bands)} bands from {sum(each.runs for each in made.replicates)} runs: {path}\n")


def _left_out(
    reference: Sequence[Record], sides: Sequence[tuple[Replicate, Sequence[Record]]], false_alarm: float
) -> Iterator[str]:
    """Yield a line a replicate: how much of it is the reference bit for bit, and what the others' bands say of it."""
    known = {record.plan_hash: record for record in reference}
    for index, (about, records) in enumerate(sides):
        equal = sum(record.curve == known[record.plan_hash].curve for record in records)
        line = f"{about.name}: {about.runs} runs, {equal} with the very curve of the reference"
        others = [*sides[:index], *sides[index + 1 :]]
        if others:
            same = [known[record.plan_hash] for record in records]
            found = compare(same, records, derive(reference, others, false_alarm)).findings
            line += f"; by the bands of the others: {len(found)} findings"
            line += f", the farthest {max(each.deviation or 0.0 for each in found):.2g} off" if found else ""
        yield line


def _update(reference: Path, current: Sequence[Record], changelog: Path) -> None:
    """Print the difference, replace the reference, write the changelog entry."""
    findings = []
    if reference.exists() and any(reference.glob("*-*.json")):
        try:
            tolerances = _tolerances(reference)
            verdict = compare(load(reference, "reference"), current, tolerances)
            sys.stdout.write(to_text(verdict, tolerances, everything=True))
            findings = verdict.findings
        except (Refusal, StoreError) as problem:
            sys.stdout.write(f"the old reference cannot be compared: {problem}\n")
    entry = changelog_entry(findings, current[0].environment.commit)
    # A changelog that cannot take the entry is refused before anything is replaced.
    log = changelog_with(changelog, entry)
    replace_reference(reference, current)
    write_atomically(changelog, log.encode())
    sys.stdout.write(f"{len(current)} records are the reference now: {reference}\n{changelog}: {entry}\n")
    if not (reference / FILE).exists():
        sys.stdout.write("derive its bands: python -m suites gate replicate && python -m reports gate-tolerances\n")


def _only(records: Sequence[Record], parts: Sequence[str]) -> list[Record]:
    chosen = [record for record in records if not parts or any(names(part, record.plan) for part in parts)]
    if not chosen:
        raise ValueError(f"only {', '.join(parts)}: is part of no run's label and of no cell")
    return chosen


def _tolerances(reference: Path) -> Tolerances:
    path = reference / FILE
    if not path.exists():
        raise Refusal(
            f"{path} does not exist: derive it with `python -m suites gate replicate` and "
            "`python -m reports gate-tolerances`"
        )
    return read_tolerances(path)


def _replicate(folder: Path) -> tuple[Replicate, list[Record]]:
    records = load(folder, "records")
    first = records[0].environment
    about = Replicate(
        name=folder.name, runs=len(records), threads=first.threads, variables=first.variables,
        device_name=first.device_name, commit=first.commit,
    )  # fmt: skip
    return about, records
