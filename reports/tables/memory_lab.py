"""Tables and figure of the memory lab: what every setting costs, the ladder of savings, and the claims' verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from reports.figures.front_and_curves import Plot, draw
from reports.figures.parts_and_scores import Bar, stacked
from reports.figures.style import GIB, in_unit
from reports.records.selection import ReportError
from reports.tables.table import EMPTY, Entry, Table, with_sign
from reports.write import forms, page, write_files
from results.catalogue import Catalogue, catalogue_of
from results.lab import MemoryCell, Parts, RecomputedClaims, read_cell_file, read_verdicts
from results.store import TABLE

CLAIMS = "claims.json"
VARIANT = ", "
"""Between a method and what sets a row of the lab apart from it."""
Again = tuple[str, ...]
"""What is made again in backward."""
ALL_PARTS: Again = ("norms", "mlp", "loss")
Key = tuple[str, str, int, bool, bool, Again]
"""Model, method with its variant, state bits, per-layer, checkpointing, what is made again."""
# Column of the overview -> (state bits, per-layer, checkpointing, what is made again where the model has it).
COLUMNS: dict[str, tuple[int, bool, bool, Again]] = {
    "Peak": (32, False, False, ()),
    "recompute": (32, False, False, ALL_PARTS),
    "8-bit": (8, False, False, ()),
    "8-bit, recompute": (8, False, False, ALL_PARTS),
    "8-bit, per-layer": (8, True, False, ()),
    "8-bit, checkpointing": (8, False, True, ()),
    "8-bit, per-layer, checkpointing": (8, True, True, ()),
}
# Rung of the ladder -> (method, state bits, per-layer, checkpointing, made again): one thing is turned on at a time.
Rungs = dict[str, tuple[str, int, bool, bool, Again]]
RULE = "8-bit states are counted by rule: bitsandbytes' update allocates nothing beside the state"
TRACED = "Traced over tensors without values, by torch's CPU kernels; no allocator overhead"
ALL = "All: 8-bit, per-layer, checkpointing"
PARTS: dict[str, tuple[str, ...]] = {
    "Weights": ("parameter_bytes",),
    "Gradients": ("gradient_bytes",),
    "Optimizer state": ("optimizer_bytes",),
    "Activations": ("activation_bytes",),
    "Temporaries": ("temporary_bytes",),
    "Buffers and other": ("buffer_bytes", "other_bytes"),
}


@dataclass(frozen=True)
class Lab:
    """The cells by `Key`, the verdicts on published claims, and what the methods are."""

    cells: dict[Key, MemoryCell]
    verdicts: RecomputedClaims | None
    catalogue: Catalogue

    @property
    def methods(self) -> list[str]:
        """The methods in the order of rows."""
        names = {key[1] for key in self.cells}
        places = {name: place for place, name in enumerate(self.catalogue.ordered(map(_method, names)))}
        return sorted(names, key=lambda name: (places[_method(name)], name))

    def again(self, model: str, asked: Again) -> Again:
        """Return those of the parts that the model's cells show to be made again."""
        known = {part for key in self.cells if key[0] == model for part in key[-1]}
        return tuple(part for part in asked if part in known)

    def find(self, model: str, method: str, bits: int, per_layer: bool, checkpointing: bool, again: Again) -> Key:
        """Return the key of a cell, with what the model has of the parts."""
        return model, method, bits, per_layer, checkpointing, self.again(model, again)

    @property
    def models(self) -> list[str]:
        """The models from the smallest to the largest."""
        sizes = {cell.setting.model: cell.parameters for cell in self.cells.values()}
        return sorted(sizes, key=lambda model: sizes[model])

    def title(self, method: str) -> str:
        """Return what is printed for a method."""
        return self.catalogue.method(_method(method)).title + method.removeprefix(_method(method))


def load(folder: Path) -> Lab:
    """Return what the memory lab found.

    Raises:
        ReportError: the folder holds no cells.
        StoreError: a file of another schema.
    """
    paths = sorted(path for path in folder.glob("*.json") if path.name != CLAIMS and not path.name.endswith(TABLE))
    files = [read_cell_file(path) for path in paths]
    cells = {_key(cell): cell for file in files for cell in file.cells}
    if not cells:
        raise ReportError(f"{folder}: holds no memory cells: run `python -m suites memory-matrix` first")
    verdicts = read_verdicts(folder / CLAIMS) if (folder / CLAIMS).exists() else None
    return Lab(cells, verdicts, catalogue_of(file.catalogue for file in files))


def ladders(catalogue: Catalogue, methods: Iterable[str]) -> tuple[Rungs, Rungs]:
    """Return the ladder from dense AdamW to everything at once, and its steps of the method in another order.

    Empty where the yardstick, a method with bases alone, or one with bases and factors is missing.
    """
    entries = [catalogue.method(name) for name in catalogue.ordered(name for name in methods if VARIANT not in name)]
    dense = next((e.name for e in entries if e.yardstick), None)
    projected = next((e.name for e in entries if e.bases and not e.factors), None)
    factored = next((e.name for e in entries if e.bases and e.factors), None)
    if dense is None or projected is None or factored is None:
        return {}, {}
    ladder: Rungs = {
        "Dense AdamW": (dense, 32, False, False, ()),
        "low-rank state": (projected, 32, False, False, ()),
        "factors, not dense weights": (factored, 32, False, False, ()),
        "8-bit state": (factored, 8, False, False, ()),
        "per-layer update": (factored, 8, True, False, ()),
        "loss by chunks": (factored, 8, True, False, ("loss",)),
        "norms made again": (factored, 8, True, False, ("norms", "loss")),
        "MLP made again": (factored, 8, True, False, ALL_PARTS),
        "checkpointing": (factored, 8, True, True, ALL_PARTS),
    }
    reordered: Rungs = {
        "Dense AdamW": (dense, 32, False, False, ()),
        "checkpointing": (dense, 32, False, True, ()),
        "per-layer update": (dense, 32, True, True, ()),
        "low-rank state": (projected, 32, True, True, ()),
        "factors, not dense weights": (factored, 32, True, True, ()),
        "8-bit state": (factored, 8, True, True, ()),
    }
    return ladder, reordered


def step_bytes(cell: MemoryCell) -> int:
    """Return the highest total of a training step, one that refreshes bases included."""
    refresh = cell.phases.get("refresh", Parts())
    return max(cell.peak.total_bytes, refresh.total_bytes)


def overview_table(lab: Lab, models: Sequence[str], name: str = "cells") -> Table:
    """Return the peaks of every method at every model."""
    cells, columns = lab.cells, {title: rest for title, rest in COLUMNS.items() if _shown(lab, models, rest[-1])}
    rows, data = [], []
    for model in models:
        for method in lab.methods:
            entries = []
            record: dict[str, object] = {"model": model, "method": method}
            for bits in (32, 8):
                cell = cells.get((model, method, bits, False, False, ()))
                state = None if cell is None else cell.count.state_bytes
                entries.append(_gib(state))
                record[f"state{bits}_bytes"] = state
            for title, rest in columns.items():
                cell = cells.get(lab.find(model, method, *rest))
                peak = None if cell is None else step_bytes(cell)
                entries.append(_gib(peak))
                record[f"{title}, bytes"] = peak
            rows.append((Entry(f"{model}: {lab.title(method)}"), *entries))
            data.append(record)
    heads = ("Model and method", "State", "State, 8-bit", *columns)
    caption = f"Memory of a training step in GiB, predicted without weights. {_settings(cells, models)}"
    return Table(name, caption, heads, tuple(rows), _notes(lab), pd.DataFrame(data))


def ladder_table(lab: Lab, models: Sequence[str], rungs: Rungs, name: str) -> Table:
    """Return the peak after each rung, and what the rung saved of the one before."""
    # A rung that is the one before for every model has no cells yet.
    keys = {title: [lab.find(model, *rung) for model in models] for title, rung in rungs.items()}
    rungs = {
        title: rung
        for before, (title, rung) in zip([None, *keys], rungs.items(), strict=False)
        if before is None or keys[title] != keys[before]
    }
    rows, data = [], []
    for model in models:
        entries: list[Entry] = []
        before: tuple[Key, int] | None = None
        record: dict[str, object] = {"model": model}
        for title, rung in rungs.items():
            key = lab.find(model, *rung)
            cell = lab.cells.get(key)
            # A part that the model does not have is no step of its own.
            if cell is None or (before is not None and before[0] == key):
                entries.append(EMPTY)
                record[f"{title}, bytes"] = None
                continue
            now = step_bytes(cell)
            saved = "" if before is None else f" ({with_sign((now - before[1]) / GIB, 2)})"
            entries.append(Entry(f"{in_unit(now, GIB)}{saved}"))
            record[f"{title}, bytes"] = now
            before = key, now
        rows.append((Entry(model), *entries))
        data.append(record)
    caption = "What each step down saves: peak of a training step in GiB, and the change against the column before. "
    heads = ("Model", *rungs)
    return Table(name, caption + _settings(lab.cells, models), heads, tuple(rows), _notes(lab), pd.DataFrame(data))


def claim_table(found: RecomputedClaims) -> Table:
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


def parts_plot(lab: Lab, model: str, methods: Sequence[str], name: str = "parts") -> Plot:
    """Draw what the peak consists of at one model: methods as they are, then with every way to save turned on."""
    cells = lab.cells
    bars = [
        Bar(method, f"{lab.title(method)}{suffix}", False, split(cells[model, method, *rest].peak))
        for rest, suffix in (((32, False, False, ()), ""), ((8, True, True, ()), ", all"))
        for method in methods
        if (model, method, *rest) in cells
    ]
    settings = _settings(cells, [model])
    caption = f"Parts of the peak of a plain training step at {model}. {settings} {TRACED}. {ALL}."
    title = f"What peak memory consists of: {model}"
    return draw(name, title, caption, lambda: stacked(bars, title, settings, f"{TRACED}. {ALL}."))


def split(parts: Parts) -> dict[str, int]:
    """Return bytes by part as figures show them."""
    return {part: sum(getattr(parts, field) for field in fields) for part, fields in PARTS.items()}


def build_memory_report(folder: Path, out: Path) -> list[Path]:
    """Write every table and figure below `out`/memory and return their paths, the page last.

    Raises:
        ReportError: no cells.
        StoreError: a file of another schema, or a folder that cannot be written.
    """
    lab = load(folder)
    largest = lab.models[-1]
    shown = [model for model in lab.models if model in ("roberta-base", largest)]
    tables = [overview_table(lab, lab.models), overview_table(lab, shown, "fits")]
    for rungs, name in zip(ladders(lab.catalogue, lab.methods), ("ladder", "ladder-reordered"), strict=True):
        tables += [ladder_table(lab, lab.models, rungs, name)] if rungs else []
    tables += [claim_table(lab.verdicts)] if lab.verdicts is not None else []
    # Those that have a colour of their own are the ones of a comparison.
    usual = [method for method in lab.methods if lab.catalogue.method(_method(method)).slot is not None]
    plots = [parts_plot(lab, largest, usual)]
    plots += [parts_plot(lab, largest, lab.methods, "parts-all")] if usual != lab.methods else []
    files = forms(tables, plots) | {"report.md": page("Memory", tables, plots).encode()}
    return write_files(out / "memory", files)


def _method(name: str) -> str:
    return name.partition(VARIANT)[0]


def _key(cell: MemoryCell) -> Key:
    setting = cell.setting
    method = f"{setting.method}{VARIANT}{setting.variant}" if setting.variant else setting.method
    return setting.model, method, setting.state_bits, setting.per_layer, setting.checkpointing, setting.recompute


def _shown(lab: Lab, models: Sequence[str], again: Again) -> bool:
    """Whether a column says more than the one without its parts: some cell of the models has them."""
    return not again or any(lab.again(model, again) for model in models)


def _gib(amount: int | None) -> Entry:
    return EMPTY if amount is None else Entry(in_unit(amount, GIB))


def _settings(cells: dict[Key, MemoryCell], models: Sequence[str]) -> str:
    """Return batch, length, precision and ranks of the models, said once where they agree."""
    kinds: dict[str, list[str]] = {}
    for model in models:
        setting = next(cell.setting for cell in cells.values() if cell.setting.model == model)
        words = f"micro-batch {setting.batch} x {setting.sequence}, {setting.precision}"
        kinds.setdefault(words, []).append(f"{model} (rank {setting.rank})")
    return " ".join(f"{words}: {', '.join(names)}." for words, names in kinds.items())


def _notes(lab: Lab) -> tuple[str, ...]:
    halved = [
        lab.title(m) for m in lab.methods if VARIANT not in m and (e := lab.catalogue.method(m)).bases and e.factors
    ]
    projected = [f"{', '.join(halved)} projects on half its rank"] if halved else []
    return (
        TRACED,
        RULE,
        "Pre-training has no dropout, the encoder the methods' own",
        "Peaks include a step that refreshes bases",
        *projected,
    )
