"""`python -m suites bench`: says how long it will take, measures with a progress bar, prints and writes the record."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from baselines.registry import checked_name
from results.bench import Bench, Ratio
from results.store import check_writable, write_single
from suites.bench.former import former_layer
from suites.bench.run import GROUPS, OF_LAYERS, Item, expected_seconds, items, run_bench
from suites.console import duration_text
from suites.measure.environment import usable_cpus

THREADS = 2


def bench(
    console: Console, groups: Sequence[str], quick: bool, share: float, out: Path, against: str | None = None
) -> int:
    """Run the chosen groups of the bench and return how many cells did not compute the same as their peers.

    With `against`, a git revision, our layer is measured beside that of this commit too.

    Raises:
        ValueError: an unknown group, a share of time that is not above 0, a file that cannot be written, a revision
            without a layer that can be measured, or no group that measures the layer.
    """
    for group in groups:
        checked_name(group, GROUPS, "group")
    if not share > 0:
        raise ValueError(f"time {share:g}: must be above 0 (1 is the whole bench)")
    if against is not None and groups and not set(groups) & set(OF_LAYERS):
        raise ValueError(f"against {against!r}: must have one of the groups {OF_LAYERS}, which measure the layer")
    check_writable(out.parent)
    command = _command(groups, quick, share, against)
    with nullcontext() if against is None else former_layer(against) as former:
        chosen = [item for item in items(quick, former) if not groups or item.group in groups]
        found = _measured(console, chosen, quick, share, out, command)
    console.print(claims_table(found))
    for cell in found.cells:
        for candidate in cell.candidates:
            if candidate.missing:
                console.print(f"{cell.label}: {candidate.title}: {candidate.missing}", markup=False)
    console.print(str(out))
    wrong = [cell for cell in found.cells if not cell.agrees]
    for cell in wrong:
        console.print(f"{cell.label}: outputs differ: {cell.agreement}", style="bold red", markup=False)
    return len(wrong)


def _measured(console: Console, chosen: Sequence[Item], quick: bool, share: float, out: Path, command: str) -> Bench:
    """Say how long it will take, measure with a progress bar, and write the record after every cell."""
    threads = 1 if quick else min(THREADS, usable_cpus())
    console.print(
        f"{len(chosen)} cells on {threads} threads; expected time: {duration_text(expected_seconds(chosen, share))} on "
        f"a quiet machine; record in {out}",
        markup=False,
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(chosen[0].label, total=expected_seconds(chosen, share))
        following = iter([*chosen[1:], None])

        def report(item: Item, so_far: Bench) -> None:
            write_single(out, so_far)
            upcoming = next(following)
            if not console.is_terminal:
                console.print(f"measured: {item.label}", markup=False)
            progress.update(
                bar,
                advance=expected_seconds([item], share),
                description=item.label if upcoming is None else upcoming.label,
            )

        return run_bench(chosen, share, threads, quick, command, report)


def _command(groups: Sequence[str], quick: bool, share: float, against: str | None) -> str:
    """Return what to type for the same measurement; where the record goes is left out, since it changes nothing."""
    words = ["python -m suites bench"]
    words += [f"--only {','.join(groups)}"] if groups else []
    words += ["--quick"] if quick else []
    words += [f"--time {share:g}"] if share != 1 else []
    words += [f"--against {against}"] if against is not None else []
    return " ".join(words)


def claims_table(found: Bench) -> Table:
    """Return every claim for the terminal."""
    table = Table(title="Speed and memory", title_justify="left")
    for column in ("cell", "what", "ours", "peer", "ratio", "quartiles", "rounds", "target", "met"):
        table.add_column(column)
    for cell in found.cells:
        for claim in cell.claims:
            spread = "-" if claim.spread is None else f"{claim.spread[0]:.3f} to {claim.spread[1]:.3f}"
            ratio = "-" if claim.median is None else f"{claim.median:.4f}"
            table.add_row(
                f"{cell.group} {cell.label}", claim.what, claim.ours, claim.peer, ratio, spread,
                str(len(claim.values)), _target(claim), {True: "met", False: "missed", None: "-"}[claim.met],
            )  # fmt: skip
    return table


def _target(claim: Ratio) -> str:
    return "-" if claim.target is None else f"{claim.rule} {claim.target:g}"
