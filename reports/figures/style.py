"""How a method looks in every table and figure: title, colour and marker; and how bytes are printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle


@dataclass(frozen=True)
class Look:
    """Title, colour (safe for colour-blind readers) and marker of one method."""

    title: str
    colour: str
    marker: str


# Colours: Okabe and Ito's palette, black for the yardstick. The marker says the same again for readers without colour.
KNOWN: dict[str, Look] = {
    "full": Look("Full fine-tuning", "#000000", "o"),
    "lora": Look("LoRA", "#E69F00", "s"),
    "dora": Look("DoRA", "#CC79A7", "^"),
    "galore": Look("GaLore", "#009E73", "D"),
    "gradnormlorp": Look("GradNormLoRP", "#0072B2", "P"),
}
FREE_COLOURS = ("#D55E00", "#56B4E9", "#8C6D1F", "#6F6F6F")
FREE_MARKERS = ("v", "X", "<", "p", ">", "h", "d")

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


def method_title(name: str) -> str:
    """Return the method's title; an unknown method is printed under its own name."""
    return KNOWN[name].title if name in KNOWN else name


def method_order(names: Iterable[str]) -> list[str]:
    """Return the names in the order of rows: the known ones as listed here, then the others by alphabet."""
    present = set(names)
    return [name for name in KNOWN if name in present] + sorted(present - set(KNOWN))


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Return every method's look, in the order of rows; unknown ones get the next free colour and marker.

    Neighbours differ in both; a pair repeats only after 28 unknown methods.
    """
    free = zip(cycle(FREE_COLOURS), cycle(FREE_MARKERS), strict=False)
    return {name: KNOWN[name] if name in KNOWN else Look(name, *next(free)) for name in method_order(names)}


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
