"""Compare every value of two snapshot folders: `python tests/reports/compare_snapshots.py OLD NEW`; exit code 1 if any.

Of Markdown each cell of each table, by its row and column; of CSV each field, by its row and column. Texts around the
tables are compared by the numbers in them. A difference is printed as "FILE: PLACE: OLD -> NEW".
"""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
ABSENT = "absent"
NAMES = (
    "table", "plan_hash", "suite", "profile", "rank", "title", "method", "against", "task", "metric", "epoch", "tasks",
    "mnli", "mrpc", "qqp", "stsb", "key", "step", "column", "setting", "source", "id", "check", "cell", "what", "ours",
    "peer", "candidate", "name",
)  # fmt: skip
"""Columns that say what a row of CSV is."""


def values(path: Path) -> dict[str, str]:
    """Return place -> value of everything in a file."""
    return dict(_of_csv(path) if path.suffix == ".csv" else _of_markdown(path))


def _of_csv(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (row and column, field); a row is named by its texts, since rows may stand in another order."""
    seen = Counter[str]()
    for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
        name = " ".join(row.get(column) or "" for column in NAMES if column in row)
        seen[name] += 1
        for column, value in row.items():
            yield f"{name} #{seen[name]}, {column}", value


def _of_markdown(path: Path) -> Iterator[tuple[str, str]]:
    heads: list[str] = []
    caption, words, seen = "", Counter[str](), Counter[str]()
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().replace("**", "") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not line.startswith("|"):
            heads = []
            words.update(NUMBER.findall(line))
            caption = re.split(r"[:.]", line)[0] if line.startswith("**") else caption
        elif not heads:
            heads = cells
        elif set(cells) - {"---", "---:"}:
            row = f"{caption} {cells[0]}, {heads[1]}"
            seen[row] += 1
            for head, cell in zip(heads[1:], cells[1:], strict=True):
                yield f"{row} #{seen[row]}, {head}", cell
    for number, count in words.items():
        yield f"text, {number}", str(count)


def differences(old: Path, new: Path) -> Iterator[str]:
    """Yield a line for each value that the folders have otherwise; a file that one of them lacks is one line."""
    found = [
        path.relative_to(side) for side in (old, new) for path in side.rglob("*") if path.suffix in (".md", ".csv")
    ]
    files = sorted(set(found))
    for file in files:
        sides = [side / file for side in (old, new)]
        if not all(path.is_file() for path in sides):
            yield f"{file}: {ABSENT} in the {'new' if sides[0].is_file() else 'old'} folder"
            continue
        before, after = map(values, sides)
        for place in dict.fromkeys([*before, *after]):
            one, other = before.get(place, ABSENT), after.get(place, ABSENT)
            if one != other:
                yield f"{file}: {place}: {one} -> {other}"


if __name__ == "__main__":
    found = list(differences(Path(sys.argv[1]), Path(sys.argv[2])))
    sys.stdout.write("".join(f"{line}\n" for line in found) + f"{len(found)} differences\n")
    sys.exit(bool(found))
