"""`python -m suites memory MODEL --fits LIMIT`: what fits, as a table for people or as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from rich.console import Console
from rich.table import Column, Table

from results.lab import FitsAnswer, FitsRow, Setting
from suites.c4.sizes import SIZES
from suites.lab.answer import answer
from suites.lab.asked import Asked, lab_of, one_row
from suites.lab.fits import OVERHEAD_WORDS, gib, largest, parse_bytes
from suites.lab.lab import Lab
from suites.lab.named import check_name
from suites.lab.networks import BUILT_IN, find_network
from suites.measure.environment import usable_cpus
from suites.measure.estimate import ESTIMATE_WORDS, ESTIMATES, Estimate, estimated
from suites.options import split
from suites.run.processes import in_processes

FAMILY = "llama"
SMALL_SHARE = 0.01
ROWS_WORDS = "Batches are rows a step, of all its micro-batches and processes; the next one has a row more in each."


def print_answers(
    console: Console, models: str, methods: Sequence[str], asked: Asked, fits: str, offline: bool, as_json: bool
) -> None:
    """Answer for each model, one a process where there are several, and print in the order they were asked.

    Raises:
        ValueError: an unknown model, a limit that cannot be read, a value that is not allowed.
    """
    limit = parse_bytes(fits, "limit")
    if limit == 0:
        raise ValueError(f"limit {fits!r}: must be above 0 (such as 24GiB)")
    names = split(models)
    for name in names:
        check_name(name, BUILT_IN)
    shares = [(name, methods, asked, limit, offline) for name in names]
    answers = _in_order(
        in_processes(_answered, [(index, *each) for index, each in enumerate(shares)], usable_cpus(), 1, copies=True),
        names,
    )
    if as_json:
        console.file.write("[" + ",\n".join(each.model_dump_json() for each in answers) + "]\n")
        return
    for each in answers:
        print_answer(console, each, fits)
    if len(answers) > 1:
        console.print(overview(answers, fits))


def _in_order(found: Iterable[tuple[int, FitsAnswer]], names: Sequence[str]) -> list[FitsAnswer]:
    """Return the answers in the order of their models; where there are several, say on stderr which has come."""
    said = Console(stderr=True)
    answers: dict[int, FitsAnswer] = {}
    for index, each in found:
        answers[index] = each
        if len(names) > 1:
            said.print(f"{len(answers)}/{len(names)} {each.model}: {each.seconds:.0f} s", markup=False)
    return [answers[index] for index in sorted(answers)]


def overview(answers: Sequence[FitsAnswer], fits: str) -> Table:
    """Return one table of all models: a row a method, and whether it fits with which largest batch by the expected
    estimate."""
    table = Table(Column("method", no_wrap=True), *(each.model for each in answers))
    table.title = f"within {fits}: whether it fits, largest batch in rows a step (expected)"
    table.title_justify = "left"
    for rows in zip(*(each.rows for each in answers), strict=True):
        table.add_row(rows[0].title, *("-" if row.refused is not None else brief(row) for row in rows))
    return table


def brief(row: FitsRow) -> str:
    """Return whether a method fits and its largest batch by the expected estimate."""
    return f"{verdict(row)}, {row.estimates['expected'].largest_batch:,}"


def verdict(row: FitsRow) -> str:
    """Return by which of the estimates a method fits, in a word."""
    low, expected, high = (row.estimates[each].fits for each in ESTIMATES)
    return "yes" if high else "likely" if expected else "perhaps" if low else "no"


def _answered(
    index: int, name: str, methods: Sequence[str], asked: Asked, limit: int, offline: bool
) -> tuple[int, FitsAnswer]:
    return index, answer(name, methods, asked, limit, offline)


def print_answer(console: Console, found: FitsAnswer, fits: str) -> None:
    """Print one answer: the question in words, a row a method, what accelerate says, what the words mean."""
    for line in question(found, fits):
        console.print(line, markup=False, soft_wrap=True)
    asked = f"a step of {found.batch} row{'' if found.batch == 1 else 's'}"
    heads = ("trains", "weights", "gradients", "state", asked, "fits", "largest batch")
    table = Table(Column("method", no_wrap=True), *heads)
    for row in found.rows:
        table.add_row(*([row.title, *cells(row)] if row.refused is None else [row.title, "-", *["-"] * 4, "no", "-"]))
    beside = found.accelerate_bytes
    table.add_section()
    table.add_row("accelerate estimate-memory", "everything", _figure(beside["weights"]), "-", "-",
                  f"{_figure(beside['training'])} without activations", "-", "-")  # fmt: skip
    console.print(table)
    for row in found.rows:
        if row.refused is not None:
            console.print(f"{row.title}: {row.refused}", markup=False, soft_wrap=True)
    console.print(
        f"GiB; a step: expected (low to high); largest batch, in rows a step: low / expected / high. {ESTIMATE_WORDS}. "
        f"No device was asked. {found.seconds:.0f} s.",
        markup=False,
        soft_wrap=True,
    )


def question(found: FitsAnswer, fits: str) -> list[str]:
    """Return the question in words: model, work, ranks, precision, length, what is adapted and what is not."""
    ranks = sorted({row.rank for row in found.rows if row.refused is None})
    words = [
        f"{found.model}: {_large(found.parameters)} parameters"
        + (", head tied to the embeddings" if found.tied_head else ""),
        found.work,
        f"rank {', '.join(map(str, ranks))}",
        found.precision,
        f"batch {found.batch} x {found.sequence} tokens",
    ]
    words += [f"{found.accumulation} micro-batches"] if found.accumulation > 1 else []
    words += ["8-bit moments"] if found.state_bits == 8 else []
    words += ["frozen weights in 4 bits"] if found.base_bits == 4 else []
    lines = [", ".join([*words, f"targets {found.targets}", *found.options, f"limit {fits} of a CUDA device"])]
    if found.not_adapted:
        lines.append(
            f"not adapted, and kept as the model has them: {', '.join(found.not_adapted)} (no linear layers, or left "
            "out by the set; methods that train everything train them)"
        )
    return lines


def cells(row: FitsRow) -> list[str]:
    """Return the cells of a method after its name."""
    low, expected, high = (row.estimates[each] for each in ESTIMATES)
    batches = " / ".join(f"{each.largest_batch:,}" if each.largest_batch else "none" for each in (low, expected, high))
    return [
        f"{row.trains} ({_large(row.trained_parameters)})",
        _figure(row.weight_bytes),
        _figure(row.gradient_bytes),
        f"{_figure(row.state_bytes)} {state_words(row)}",
        f"{_figure(expected.asked_bytes)} ({_figure(low.asked_bytes)} to {_figure(high.asked_bytes)})",
        verdict(row),
        batches,
    ]


def state_words(row: FitsRow) -> str:
    """Return the dtypes that the optimizer's state is in, those of a hundredth of it at least."""
    total = sum(row.state_dtypes.values())
    named = sorted(row.state_dtypes.items(), key=lambda item: -item[1])
    return " + ".join(name for name, size in named if size >= SMALL_SHARE * total)


def _figure(size: int) -> str:
    return f"{size / 2**30:.1f}" if size >= 0.05 * 2**30 else f"{size / 2**30:.3f}"


def _large(number: int) -> str:
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.2f}{name}"
    return str(number)


def print_estimates(console: Console, model: str, names: Sequence[str], asked: Asked, fits: str, offline: bool) -> None:
    """Print what fits a process of several, traced as it is."""
    limit, network = parse_bytes(fits, "limit"), find_network(model, offline)
    console.print(f"limit {fits} of a CUDA device, largest batch by estimate ({ESTIMATE_WORDS}).", markup=False)
    console.print(f"{ROWS_WORDS} Peaks are of the whole step, one that refreshes bases included; no device was asked.")
    table = Table("method", *(f"{estimate}: batch, takes, the next one" for estimate in ESTIMATES))
    for name in names:
        lab, setting = lab_of(network, name, one_row(asked))
        found = [_most(setting, partial(_estimate, lab, each), limit) for each in ESTIMATES]
        cells = (f"{rows:,}, {gib(now)}, {gib(after)}" if rows else f"none fits, {gib(after)}"
                 for rows, now, after in found)  # fmt: skip
        table.add_row(name, *cells)
    console.print(table)


def print_fits(
    console: Console, model: str, names: Sequence[str], asked: Asked, fits: str, overhead: str, offline: bool
) -> None:
    """Print which batch of a model, or which LLaMA, has tensors within a limit less an overhead."""
    limit, taken = parse_bytes(fits, "limit"), parse_bytes(overhead, "overhead")
    if taken >= limit:
        raise ValueError(f"overhead {overhead!r}: must be below the limit of {fits}")
    family = model == FAMILY
    console.print(
        f"limit {fits} less {overhead} for context and allocator ({OVERHEAD_WORDS}; --overhead): tensors have"
    )
    console.print(f"{gib(limit - taken)}. Peaks are of the whole step, one that refreshes bases included.")
    if not family:
        console.print(ROWS_WORDS)
    table = Table("method", "largest LLaMA" if family else "largest batch", "its peak", "the next one's peak")
    for name in names:
        if family:
            table.add_row(name, *_largest_size(name, asked, limit - taken, offline))
            continue
        lab, setting = lab_of(find_network(model, offline), name, one_row(asked))
        rows, now, after = _most(setting, lab.peak_bytes, limit - taken)
        table.add_row(name, f"{rows:,}" if rows else "none fits", gib(now or None), gib(after))
    console.print(table)


def _most(setting: Setting, takes: Callable[[Setting], int], limit: int) -> tuple[int, int, int | None]:
    """Return (rows a step, what it takes, what a row more in each micro-batch takes) of the largest step that fits."""
    found, now, after = largest(lambda rows: takes(setting.model_copy(update={"batch": rows})), limit)
    return found * setting.accumulation * setting.processes, now, after


def _estimate(lab: Lab, estimate: Estimate, setting: Setting) -> int:
    return estimated(lab.held(setting), estimate)


def _largest_size(method: str, asked: Asked, limit: int, offline: bool) -> tuple[str, str, str]:
    """Return (name, peak, peak of the next larger one), from the largest downwards."""
    after: int | None = None
    for size in reversed(SIZES):
        lab, setting = lab_of(find_network(size, offline), method, asked)
        peak = lab.peak_bytes(setting)
        if peak <= limit:
            return size, gib(peak), gib(after)
        after = peak
    return "none fits", "-", gib(after)
