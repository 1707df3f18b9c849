"""Sweeps: a setting under several values, each a comparison of its own; of several settings every combination."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from suites.plan import Request

RANK = "rank"
"""The one name that is no setting of a profile: the rank of the whole comparison."""
FORM = "must be name=value,value,..., such as learning_rate=1e-4,3e-4 or method.lora.config.alpha=8,16,32"
Sweep = tuple[str, tuple[Any, ...]]


def parse_sweeps(texts: Iterable[str]) -> tuple[Sweep, ...]:
    """Return (dotted name, values) of every `--sweep` as typed: "name=8,16,32", or "name=[...]" in TOML.

    Raises:
        ValueError: not of that form, a value twice, or a name in two of them.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        name, equals, typed = (part.strip() for part in text.partition("="))
        if not (name and equals and typed):
            raise ValueError(f"--sweep {text!r}: {FORM}")
        values = _values(typed)
        if name in found:
            raise ValueError(f"--sweep {name}: given twice; give all its values in one")
        if len({json.dumps(value) for value in values}) < len(values):
            raise ValueError(f"--sweep {text!r}: a value stands there twice")
        found[name] = values
    return tuple(found.items())


def _values(typed: str) -> tuple[Any, ...]:
    """Return the values: a TOML array, else comma-joined TOML values, else comma-joined bare words."""
    words = json.dumps([part.strip() for part in typed.split(",")], ensure_ascii=False)
    for candidate in (typed if typed.startswith("[") else f"[{typed}]", words):
        try:
            return tuple(tomllib.loads(f"values = {candidate}")["values"])
        except tomllib.TOMLDecodeError:
            continue
    raise ValueError(f"--sweep {typed!r}: {FORM}")


def variants(request: Request) -> Iterator[Request]:
    """Yield a request for every combination of the swept values, the last sweep fastest; one without sweeps is itself.

    Raises:
        ValueError: a rank that is no whole number.
    """
    names = [name for name, _ in request.sweep]
    for values in itertools.product(*(values for _, values in request.sweep)):
        overrides: Mapping[str, Any] = dict(request.overrides)
        rank = request.rank
        for name, value in zip(names, values, strict=True):
            if name != RANK:
                overrides = merged(overrides, nested(name, value))
            elif type(value) is int:
                rank = value
            else:
                raise ValueError(f"--sweep rank: {value!r} must be a whole number, such as 8")
        yield dataclasses.replace(request, rank=rank, overrides=tuple(overrides.items()), sweep=())


def nested(name: str, value: Any) -> dict[str, Any]:
    """Return {"a": {"b": value}} of "a.b"."""
    for part in reversed(name.split(".")):
        value = {part: value}
    found: dict[str, Any] = value
    return found


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return two nested tables as one; where both name a value, that of `above` stands."""
    out = dict(below)
    for name, value in above.items():
        known = out.get(name)
        out[name] = merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return out


def check_effect(sweep: Sequence[Sweep], found: Sequence[Sequence[str]]) -> None:
    """Raise ValueError where two combinations of swept values make the very same runs.

    Args:
        found: the hashes of the plans of every combination, in the order of `variants`.
    """
    combinations = list(itertools.product(*(values for _, values in sweep)))
    seen: dict[tuple[str, ...], tuple[Any, ...]] = {}
    for values, hashes in zip(combinations, found, strict=True):
        first = seen.setdefault(tuple(hashes), values)
        if first is not values:
            pairs = [f"{name}={a!r} and {b!r}" for (name, _), a, b in zip(sweep, first, values, strict=True) if a != b]
            raise ValueError(
                f"--sweep {'; '.join(pairs)}: both make the same runs; the setting belongs to no run of this comparison"
            )
