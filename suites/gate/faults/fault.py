"""What a seeded fault is: texts of files replaced by others, and where that must show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Edit:
    """One text of a file replaced by another.

    Attributes:
        file: path below the root of the tree.
        old: stands in the file exactly once.
    """

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        what: what is wrong, in a sentence.
        cells: parts of the cells (`results.gate.quantities.cell_of`) in which it is wrong.
        only: which of the gate's runs show it, as `suites.gate.runs.gate_plans` takes them; a run beyond `cells`
            belongs to a method or a setting that the fault does not touch.
        expected: the first kind, in the order of `results.gate.quantities.KINDS`, that has a finding; or "none".
    """

    name: str
    what: str
    edits: tuple[Edit, ...]
    cells: tuple[str, ...]
    only: tuple[str, ...]
    expected: Literal["exact", "peak", "loss", "gradient", "score", "none"]
