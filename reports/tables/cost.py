"""Tables of cost: measured memory, estimated memory (never in one column with the measured), and time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd

from reports.figures.style import byte_unit, in_unit
from reports.records.frames import one_machine
from reports.records.report_runs import Context
from reports.stats.over_seeds import geometric_mean
from reports.tables.table import EMPTY, Entry, Table

# Column title -> column of the run frame. All are counted from live tensors.
MEASURED: dict[str, str] = {
    "Weights": "weight_bytes",
    "Trainable": "trainable_bytes",
    "Gradients": "gradient_bytes",
    "Optimizer state": "state_bytes",
    "of it bases": "basis_bytes",
    "Activations at peak": "step_peak_activation_bytes",
    "Peak, plain step": "step_peak_total_bytes",
    "Peak, refresh step": "refresh_peak_total_bytes",
}
PROCESS: dict[str, str] = {
    "RSS at start": "rss_start_bytes",
    "RSS peak": "rss_peak_bytes",
    "CUDA allocated peak": "cuda_allocated_peak_bytes",
    "CUDA reserved peak": "cuda_reserved_peak_bytes",
}
PEAK = "tracked_peak_bytes"
REFRESH = "Refresh step, ms"
REFRESH_NOTE = "Refresh step: mean optimizer time of a step that refreshes the bases"
NO_REFRESH_NOTE = "No seconds of a refresh step: the runs are of more than one machine or load"
Range = tuple[int, int]


@dataclass(frozen=True)
class Peaks:
    """Peaks of the same tasks, so that they can be held against each other.

    Attributes:
        of: method -> the highest over those tasks; absent where one of them was not measured.
        words: " of TASKS" where more tasks were measured than those; empty where they are all.
    """

    of: dict[str, int]
    words: str

    @property
    def note(self) -> str:
        """What a reader must know where they are not of all tasks; empty where they are."""
        return f"Peak: the highest{self.words}; on other tasks not all methods were measured" if self.words else ""


def finished(context: Context) -> pd.DataFrame:
    """Return the runs of status ok: what a broken run held in memory says nothing about the method."""
    return context.runs[context.runs["status"] == "ok"]


def byte_range(runs: pd.DataFrame, column: str) -> Range | None:
    """Return the smallest and the largest value over runs; None if none is known."""
    values = runs[column].dropna()
    return None if values.empty else (int(values.min()), int(values.max()))


def highest(runs: pd.DataFrame, column: str) -> dict[str, int]:
    """Return method -> largest value over its runs; absent where none is known."""
    largest = runs.dropna(subset=[column]).groupby("method", observed=True)[column].max()
    return {str(method): int(value) for method, value in largest.items()}


def peaks_of(context: Context, methods: Iterable[str], tasks: Iterable[str]) -> Peaks:
    """Return the tracked peaks over those of the tasks on which all of the methods were measured.

    A method that was measured on none of them has no say.
    """
    runs = finished(context).dropna(subset=[PEAK])
    runs = runs[runs["task"].isin(list(tasks))]
    measured = {str(method): set(of) for method, of in runs.groupby("method", observed=True)["task"]}
    every = set().union(*measured.values())
    shared = every.intersection(*(measured[method] for method in methods if method in measured))
    found = highest(runs[runs["task"].isin(shared)], PEAK)
    titles = ", ".join(context.titles[task] for task in context.tasks if task in shared)
    kept = {method: peak for method, peak in found.items() if measured[method] >= shared}
    return Peaks(kept, "" if shared == every else f" of {titles}")


def memory_task(context: Context) -> str | None:
    """Return the task that the memory table is about: measured for most methods, then the one with the highest peak."""
    runs = finished(context).dropna(subset=[PEAK])
    runs = runs[runs["task"].isin(context.tasks)]
    if runs.empty:
        return None
    rank = {
        str(task): (group["method"].nunique(), int(group[PEAK].max()), -context.tasks.index(str(task)))
        for task, group in runs.groupby("task", observed=True)
    }
    return max(rank, key=lambda task: rank[task])


def memory_place(context: Context) -> str:
    """Return "TITLE, the task with the highest peak", less bold where some method was not measured on every task; of a
    suite with one task its title."""
    task = memory_task(context)
    assert task is not None
    if not context.by_task:
        return context.titles[task]
    runs = finished(context).dropna(subset=[PEAK])
    cells = runs[runs["task"].isin(context.tasks)].groupby(["method", "task"], observed=True).ngroups
    complete = cells == len(context.methods) * runs["task"].nunique()
    among = "" if complete else " among the tasks measured for the most methods"
    return f"{context.titles[task]}, the task with the highest peak{among}"


def _unit(ranges: list[Range | None]) -> tuple[str, int]:
    return byte_unit(max((high for found in ranges if found for high in found), default=0))


def _bytes_entry(found: Range | None, size: int) -> Entry:
    """Return one number if all runs agree to the byte, else both ends."""
    if found is None:
        return EMPTY
    low, high = found
    return Entry(in_unit(low, size) if low == high else f"{in_unit(low, size)}–{in_unit(high, size)}")


def _range_data(context: Context, runs: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Return lowest and highest bytes for each method and task."""
    places = pd.MultiIndex.from_product([context.methods, context.tasks], names=["method", "task"])
    grouped = runs.groupby(["method", "task"], observed=True)
    low, high = grouped[columns].min().add_suffix("_min"), grouped[columns].max().add_suffix("_max")
    both = pd.concat([low, high], axis=1).reindex(places).astype("Int64")
    frame = both[[f"{column}{end}" for column in columns for end in ("_min", "_max")]]
    frame.insert(0, "runs", grouped.size().reindex(places, fill_value=0).astype("Int64"))
    frame.insert(0, "title", [context.title(method) for method, _ in places])
    return frame.reset_index()


def _byte_rows(context: Context, runs: pd.DataFrame, columns: dict[str, str]) -> tuple[str, list[list[Entry]]]:
    """Return the common unit and one row of entries a method."""
    ranges = {m: [byte_range(runs[runs["method"] == m], c) for c in columns.values()] for m in context.methods}
    unit, size = _unit([found for row in ranges.values() for found in row])
    return unit, [
        [Entry(context.title(m)), *(_bytes_entry(found, size) for found in ranges[m])] for m in context.methods
    ]


def memory_table(context: Context) -> Table | None:
    """Return measured bytes by part at the task with the highest peak; None where nothing was measured."""
    task = memory_task(context)
    if task is None:
        return None
    runs = finished(context)
    here = runs[runs["task"] == task]
    unit, rows = _byte_rows(context, here, MEASURED)
    sizes = ("state_bytes", PEAK)
    ratios = {column: _ratio_to_yardstick(here, column, context.yardstick) for column in sizes}
    for method, row in zip(context.methods, rows, strict=True):
        row += [_ratio_entry(ratio.get(method)) for ratio in ratios.values()]
    heads = ("Method", *MEASURED, "State ÷ full", "Peak ÷ full")
    caption = context.caption(f"measured memory in {unit} at {memory_place(context)}")
    notes = (
        "Counted from live tensors; peaks are the tracked bytes at the longest batch of one optimizer step, of a plain "
        "one and of one that refreshes the bases (— where a method has none); Peak ÷ full takes the larger of the two",
        "One number: identical to the byte over all seeds; two: the smallest and the largest",
        "All tasks and all parts in bytes: the CSV of this table",
    )
    parts = [name for name in context.runs.columns if name.startswith(("step_peak_", "refresh_peak_"))]
    names = [*dict.fromkeys([*MEASURED.values(), "buffer_bytes", PEAK, *parts])]
    return Table("memory", caption, heads, tuple(map(tuple, rows)), notes, _range_data(context, runs, names))


def _ratio_to_yardstick(runs: pd.DataFrame, column: str, yardstick: str | None) -> dict[str, float]:
    """Return method -> its largest value over the yardstick's largest; empty without the yardstick."""
    largest = highest(runs, column)
    base = largest.get(yardstick or "", 0)
    return {method: value / base for method, value in largest.items()} if base else {}


def _ratio_entry(ratio: float | None) -> Entry:
    return EMPTY if ratio is None else Entry(f"{ratio:.3f}")


def peak_by_task_table(context: Context) -> Table | None:
    """Return the tracked peak (plain or refresh step, the larger) of every method on every task."""
    if not context.by_task:
        return None
    runs = finished(context)
    ranges = {
        method: [byte_range(runs[(runs["method"] == method) & (runs["task"] == task)], PEAK)
                 for task in context.tasks]
        for method in context.methods
    }  # fmt: skip
    flat = [found for row in ranges.values() for found in row]
    if not any(flat):
        return None
    unit, size = _unit(flat)
    rows = [(Entry(context.title(m)), *(_bytes_entry(found, size) for found in row)) for m, row in ranges.items()]
    heads = ("Method", *(context.titles[task] for task in context.tasks))
    caption = context.caption(f"measured peak memory in {unit} by task, the larger of plain and refresh step")
    note = "One number: identical to the byte over all seeds; two: the smallest and the largest"
    return Table("peaks", caption, heads, tuple(rows), (note,), _range_data(context, runs, [PEAK]))


def process_table(context: Context) -> Table | None:
    """Return what the operating system and the device saw; None where nothing was measured."""
    runs = finished(context)
    columns = {head: name for head, name in PROCESS.items() if runs[name].notna().any()}
    if not columns:
        return None
    unit, rows = _byte_rows(context, runs, columns)
    caption = context.caption(f"measured memory of the process and the device in {unit}, over all tasks and seeds")
    note = "Smallest and largest over runs: everything included, the interpreter and its libraries too; not exact"
    data = _range_data(context, runs, list(PROCESS.values()))
    return Table("process", caption, ("Method", *columns), tuple(map(tuple, rows)), (note,), data)


def estimate_table(context: Context) -> Table | None:
    """Return the formula's state and the predicted peak beside what was measured, each in its own column."""
    task = memory_task(context)
    columns = {"formula_state_bytes": "state_bytes", "predicted_peak_bytes": "step_peak_total_bytes"}
    runs = finished(context)
    here = runs[runs["task"] == task]
    if task is None or not here[list(columns)].notna().any(axis=None):
        return None
    ranges = {
        method: [byte_range(here[here["method"] == method], name) for pair in columns.items() for name in pair]
        for method in context.methods
    }
    unit, size = _unit([found for row in ranges.values() for found in row])
    rows = []
    for method, (formula, state, predicted, peak) in ranges.items():
        left = [_bytes_entry(formula, size), _bytes_entry(state, size), _gap(formula, state)]
        right = [_bytes_entry(predicted, size), _bytes_entry(peak, size), _gap(predicted, peak)]
        rows.append((Entry(context.title(method)), *left, *right))
    heads = (
        "Method",
        "State, estimate",
        "State, measured",
        "State, gap",
        "Peak, estimate",
        "Peak, measured",
        "Peak, gap",
    )
    caption = context.caption(f"estimated against measured memory in {unit} at {context.titles[task]}")
    notes = (
        "State estimate: the method's own formula over its matched layers, plain AdamW for the rest; peak "
        "estimate: said before the run, plain step",
        "Gap: measured minus estimate, in percent of the estimate",
    )
    names = [name for pair in columns.items() for name in pair]
    data = _range_data(context, runs, names)
    return Table("estimates", caption, heads, tuple(rows), notes, data)


def _gap(estimate: Range | None, measured: Range | None) -> Entry:
    if estimate is None or measured is None or not estimate[1]:
        return EMPTY
    if measured[1] == estimate[1]:
        return Entry("0 %")
    gap = 100 * (measured[1] - estimate[1]) / estimate[1]
    text = f"{gap:+.2f} %" if abs(gap) >= 0.005 else f"{'+' if gap > 0 else '-'}<0.01 %"
    return Entry(text.replace("-", "−"))


def time_table(context: Context) -> Table | None:
    """Return step time as a ratio to full fine-tuning in the same environment, and where the time goes."""
    runs = finished(context).dropna(subset=["step_s"])
    if runs.empty:
        return None
    rows, data, alike = [], [], one_machine(runs)
    for method in context.methods:
        mine = runs[runs["method"] == method]
        known = step_ratios(mine)
        total = float(mine["train_s"].sum())
        shares = {
            part: float(mine[f"{part}_s"].sum()) / total if total else None
            for part in ("forward", "backward", "optimizer")
        }
        refresh = mine["refresh_step_s"].dropna()
        values = {
            "step_ratio": geometric_mean(known),
            **{"step_ratio_min": min(known, default=None), "step_ratio_max": max(known, default=None)},
            **{f"{part}_share": share for part, share in shares.items()},
            "refresh_step_s": float(refresh.mean()) if len(refresh) and alike else None,
        }
        rows.append((Entry(context.title(method)), *_time_entries(values, alike)))
        data.append(
            {"method": method, "title": context.title(method), "runs": len(mine), "tasks": len(known), **values}
        )
    heads = ("Method", "Step ÷ full", "over tasks", "Forward", "Backward", "Optimizer", *([REFRESH] if alike else []))
    caption = context.caption("time of one optimizer step as a ratio to full fine-tuning in the same environment")
    notes = (
        "Ratios are taken run by run against full fine-tuning of the same task, seed, settings and environment "
        "(device, threads, runs at a time, versions), then geometric means over seeds and tasks; — where no "
        "such run exists",
        f"Forward, backward, optimizer: share of the training time. {REFRESH_NOTE if alike else NO_REFRESH_NOTE}. "
        "Evaluation is off the clock",
    )
    numbers = [name for name in data[0] if name.endswith(("_share", "_s", "_min", "_max", "_ratio"))]
    return Table(
        "time", caption, heads, tuple(rows), notes, pd.DataFrame(data).astype(dict.fromkeys(numbers, "Float64"))
    )


def step_ratios(runs: pd.DataFrame) -> list[float]:
    """Return the step times over the yardstick's, a geometric mean a task; only of tasks that have one."""
    by_task = runs.dropna(subset=["step_ratio"]).groupby("task", observed=True)["step_ratio"]
    means = [geometric_mean(map(float, values)) for _, values in by_task]
    return [value for value in means if value is not None]


def _time_entries(values: dict[str, float | None], alike: bool) -> list[Entry]:
    def entry(name: str, show: Callable[[float], str]) -> Entry:
        value = values[name]
        return EMPTY if value is None else Entry(show(value))

    low, high = values["step_ratio_min"], values["step_ratio_max"]
    span = EMPTY if low is None or high is None else Entry(f"{low:.2f}–{high:.2f}")
    shares = [
        entry(f"{part}_share", lambda value: f"{100 * value:.0f} %") for part in ("forward", "backward", "optimizer")
    ]
    refresh = [entry("refresh_step_s", lambda s: f"{1000 * s:.1f}")] if alike else []
    return [entry("step_ratio", "{:.2f}".format), span, *shares, *refresh]
