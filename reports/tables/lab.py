"""Tables and figure of the memory lab: what every setting costs, the ladder of savings, and the claims' verdicts."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from reports.figures.lines import FAINT, INK, Plot, draw
from reports.figures.style import GIB, KNOWN, PART_COLOURS, in_unit, method_order, method_title
from reports.records.selection import ReportError
from reports.tables.render import Entry, Table, to_csv, to_latex, to_markdown
from results.lab import Cell, Parts, Verdicts, read_cells, read_verdicts
from results.store import write_atomically

EMPTY = Entry("—")
CLAIMS = "claims.json"
Key = tuple[str, str, int, bool, bool]
# Column of the overview -> (state bits, per-layer, checkpointing).
COLUMNS: dict[str, tuple[int, bool, bool]] = {
    "Peak": (32, False, False),
    "8-bit": (8, False, False),
    "8-bit, per-layer": (8, True, False),
    "8-bit, checkpointing": (8, False, True),
    "8-bit, per-layer, checkpointing": (8, True, True),
}
# Rung of the ladder -> (method, state bits, per-layer, checkpointing): one thing is turned on at a time.
LADDER: dict[str, tuple[str, int, bool, bool]] = {
    "Dense AdamW": ("full", 32, False, False),
    "low-rank state": ("galore", 32, False, False),
    "factors, not dense weights": ("gradnormlorp", 32, False, False),
    "8-bit state": ("gradnormlorp", 8, False, False),
    "per-layer update": ("gradnormlorp", 8, True, False),
    "checkpointing": ("gradnormlorp", 8, True, True),
}
REORDERED: dict[str, tuple[str, int, bool, bool]] = {
    "Dense AdamW": ("full", 32, False, False),
    "checkpointing": ("full", 32, False, True),
    "per-layer update": ("full", 32, True, True),
    "low-rank state": ("galore", 32, True, True),
    "factors, not dense weights": ("gradnormlorp", 32, True, True),
    "8-bit state": ("gradnormlorp", 8, True, True),
}
RULE = "8-bit states are counted by rule: bitsandbytes' update allocates nothing beside the state"
TRACED = "Traced over tensors without values, by torch's CPU kernels; no allocator overhead"
PARTS: dict[str, tuple[str, ...]] = {
    "Weights": ("parameter_bytes",),
    "Gradients": ("gradient_bytes",),
    "Optimizer state": ("optimizer_bytes",),
    "Activations": ("activation_bytes",),
    "Temporaries": ("temporary_bytes",),
    "Buffers and other": ("buffer_bytes", "other_bytes"),
}


def load(folder: Path) -> tuple[dict[Key, Cell], Verdicts | None]:
    """Return the cells by model, method, state bits, per-layer and checkpointing, and the claims' verdicts.

    Raises:
        ReportError: the folder holds no cells.
        StoreError: a file of another schema.
    """
    paths = sorted(path for path in folder.glob("*.json") if path.name != CLAIMS)
    cells = [cell for path in paths for cell in read_cells(path)]
    if not cells:
        raise ReportError(f"{folder}: holds no memory cells: run `python -m suites memory-matrix` first")
    return {_key(cell): cell for cell in cells}, read_verdicts(folder / CLAIMS) if (folder / CLAIMS).exists() else None


def step_bytes(cell: Cell) -> int:
    """Return the highest total of a training step, one that refreshes bases included."""
    refresh = cell.phases.get("refresh", Parts())
    return max(cell.peak.total_bytes, refresh.total_bytes)


def models_of(cells: Iterable[Cell]) -> list[str]:
    """Return the models from the smallest to the largest."""
    sizes = {cell.setting.model: cell.parameters for cell in cells}
    return sorted(sizes, key=lambda model: sizes[model])


def overview_table(cells: dict[Key, Cell], models: Sequence[str], name: str = "cells") -> Table:
    """Return the peaks of every method at every model."""
    methods = method_order({key[1] for key in cells})
    rows, data = [], []
    for model in models:
        for method in methods:
            entries = []
            record: dict[str, object] = {"model": model, "method": method}
            for bits in (32, 8):
                cell = cells.get((model, method, bits, False, False))
                state = None if cell is None else cell.count.state_bytes
                entries.append(_gib(state))
                record[f"state{bits}_bytes"] = state
            for title, rest in COLUMNS.items():
                cell = cells.get((model, method, *rest))
                peak = None if cell is None else step_bytes(cell)
                entries.append(_gib(peak))
                record[f"{title}, bytes"] = peak
            rows.append((Entry(f"{model}: {method_title(method)}"), *entries))
            data.append(record)
    heads = ("Model and method", "State", "State, 8-bit", *COLUMNS)
    caption = f"Memory of a training step in GiB, predicted without weights. {_settings(cells, models)}"
    return Table(name, caption, heads, tuple(rows), _notes(cells), pd.DataFrame(data))


def ladder_table(
    cells: dict[Key, Cell], models: Sequence[str], rungs: dict[str, tuple[str, int, bool, bool]], name: str
) -> Table:
    """Return the peak after each rung, and what the rung saved of the one before."""
    rows, data = [], []
    for model in models:
        entries: list[Entry] = []
        before: int | None = None
        record: dict[str, object] = {"model": model}
        for title, rung in rungs.items():
            cell = cells.get((model, *rung))
            now = None if cell is None else step_bytes(cell)
            saved = "" if before is None or now is None else f" ({(now - before) / GIB:+.2f})"
            entries.append(Entry(f"{in_unit(now, GIB)}{saved}") if now is not None else EMPTY)
            record[f"{title}, bytes"] = now
            before = now
        rows.append((Entry(model), *entries))
        data.append(record)
    caption = "What each step down saves: peak of a training step in GiB, and the change against the column before. "
    return Table(
        name, caption + _settings(cells, models), ("Model", *rungs), tuple(rows), _notes(cells), pd.DataFrame(data)
    )


def claim_table(found: Verdicts) -> Table:
    """Return the verdict on every published claim; the cells of one published table stand in one row."""
    rows, data = [], []
    tables: dict[str, list[bool]] = {}
    for verdict in found.verdicts:
        claim = verdict.claim
        record = {"id": claim.id, "source": claim.source, "printed": claim.value, "unit": claim.unit}
        data.append({**record, "tried": verdict.tried, "holding": verdict.holding, "verdict": verdict.words})
        if "-table" in claim.id:
            tables.setdefault(claim.source, []).append(verdict.holding > 0)
            continue
        rows.append((Entry(f"{claim.id}, {claim.value:g} {claim.unit} ({claim.source})"), Entry(verdict.words)))
    rules = {rule.table: rule for rule in found.rules}
    for source, holding in tables.items():
        rule = rules[source]
        words = f"{sum(holding)} of {len(holding)} cells have some convention that prints them; the best single one "
        rows.append((Entry(source), Entry(f"{words}prints {rule.holding}: {rule.convention}")))
    caption = "Published memory numbers, recomputed under every convention their sources could mean."
    note = (
        "Conventions: bf16 or fp32 weights, moments, adapters and bases, bases counted or not, the rest of the model "
    )
    note += "trained, frozen or counted twice, GB or GiB; a number prints the same if rounded or cut off"
    return Table("claims", caption, ("Claim", "Verdict"), tuple(rows), (note,), pd.DataFrame(data))


def parts_plot(cells: dict[Key, Cell], model: str) -> Plot:
    """Draw what the peak consists of at one model: every method as it is, then with every way to save turned on."""
    methods = method_order({key[1] for key in cells if key[0] == model})
    bars = [
        (f"{method_title(method)}{suffix}", cells[model, method, *rest].peak)
        for rest, suffix in (((32, False, False), ""), ((8, True, True), ", 8-bit, per-layer, checkpointing"))
        for method in methods
        if (model, method, *rest) in cells
    ]
    caption = f"Parts of the peak of a plain training step at {model}. {_settings(cells, [model])} {TRACED}."
    title = f"What peak memory consists of: {model}"
    return draw("parts", title, caption, lambda: _bars(bars, title, caption))


def _bars(bars: list[tuple[str, Parts]], title: str, caption: str) -> Figure:
    width, height = 9.2, 1.9 + 0.4 * len(bars)
    figure = Figure(figsize=(width, height))
    figure.text(0.12 / width, 1 - 0.14 / height, title, fontsize=13, fontweight="bold", va="top")
    lines = textwrap.wrap(caption, 140)
    figure.text(0.12 / width, 0.09 / height, "\n".join(lines), fontsize=8, color=FAINT, va="bottom")
    left = (max(len(name) for name, _ in bars) * 9.5 * 0.56 / 72 + 0.2) / width
    bottom = (0.6 + 0.15 * len(lines)) / height
    axes = figure.add_axes((left, bottom, 0.97 - left, 1 - bottom - 0.85 / height))
    longest = max(parts.total_bytes for _, parts in bars) / GIB
    for row, (_, parts) in enumerate(bars):
        start = 0.0
        for part, fields in PARTS.items():
            size = sum(getattr(parts, field) for field in fields) / GIB
            axes.barh(row, size, left=start, height=0.72, color=PART_COLOURS[part], edgecolor="white", linewidth=0.4)
            start += size
        axes.text(start + 0.01 * longest, row, f"{start:,.2f}", va="center", fontsize=9.5, color=INK)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=9.5)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, 1.1 * longest)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("GiB at the peak")
    handles = [Patch(color=PART_COLOURS[part], label=part) for part in PARTS]
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.1 / width, 1 - 0.42 / height), ncols=6, frameon=False
    )
    return figure


def build_memory_report(folder: Path, out: Path) -> list[Path]:
    """Write every table and figure below `out`/memory and return their paths, the page last.

    Raises:
        ReportError: no cells.
        StoreError: a file of another schema, or a folder that cannot be written.
    """
    cells, verdicts = load(folder)
    models = models_of(cells.values())
    largest = models[-1]
    tables = [
        overview_table(cells, models),
        overview_table(cells, [model for model in models if model in ("roberta-base", largest)], "fits"),
        ladder_table(cells, models, LADDER, "ladder"),
        ladder_table(cells, models, REORDERED, "ladder-reordered"),
        *([claim_table(verdicts)] if verdicts is not None else []),
    ]
    plot = parts_plot(cells, largest)
    files: dict[str, bytes] = {}
    forms: dict[str, Callable[[Table], str]] = {"md": to_markdown, "csv": to_csv, "tex": to_latex}
    for table in tables:
        files |= {f"{table.name}.{ending}": write(table).encode() for ending, write in forms.items()}
    files |= {"parts.png": plot.png, "parts.svg": plot.svg}
    page = ["# Memory\n", *(to_markdown(table) for table in tables), f"![{plot.title}](parts.png)\n\n{plot.caption}\n"]
    files["report.md"] = "\n".join(page).encode()
    return [write_atomically(out / "memory" / name, content) for name, content in files.items()]


def _key(cell: Cell) -> Key:
    setting = cell.setting
    return setting.model, setting.method, setting.state_bits, setting.per_layer, setting.checkpointing


def _gib(amount: int | None) -> Entry:
    return EMPTY if amount is None else Entry(in_unit(amount, GIB))


def _settings(cells: dict[Key, Cell], models: Sequence[str]) -> str:
    """Return batch, length, precision and ranks of the models, said once where they agree."""
    kinds: dict[str, list[str]] = {}
    for model in models:
        setting = next(cell.setting for cell in cells.values() if cell.setting.model == model)
        words = f"micro-batch {setting.batch} x {setting.sequence}, {setting.precision}"
        kinds.setdefault(words, []).append(f"{model} (rank {setting.rank})")
    return " ".join(f"{words}: {', '.join(names)}." for words, names in kinds.items())


def _notes(cells: dict[Key, Cell]) -> tuple[str, ...]:
    projected = f"{KNOWN['gradnormlorp'].title} projects on half its rank"
    return (TRACED, RULE, "Peaks include a step that refreshes bases", projected)
