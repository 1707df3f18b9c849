"""Rows of text with labels: what is loaded of a task, a part of it held out, a fixed subset of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

Stamp = tuple[tuple[Path, int, int], ...]


@dataclass(frozen=True)
class Loaded:
    """One task of text as loaded.

    Attributes:
        splits: split name -> rows with the hub's columns: texts, label, idx (the row's position in a directory's file).
        digest: sha256 that names the content.
        revision: the hub's commit; None for the other sources.
        notes: what differs from the official release, a sentence each.
        official: every split has the official number of rows; the texts themselves are not compared.
    """

    splits: dict[str, Dataset]
    digest: str
    revision: str | None
    notes: list[str]
    official: bool


def stamp(paths: Iterable[Path]) -> Stamp:
    """Return what tells one version of files from the next: what was read of them is kept by it, also in a notebook."""
    found = [(path, path.stat()) for path in paths if path.is_file()]
    return tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in found)


def hold_out(train: Dataset, size: float | int, seed: int) -> tuple[Dataset, Dataset]:
    """Split train rows into a part to train on and a part to tune on, so that validation stays untouched.

    Stratified by label where labels are classes. Rows with the same texts, in either order, stay on one side; where
    such a group does not fit, the held-out part is smaller than asked, never larger. Row order is kept.

    Args:
        train: rows with text columns, "label" and "idx".
        size: a fraction in (0, 1) as float, or a number of rows as int.
        seed: of the choice; equal arguments give equal parts on every machine.

    Returns:
        (train, held_out): disjoint, together all rows.

    Raises:
        ValueError: size that leaves either part empty.
    """
    total = len(train)
    rows = round(size * total) if isinstance(size, float) else size
    if not 0 < rows < total:
        raise ValueError(
            f"held-out size {size} of {total} rows: must leave at least one row in both parts, "
            f"nearest is {min(max(rows, 1), total - 1)} rows"
        )
    texts = zip(*(train[name][:] for name in train.column_names if name not in ("label", "idx")), strict=True)
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, text in enumerate(texts):
        groups[tuple(sorted(text))].append(index)
    labels = train["label"][:]
    by_class = all(isinstance(label, int) for label in labels)
    strata: dict[object, list[list[int]]] = defaultdict(list)
    for group in groups.values():
        strata[labels[group[0]] if by_class else None].append(group)
    held = _draw(strata, rows, np.random.RandomState(seed))
    if not held:
        raise ValueError(f"held-out size {size} of {total} rows: smaller than every group of rows with equal texts")
    rest = [index for index in range(total) if index not in held]
    return train.select(rest), train.select(sorted(held))


def cap(dataset: Dataset, rows: int | None, seed: int) -> Dataset:
    """A fixed seeded subset in the original order; None, or at least as many rows as there are: the data set itself.

    A smaller cap with the same seed is a subset of a larger one.

    Raises:
        ValueError: rows below 1.
    """
    if rows is not None and rows < 1:
        raise ValueError(f"row cap {rows}: must be at least 1")
    if rows is None or rows >= len(dataset):
        return dataset
    # RandomState's stream is frozen across numpy versions, the one of numpy's default generator is not.
    return dataset.select(sorted(np.random.RandomState(seed).permutation(len(dataset))[:rows].tolist()))


def _draw(strata: Mapping[object, list[list[int]]], rows: int, random: np.random.RandomState) -> set[int]:
    """Rows drawn group by group, at most `rows`, shared among strata by largest remainder."""
    sizes = {name: sum(map(len, groups)) for name, groups in strata.items()}
    total = sum(sizes.values())
    quotas = {name: rows * size // total for name, size in sizes.items()}
    remainders = sorted(sizes, key=lambda name: (-(rows * sizes[name] % total), str(name)))
    for name in remainders[: rows - sum(quotas.values())]:
        quotas[name] += 1
    held: set[int] = set()
    for name in sorted(strata, key=str):
        left = quotas[name]
        for position in random.permutation(len(strata[name])):
            group = strata[name][position]
            if len(group) <= left:
                held.update(group)
                left -= len(group)
    return held
