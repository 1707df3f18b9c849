"""The bench as two tables, targets in short and every claim, and one figure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from reports.figures.front_and_curves import FAINT, Plot, draw
from reports.tables.table import Entry, Table
from results.bench import Bench, BenchCell, Ratio

MET = {True: "met", False: "missed", None: "—"}
COLOURS = ("#0072B2", "#56B4E9", "#CC79A7")
MARKERS = ("P", "o", "^")
TITLE = "Speed and memory of layer and refresh"
Mark = Any
"""A mark with its bar, which matplotlib's legends take and its types do not."""


@dataclass(frozen=True)
class Kin:
    """Claims of one kind over several cells: the same quantity, sides, rank and target."""

    group: str
    rank: object
    first: Ratio
    members: tuple[tuple[BenchCell, Ratio], ...]

    @property
    def measured(self) -> list[tuple[BenchCell, Ratio]]:
        """The members that hold a value."""
        return [(cell, claim) for cell, claim in self.members if claim.median is not None]

    @property
    def met(self) -> bool | None:
        """Whether every member meets the target: one that misses it decides, also where others are not measured."""
        answers = [claim.met for _, claim in self.members]
        return False if False in answers else None if None in answers else True

    @property
    def worst(self) -> tuple[BenchCell, Ratio] | None:
        """The measured member farthest on the wrong side; the largest ratio where there is no rule."""
        sign = -1.0 if self.first.rule == "at least" else 1.0
        return max(self.measured, key=lambda pair: sign * (pair[1].median or 0.0), default=None)


def kinds(found: Bench) -> list[Kin]:
    """Return the claims by kind, in the order of the record."""
    grouped: dict[tuple[object, ...], list[tuple[BenchCell, Ratio]]] = {}
    for cell in found.cells:
        for claim in cell.claims:
            key = (cell.group, cell.settings.get("rank"), claim.what, claim.ours, claim.peer, claim.rule, claim.target)
            grouped.setdefault(key, []).append((cell, claim))
    return [Kin(str(key[0]), key[1], members[0][1], tuple(members)) for key, members in grouped.items()]


def conditions(found: Bench) -> str:
    """Return where and how the record was made."""
    machine = found.environment
    load = "unknown" if found.load_average is None else f"{found.load_average:.1f}"
    peers = ", ".join(f"{name} {version or 'missing'}" for name, version in found.peers.items())
    quick = "Quick look at tiny shapes: says nothing about speed. " if found.quick else ""
    return (
        f"{quick}{machine.device_name}, {machine.threads} threads, load average before the start {load} on "
        f"{machine.cpu_count} processors; torch {machine.packages.get('torch', 'unknown')}, {peers}; commit "
        f"{(machine.commit or 'unknown')[:12]}{_former(found)}; `{found.command}`"
    )


def _former(found: Bench) -> str:
    commits = dict.fromkeys(str(cell.settings["against"])[:12] for cell in found.cells if cell.former)
    return f", the layer held against that of {', '.join(commits)}" if commits else ""


def targets_table(found: Bench) -> Table:
    """Return the table for the documents: one row a kind of claim, the range over cells and the worst one.

    Raises:
        ValueError: the record holds no claim.
    """
    chosen = kinds(found)
    if not chosen:
        raise ValueError("the bench record holds no claim")
    rows = tuple(_targets_row(kin) for kin in chosen)
    data = pd.DataFrame(
        {
            "group": kin.group, "rank": kin.rank, "what": kin.first.what, "ours": kin.first.ours,
            "peer": kin.first.peer, "cells": len(kin.members), "rule": kin.first.rule, "target": kin.first.target,
            "lowest": min((claim.median for _, claim in kin.measured if claim.median is not None), default=None),
            "highest": max((claim.median for _, claim in kin.measured if claim.median is not None), default=None),
            "met": kin.met,
        }
        for kin in chosen
    )  # fmt: skip
    caption = (
        "Speed and memory beside peft, galore-torch and torch's AdamW: medians of paired ratios over rounds in turns."
    )
    heads = ("What", "ours", "peer", "cells", "ratio, lowest to highest", "worst (quartiles)", "target", "met")
    return Table("bench", caption, heads, rows, (conditions(found), *_cell_notes(found)), data)


def claims_table(found: Bench) -> Table:
    """Return every claim of every cell."""
    rows, lines = [], []
    for cell in found.cells:
        for claim in cell.claims:
            rows.append(
                (
                    Entry(f"{cell.group} {cell.label}"), Entry(claim.what), Entry(claim.ours), Entry(claim.peer),
                    Entry(_number(claim.median)), Entry(_spread(claim)), Entry(str(len(claim.values))),
                    Entry(_target(claim)), Entry(MET[claim.met], claim.met is False),
                )
            )  # fmt: skip
            low, high = claim.spread or (None, None)
            lines.append(
                {
                    "group": cell.group, "cell": cell.label, "what": claim.what, "ours": claim.ours,
                    "peer": claim.peer, "median": claim.median, "lower_quartile": low, "upper_quartile": high,
                    "rounds": len(claim.values), "rule": claim.rule, "target": claim.target, "met": claim.met,
                }
            )  # fmt: skip
    heads = ("Cell", "what", "ours", "peer", "ratio", "quartiles", "rounds", "target", "met")
    caption = "Every ratio of the bench."
    return Table("claims", caption, heads, tuple(rows), (conditions(found),), pd.DataFrame(lines))


def measurements_table(found: Bench) -> Table:
    """Return the seconds and bytes behind the ratios."""
    rows, lines = [], []
    for cell in found.cells:
        for each in cell.candidates:
            middle = pd.Series(each.seconds).median() if each.seconds else None
            text = "—" if middle is None else f"{1e3 * middle:.4g}"
            peak = "—" if each.peak_bytes is None else f"{each.peak_bytes:,}"
            label = f"{cell.group} {cell.label}"
            rows.append((Entry(label), Entry(each.title), Entry(text), Entry(peak), Entry(each.missing or "—")))
            lines.append(
                {
                    "group": cell.group, "cell": cell.label, "candidate": each.title, "median_s": middle,
                    "rounds": len(each.seconds), "peak_bytes": each.peak_bytes, "missing": each.missing,
                }
            )  # fmt: skip
    heads = ("Cell", "candidate", "median (ms)", "peak bytes", "missing")
    return Table("measurements", "Seconds and bytes of the bench.", heads, tuple(rows), (), pd.DataFrame(lines))


def bench_plot(found: Bench) -> Plot | None:
    """Draw the layer's time and bytes beside LoRA's and the refresh beside the SVD; None without such cells.

    Where the record holds it, a third row has the layer's time beside that of an earlier commit, a panel a gradient
    rule.
    """
    layers = [cell for cell in found.cells if cell.group == "layer"]
    refreshes = [cell for cell in found.cells if cell.group == "refresh"]
    if not layers or not refreshes:
        return None
    caption = f"Ratios with quartiles over rounds; dashed: the target. {conditions(found)}"
    machine = found.environment
    under = f"{machine.device_name}, {machine.cpu_count} cores, torch {machine.packages.get('torch', 'unknown')}"
    return draw("bench", TITLE, caption, lambda: _figure(layers, refreshes, under))


def _figure(layers: Sequence[BenchCell], refreshes: Sequence[BenchCell], under: str) -> Figure:
    former = list(dict.fromkeys(title for cell in layers for title in cell.former))
    rows = 3 if former else 2
    height, below = (9.3, 0.558) if rows == 2 else (14.0, 0.86)
    figure = Figure(figsize=(11, height))
    figure.text(0.012, 1 - 0.1116 / height, TITLE, fontsize=13, fontweight="bold", va="top")
    figure.text(0.012, 1 - 0.3534 / height, under, fontsize=9, color=FAINT, va="top")
    grid = figure.add_gridspec(rows, 2)
    figure.subplots_adjust(
        left=0.2, right=0.985, top=1 - 1.0695 / height, bottom=below / height, wspace=0.62, hspace=0.3
    )
    panels = [figure.add_subplot(grid[0, column]) for column in range(2)]
    sides = [side for side in _sides(layers) if side[1] not in former]
    marks = _layer_panel(panels[0], layers, "time", sides, "Layer, time / LoRA", "LoRA")
    marks |= _layer_panel(panels[1], layers, "peak bytes", sides, "Layer, peak bytes / LoRA", "LoRA")
    target = Line2D([], [], color=FAINT, linestyle="--", linewidth=1.2)
    figure.legend(
        [*marks.values(), target], [*(f"{ours} / {peer}" for ours, peer in marks), "target"], loc="upper right",
        ncols=len(marks) + 1, frameon=False, bbox_to_anchor=(0.99, 1 - 0.3069 / height),
    )  # fmt: skip
    _refresh_panel(figure.add_subplot(grid[1, :]), refreshes)
    modes: dict[str, Mark] = {}
    for column, title in enumerate(former):
        axes = figure.add_subplot(grid[2, column])
        sides = [side for side in _sides(layers) if side[1] == title]
        marks = _layer_panel(axes, layers, "time", sides, f"Layer, time / {title}", "before")
        modes |= {ours.rpartition(", ")[2]: mark for (ours, _), mark in marks.items()}
        axes.set_ylabel("" if column else axes.get_ylabel())
    if former:
        names = [*modes, "target, in its mode's colour"]
        figure.legend([*modes.values(), target], names, loc="lower right", ncols=len(names), frameon=False)
    return figure


def _sides(cells: Sequence[BenchCell]) -> list[tuple[str, str]]:
    """Return the pairs, ours and peer, that are held against a target."""
    return list(dict.fromkeys((claim.ours, claim.peer) for cell in cells for claim in cell.claims if claim.target))


def _layer_panel(
    axes: Axes, cells: Sequence[BenchCell], what: str, sides: Sequence[tuple[str, str]], title: str, peer: str
) -> dict[tuple[str, str], Mark]:
    """Draw a line a cell and a mark a pair, and return the pairs that were drawn, each with a mark of its own.

    Targets that differ from pair to pair have the colour of theirs.
    """
    claims = [
        (index, line, claim)
        for index, side in enumerate(sides)
        for line, cell in enumerate(cells)
        for claim in cell.claims
        if (claim.what, claim.ours, claim.peer) == (what, *side)
    ]
    apart = len({claim.target for _, _, claim in claims}) > 1
    marks: dict[tuple[str, str], Mark] = {}
    for index, line, claim in claims:
        mark = _dot(axes, line + 0.22 * (index - (len(sides) - 1) / 2), claim, index)
        marks |= {} if mark is None else {sides[index]: mark}
        if claim.target is not None:
            axes.axvline(claim.target, color=COLOURS[index] if apart else FAINT, linestyle="--", linewidth=1)
    _lines(axes, [cell.label for cell in cells], title)
    axes.set_xlabel(f"Ratio (below 1: less than {peer})")
    axes.set_ylabel("Shape of the weight (outputs x inputs), rank, tokens")
    return marks


def _refresh_panel(axes: Axes, cells: Sequence[BenchCell]) -> None:
    names: list[str] = []
    for cell in cells:
        for claim in cell.claims:
            if claim.what == "times faster" and claim.median is not None:
                line = len(names)
                _dot(axes, line, claim, 0)
                if claim.target is not None:
                    axes.plot([claim.target] * 2, [line - 0.4, line + 0.4], color=FAINT, linestyle="--", linewidth=1.2)
                names.append(f"{cell.label}, {claim.ours.removeprefix('gnlorp, ')}")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    _lines(axes, names, "Refresh, times faster than SVD")
    axes.set_xlabel("Time of the SVD over time of the refresh (logarithmic)")
    axes.set_ylabel("Shape, rank and method of the refresh")


def _dot(axes: Axes, line: float, claim: Ratio, look: int) -> Mark | None:
    """Draw a measured claim and return its mark."""
    middle = claim.median
    if middle is None:
        return None
    low, high = claim.spread or (middle, middle)
    reach = [[max(middle - low, 0.0)], [max(high - middle, 0.0)]]
    return axes.errorbar(
        middle, line, xerr=reach, color=COLOURS[look], fmt=MARKERS[look], markersize=6, capsize=3, zorder=3
    )


def _lines(axes: Axes, names: Sequence[str], title: str) -> None:
    """Name a line each at the side, the first on top: names are too long to stand below one another's marks."""
    axes.set_title(textwrap.fill(title, 36))
    axes.set_yticks(range(len(names)), names, fontsize=7.5)
    axes.invert_yaxis()


def _targets_row(kin: Kin) -> tuple[Entry, ...]:
    rank = f", rank {kin.rank}" if kin.rank is not None else ""
    medians = [claim.median for _, claim in kin.measured if claim.median is not None]
    span = _number(None) if not medians else _number(min(medians))
    if medians and _number(max(medians)) != span:
        span = f"{span} to {_number(max(medians))}"
    worst = "—"
    if kin.worst is not None:
        cell, claim = kin.worst
        spread = f" ({_spread(claim)})" if claim.spread else ""
        worst = f"{_number(claim.median)}{spread} at {cell.label}"
    return (
        Entry(f"{kin.group}{rank}: {kin.first.what}"), Entry(kin.first.ours), Entry(kin.first.peer),
        Entry(str(len(kin.members))), Entry(span), Entry(worst), Entry(_target(kin.first)), _met_entry(kin),
    )  # fmt: skip


def _met_entry(kin: Kin) -> Entry:
    if kin.first.target is None or kin.met:
        return Entry(MET[kin.met])
    answers = [claim.met for _, claim in kin.members]
    missed, unknown, count = answers.count(False), answers.count(None), len(answers)
    if not missed:
        return Entry("not measured" if unknown == count else f"not measured at {unknown} of {count}")
    text = "missed" if missed == count else f"missed at {missed} of {count}"
    return Entry(text + (f", {unknown} not measured" if unknown else ""), bold=True)


def _cell_notes(found: Bench) -> list[str]:
    notes = []
    for cell in found.cells:
        worst = max(cell.agreement.values(), default=0.0)
        says = "agree" if cell.agrees else "DIFFER"
        note = f"; {cell.note}" if cell.note else ""
        notes.append(f"{cell.group} {cell.label}: results {says}, largest difference {worst:.1e}{note}")
    return notes


def _number(value: float | None) -> str:
    if value is None:
        return "—"
    return f"{value:.1f}" if value >= 10 else f"{value:.4f}" if 0.99 < value < 1.0001 else f"{value:.2f}"


def _spread(claim: Ratio) -> str:
    return "—" if claim.spread is None else f"{_number(claim.spread[0])} to {_number(claim.spread[1])}"


def _target(claim: Ratio) -> str:
    return "—" if claim.target is None else f"{claim.rule} {claim.target:g}"
