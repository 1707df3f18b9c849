"""How a method looks in every table and figure: title, colour and marker; and how bytes are printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from reports.records.frames import ROW
from results.catalogue import Catalogue, SuiteEntry, committed


@dataclass(frozen=True)
class Look:
    """Title, colour (safe for colour-blind readers), marker, and whether its lines are dashed: one method."""

    title: str
    colour: str
    marker: str
    dashed: bool = False

    @property
    def line(self) -> Any:
        """Style of its lines: a dashed one leaves a solid one below it in sight."""
        return (0, (4, 1.6)) if self.dashed else "-"


# Colours: Okabe and Ito's palette, black first. The marker says the same again for readers without colour.
# Every other one is dashed: DoRA's lines lie on LoRA's.
SLOTS = (
    ("#000000", "o", False), ("#E69F00", "s", False), ("#CC79A7", "^", True), ("#009E73", "D", False),
    ("#0072B2", "P", True),
)  # fmt: skip
CONTROL = ("#9A9A9A", "X", True)
# No two of these counts share a divisor: a look repeats only after their product.
FREE_COLOURS = ("#D55E00", "#56B4E9", "#8C6D1F", "#6F6F6F", "#8B5CD6")
FREE_MARKERS = ("v", "X", "<", "p", ">", "h", "d")
FREE_DASHES = (True, False)
Drawn = tuple[str, str, bool]
"""Colour, marker, dashed."""

PART_COLOURS: dict[str, str] = {
    "Weights": "#9A9A9A",
    "Gradients": "#88CCEE",
    "Optimizer state": "#332288",
    "Bases": "#AA4499",
    "Activations": "#DDCC77",
    "Temporaries": "#CC6677",
    "Buffers and other": "#DDDDDD",
}

KIB, MIB, GIB = 1024, 1024**2, 1024**3


def looks(names: Iterable[str], catalogue: Catalogue, suite: SuiteEntry | None = None) -> dict[str, Look]:
    """Return every method's look, in the order of rows. A control is grey, and its title says what it is."""
    shown = catalogue.ordered(names)
    drawn = _drawn(shown, catalogue)
    found: dict[str, Look] = {}
    for name in shown:
        method = catalogue.method(name)
        whole = method.yardstick and ROW not in name
        renamed = suite.yardstick_title if suite is not None and whole else None
        found[name] = Look((renamed or method.title) + (" (control)" if method.control else ""), *drawn[name])
    return found


def _drawn(names: Sequence[str], catalogue: Catalogue) -> dict[str, Drawn]:
    """Return how the named methods are drawn, and all that the committed catalogue knows.

    Looks are given out to those first, named or not, then to unknown methods and to rows: what stands beside a known
    method does not change it. One without a slot gets the next free look, so that neighbours differ in all of it. Of
    two that claim one slot the first keeps it. The row that has its method's slot is drawn as the method.
    """
    free = zip(cycle(FREE_COLOURS), cycle(FREE_MARKERS), cycle(FREE_DASHES), strict=False)
    known = committed().ordered(method.name for method in committed().methods)
    found: dict[str, Drawn] = {}
    taken: set[int] = set()
    for name in dict.fromkeys([*known, *(name.partition(ROW)[0] for name in names), *names]):
        method, base = catalogue.method(name), name.partition(ROW)[0]
        slot = method.slot if method.slot is not None and method.slot < len(SLOTS) else None
        if method.control:
            found[name] = CONTROL
        elif slot is not None and base in found:
            found[name] = found[base]
        else:
            found[name] = next(free) if slot is None or slot in taken else SLOTS[slot]
            taken |= set() if slot is None else {slot}
    return found


def seed_words(seeds: Sequence[int]) -> str:
    """Return sorted seeds as text: "seed 0", "seeds 0, 1", or "seeds 0 to 99" for more than six in a row."""
    in_a_row = len(seeds) > 6 and list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    numbers = f"{seeds[0]} to {seeds[-1]}" if in_a_row else ", ".join(map(str, seeds))
    return f"seed{'' if len(seeds) == 1 else 's'} {numbers}"


def byte_unit(largest: int) -> tuple[str, int]:
    """Return the unit (name, bytes) in which a column whose largest entry is `largest` is printed."""
    for name, size in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if largest >= size:
            return name, size
    return "bytes", 1


def in_unit(amount: int, size: int) -> str:
    """Return `amount` bytes in units of `size` bytes with two decimals; only nothing at all is printed as 0."""
    if size == 1 or amount == 0:
        return str(amount)
    value = amount / size
    return "<0.01" if 0 < value < 0.005 else f"{value:,.2f}"
