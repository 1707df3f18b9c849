"""Variants of a method: rows that differ in settings alone, each with its difference to the row they start from."""

from __future__ import annotations

from typing import Any

import pandas as pd

from reports.records.frames import ROW
from reports.records.report_runs import Context
from reports.stats.over_seeds import LEAST_SEEDS, LEVEL_WORDS
from reports.stats.pairs import Pair
from reports.tables.findings import Findings, compare
from reports.tables.table import EMPTY, Entry, Table, with_sign


def ablation_table(context: Context) -> Table | None:
    """Return every variant against its method's first row; None where no method has several rows."""
    several = {method: rows for method, rows in context.variants.items() if len(rows) > 1}
    asked = [(row, base) for base, *others in several.values() for row in others]
    found = compare(context, [row for rows in several.values() for row in rows], asked) if asked else None
    if found is None:
        return None
    pairs = dict(zip(asked, found.pairs, strict=True))
    rows, data = [], []
    for base, *others in several.values():
        rows.append((Entry(context.title(base)), Entry("base"), _mean(found, base), *[EMPTY] * 4))
        data.append(_data(found, base, base, None))
        for row in others:
            pair = pairs[row, base]
            rows.append(
                (Entry(context.title(row)), Entry(changed(row, base)), _mean(found, row), *_against(found, row, pair))
            )
            data.append(_data(found, row, base, pair))
    heads = ("Row", "Changed", found.what.capitalize(), f"Better than the base by, {found.unit}",
             f"{LEVEL_WORDS} interval, all at once", "p, Holm", "By ÷ seed noise")  # fmt: skip
    notes = [
        f"Base: the row that differs from the method's others in least. Paired by seed and task; corrected for "
        f"{sum(pair.p is not None for pair in found.pairs)} comparisons. Bold: told apart from the base. At least "
        f"{LEAST_SEEDS} shared seeds a task to decide",
        *(
            [f"Not in these differences, too few seeds or not run: {', '.join(found.left_out)}"]
            if found.left_out
            else []
        ),
    ]
    caption = context.caption(f"variants of a method against its base row, {found.what}", context.by_task)
    return Table("ablation", caption, heads, tuple(rows), tuple(notes), pd.DataFrame(data))


def changed(row: str, base: str) -> str:
    """Return the settings of a row that are not its base's: "norm_gradient=detached"."""
    mine, other = (name.partition(ROW)[2].split(",") for name in (row, base))
    return ", ".join(part for part in mine if part not in other)


def _mean(found: Findings, row: str) -> Entry:
    mean = found.mean(row)
    if mean is None:
        return EMPTY
    # A base with more seeds than its variants has another mean than the differences start from.
    fewest = min(len(seeds) for seeds in found.scores[row].values())
    known = f" (n={fewest})" if fewest < len(found.context.seeds) else ""
    return Entry(f"{found.metric.text(found.metric.gain(mean))}{known}")


def signed(row: str, pair: Pair[str]) -> tuple[float | None, float | None, float | None]:
    """Return by how much a row is better than the other of the pair, with its interval."""
    mean, low, high = pair.difference.mean, pair.low, pair.high
    if pair.first == row or mean is None:
        return mean, low, high
    return -mean, None if high is None else -high, None if low is None else -low


def _against(found: Findings, row: str, pair: Pair[str]) -> tuple[Entry, ...]:
    mean, low, high = signed(row, pair)
    text, sign = found.metric.text, 1 if pair.first == row else -1
    return (
        EMPTY if mean is None else Entry(text(mean, "+"), pair.decided),
        EMPTY if low is None or high is None else Entry(f"{text(low, '+')} to {text(high, '+')}"),
        EMPTY if pair.p is None else Entry("<0.001" if pair.p < 0.001 else f"{pair.p:.3f}"),
        EMPTY if pair.effect is None else Entry(with_sign(sign * pair.effect, 1)),
    )


def _data(found: Findings, row: str, base: str, pair: Pair[str] | None) -> dict[str, Any]:
    mean, low, high = (None, None, None) if pair is None else signed(row, pair)
    score = found.mean(row)
    return {
        "row": row, "base": base, "changed": changed(row, base),
        "score": None if score is None else found.metric.gain(score), "better_by": mean, "low": low, "high": high,
        "p_holm": None if pair is None else pair.p, "decided": None if pair is None else pair.decided,
        "seed_noise": None if pair is None else pair.noise, "metric": found.metric.name,
    }  # fmt: skip
