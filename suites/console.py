"""What a person sees of a launch: the plan as a table, progress with remaining time, one line a finished run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from baselines.registry import checked_name, get_method
from results.protocols import read_protocols
from results.schema import Peak, Plan, Record, flat
from suites.measure.environment import bf16_slowdown
from suites.run.worker import Event
from suites.suite import Runtime

LEAST_SHARE = 0.01
LINE_EVERY_S = 30.0
SIGNS = {
    "ok": "ok",
    "diverged": "DIVERGED",
    "out_of_memory": "OUT OF MEMORY",
    "failed": "FAILED",
    "interrupted": "stopped",
}


def bytes_text(count: int | None) -> str:
    """Return bytes as MiB or GiB for reading; an unknown number as a dash."""
    if count is None:
        return "-"
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.2f} MiB"


def duration_text(seconds: float | None) -> str:
    """Return seconds as minutes and seconds for reading."""
    if seconds is None:
        return "unknown (no earlier run of this kind)"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def plan_table(plans: Sequence[Plan], todo: Sequence[Plan], predicted: Mapping[str, int | None]) -> Table:
    """Return a table with a line a method: runs, missing ones, settings, learning rate, predicted peak.

    A method under several settings has a line for each, which says what differs.
    """
    table = Table(title="What will run", title_justify="left")
    for column in ("method", "runs", "missing", "settings", "learning rate", "steps a run", "predicted peak"):
        table.add_column(column, justify="right" if column in ("runs", "missing") else "left")
    waiting = {plan.hash() for plan in todo}
    for title, apart, own in _lines(plans):
        peaks = [peak for plan in own if (peak := predicted.get(plan.hash())) is not None]
        table.add_row(
            title,
            str(len(own)),
            str(sum(plan.hash() in waiting for plan in own)),
            ", ".join(f"{key}={value}" for key, value in (_common(own) | apart).items()) or "-",
            _rates(own),
            _span([plan.training.steps for plan in own]),
            bytes_text(max(peaks, default=None)),
        )
    return table


def _lines(plans: Sequence[Plan]) -> Iterator[tuple[str, dict[str, object], list[Plan]]]:
    """Yield (title, settings that tell it from the method's other lines, plans) for every line of the plan."""
    for name in dict.fromkeys(plan.method for plan in plans):
        own = {plan.hash(): plan for plan in plans if plan.method == name}
        fields = {key: flat(plan.model_dump(mode="json")) for key, plan in own.items()}
        places: dict[tuple[str, int], list[dict[str, object]]] = {}
        for key, plan in own.items():
            places.setdefault((plan.task, plan.seed), []).append(fields[key])
        differing = [
            field
            for field in dict.fromkeys(field for found in fields.values() for field in found)
            if any(len({json.dumps(found.get(field)) for found in here}) > 1 for here in places.values())
        ]
        lines: dict[str, list[str]] = {}
        for key, found in fields.items():
            lines.setdefault(json.dumps([found.get(field) for field in differing]), []).append(key)
        for keys in lines.values():
            apart = {field.rpartition(".")[2]: fields[keys[0]].get(field) for field in differing}
            yield get_method(name).title, apart, [own[key] for key in keys]


def size_lines(plans: Sequence[Plan]) -> list[str]:
    """Return a line for each different length of run: steps, micro-batches, sequences and the most tokens they hold."""
    found = []
    for plan in plans:
        training, length = plan.training, plan.data.max_length
        line = (
            f"a run: {training.steps:,} steps of {_counted(training.accumulation, 'micro-batch', 'es')} of "
            f"{_counted(training.batch_size // training.accumulation, 'sequence')}, "
            f"at most {length:,} tokens each: at most {training.batch_size * length:,} tokens a step, "
            f"{training.steps * training.batch_size * length:,} in all; warm-up {training.warmup_steps:,} steps"
        )
        found.append(line)
    return list(dict.fromkeys(found))


def parts_table(plans: Sequence[Plan], parts: Mapping[str, Peak]) -> Table:
    """Return a line a method: what the predicted peak of a plain step consists of, and the bytes of a checkpoint.

    A checkpoint is all weights and the optimizer's state.
    """
    table = Table(title="Predicted memory of a plain step, at the plan with the highest peak", title_justify="left")
    heads = ("weights", "gradients", "optimizer state", "activations", "temporary", "other", "peak", "checkpoint")
    table.add_column("method")
    for head in heads:
        table.add_column(head, justify="right")
    for name in dict.fromkeys(plan.method for plan in plans):
        peaks = [parts[plan.hash()] for plan in plans if plan.method == name and plan.hash() in parts]
        peak = max(peaks, key=lambda found: found.total_bytes)
        amounts = (
            peak.parameter_bytes,
            peak.gradient_bytes,
            peak.optimizer_bytes,
            peak.activation_bytes,
            peak.temporary_bytes,
            peak.buffer_bytes + peak.other_bytes,
            peak.total_bytes,
            peak.parameter_bytes + peak.optimizer_bytes,
        )
        table.add_row(get_method(name).title, *map(bytes_text, amounts))
    return table


def hours_lines(plans: Sequence[Plan], runtime: Runtime) -> list[str]:
    """Return what the plans take on named devices, a line a device, and on disk."""
    from results.devices import read_devices
    from suites.measure.roofline import WORDS, hours, record_bytes
    from suites.run.loop import CURVE_POINTS

    found = [f"GPU hours of all missing runs, low to high ({WORDS}):"]
    for device in read_devices():
        span = hours(plans, runtime, device)
        found.append(f"  {device.name}: {span['low']:,.1f}, expected {span['expected']:,.1f}, to {span['high']:,.1f}")
    return [
        *found,
        f"disk: records about {bytes_text(record_bytes(plans, CURVE_POINTS))}; checkpoints as above, one run",
    ]


def result_line(record: Record) -> str:
    """Return one line about a finished run."""
    plan = record.plan
    score = "-"
    if record.evaluations and record.main_metric is not None:
        value = record.evaluations[-1].metrics.get(record.main_metric)
        score = "undefined" if value is None else f"{record.main_metric} {value:.4f}"
    if record.status != "ok":
        score = next(iter((record.error or "").splitlines()), "")[:160]
    peak = None if record.memory is None or record.memory.step_peak is None else record.memory.step_peak.total_bytes
    wall = record.timing.wall_s if record.timing else None
    seconds = "" if wall is None else f"  {wall:.1f} s"
    what = f"{SIGNS[record.status]:>8}  {plan.task:<5} {plan.method:<13} seed {plan.seed}"
    return f"{what}  {score}  peak {bytes_text(peak)}{seconds}"


def summary_line(
    plans: Sequence[Plan], todo: Sequence[Plan], runtime: Runtime, seconds: float | None, out: Path
) -> str:
    """Return the line that says how many runs there are, how they are shared out, and how long they should take."""
    tasks = len({plan.task for plan in plans})
    expected = duration_text(seconds) if todo else "none, everything is there"
    # Where nothing is to run, nobody was asked how many runs would go at a time.
    shared = f" {runtime.workers} at a time, {_counted(runtime.threads, 'thread')} each;" if todo else ""
    return (
        f"{_counted(len(plans), 'run')} ({_counted(tasks, 'task')}), {len(todo)} missing;{shared} "
        f"expected time: {expected}; records in {out}"
    )


def precision_warning(plans: Sequence[Plan], runtime: Runtime) -> str | None:
    """Return what to know about bf16 on this processor, if a plan wants it there and it is slower than fp32."""
    if all(plan.training.precision == "fp32" or plan.training.bf16_products == "fp32" for plan in plans):
        return None
    factor = bf16_slowdown(runtime.device)
    if factor is None or factor < 1.5:
        return None
    return (
        f"warning: bf16 takes {factor:.0f} times as long as fp32 on this processor (one matrix product, measured now); "
        "--set precision=fp32, and --set bf16_products=fp32 where weights are in bf16, are other plans, with records "
        "of their own"
    )


class ProgressListener:
    """Shows all steps of a launch as one bar with remaining time, a bar a run in hand, and a line a finished run.

    Where nobody looks (a file, a pipe) a line every `LINE_EVERY_S` seconds stands for the bars.
    """

    def __init__(self, console: Console, plans: Sequence[Plan]) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            speed_estimate_period=300,
        )
        self._runs = len(plans)
        self._ended = 0
        self._overall = self._progress.add_task("all runs", total=sum(plan.training.steps for plan in plans))
        self._bars: dict[str, tuple[TaskID, int]] = {}
        self._started = self._said = time.monotonic()
        self._steps = sum(plan.training.steps for plan in plans)
        self._done = self._before = 0

    def __enter__(self) -> ProgressListener:
        self._progress.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        key = event.plan.hash()
        if event.record is not None:
            self._end(key, event)
            return
        if key not in self._bars:
            self._bars[key] = (self._progress.add_task(_named(event), total=event.plan.training.steps), 0)
        bar, before = self._bars[key]
        self._progress.update(bar, completed=event.step, description=_named(event))
        # Steps of a checkpoint took no time now: they are none of what is to do, and no measure of how long it takes.
        resumed = 0 if before else max(0, event.step - 1)
        self._before += resumed
        self._progress.update(self._overall, total=self._steps - self._before, advance=event.step - before - resumed)
        self._bars[key] = (bar, event.step)
        self._done += event.step - before
        if not self._console.is_terminal and time.monotonic() - self._said >= LINE_EVERY_S:
            self._said = time.monotonic()
            self._console.print(self._line(event), markup=False, highlight=False)

    def _line(self, event: Event) -> str:
        plan, spent, made = event.plan, time.monotonic() - self._started, self._done - self._before
        # The first steps are those after the set-up, which is no measure of the others.
        enough = made > 0 and self._done / self._steps >= LEAST_SHARE
        left = f", about {duration_text(spent * (self._steps - self._done) / made)} left" if enough else ""
        loss = "" if event.loss is None else f", loss {event.loss:.4g}"
        return (
            f"[{self._ended:>3}/{self._runs}] {_named(event)}: step {event.step:,} of "
            f"{plan.training.steps:,}{loss}; {self._done / self._steps:.0%} of all steps{left}"
        )

    def _end(self, key: str, event: Event) -> None:
        assert event.record is not None
        bar, before = self._bars.pop(key)
        self._done += event.plan.training.steps - before
        self._progress.advance(self._overall, event.plan.training.steps - before)
        self._progress.remove_task(bar)
        self._ended += 1
        self._console.print(
            f"[{self._ended:>3}/{self._runs}] {result_line(event.record)}", markup=False, highlight=False
        )


def _named(event: Event) -> str:
    """Return a run in a few words, with its device where that is known."""
    plan, where = event.plan, "" if event.device is None else f" on {event.device}"
    return f"{plan.task} {plan.method} seed {plan.seed}{where}"


def _counted(count: int, noun: str, ending: str = "s") -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}{ending}"


def _common(plans: Sequence[Plan]) -> dict[str, object]:
    shown = ("rank", "projection_rank", "alpha", "scale", "refresh_gap", "norm_gradient")
    first = plans[0].method_config
    return {
        key: first[key] for key in shown if key in first and all(p.method_config.get(key) == first[key] for p in plans)
    }


def _rates(plans: Sequence[Plan]) -> str:
    rest = [plan.training.rest_learning_rate or plan.training.learning_rate for plan in plans]
    own = [plan.training.learning_rate for plan in plans]
    return _span(own) + (f" (rest {_span(rest)})" if rest != own else "")


def _span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def protocol_table(suite: str, methods: Sequence[str], rank: int | None, place: str) -> Table:
    """Return the settings of a suite's published runs with their sources, of some methods, a rank, a place.

    Raises:
        ValueError: no published runs of the suite, or a name or rank that their protocol does not know.
    """
    known = read_protocols()
    protocol = known[checked_name(suite, known, "suite with published runs")]
    named = sorted({place for each in protocol.statements for place in each.places})
    for method in methods:
        get_method(method)
    if place:
        checked_name(place, named, protocol.places.removesuffix("s"))
    if rank is not None and protocol.ranks and rank not in protocol.ranks:
        near = min(protocol.ranks, key=lambda one: abs(one - rank))
        raise ValueError(f"rank {rank}: the protocol speaks of {', '.join(map(str, protocol.ranks))} (nearest: {near})")
    table = Table(title=f"Protocol of {protocol.source}; the last row that fits counts", title_justify="left")
    for column in ("methods", "ranks", protocol.places, "setting", "value", "status", "source"):
        table.add_column(column, overflow="fold")
    for each in protocol.statements:
        asked = ((methods, each.methods), ([rank] if rank else [], each.ranks), ([place] if place else [], each.places))
        if any(wanted and spoken and not {*wanted} & {*spoken} for wanted, spoken in asked):
            continue
        who, ranks = ", ".join(each.methods) or "all", ", ".join(map(str, each.ranks)) or "all"
        for name, value in each.values.items():
            text = "one for all" if value is None else str(value)
            table.add_row(who, ranks, ", ".join(each.places) or "all", name, text, each.status, each.source)
    return table
