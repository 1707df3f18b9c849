"""Find the methods: every module of this package that ends in `METHOD = Method(...)`."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache
from typing import Any

import baselines
from baselines.method import Method


@cache
def methods() -> dict[str, Method[Any]]:
    """Return every method by name, in the order of tables."""
    found: dict[str, Method[Any]] = {}
    for module in sorted(pkgutil.iter_modules(baselines.__path__), key=lambda item: item.name):
        method = getattr(importlib.import_module(f"baselines.{module.name}"), "METHOD", None)
        if isinstance(method, Method):
            if method.name in found:
                raise RuntimeError(f"two files define a method called {method.name!r}")
            found[method.name] = method
    return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))


def get_method(name: str) -> Method[Any]:
    """Return the method called `name`.

    Raises:
        ValueError: unknown name; the text lists the known ones and the nearest.
    """
    return methods()[checked_name(name, methods(), "method")]


def checked_name(name: str, known: Iterable[str], what: str) -> str:
    """Return `name` if it is among `known`.

    Raises:
        ValueError: it is not; the text lists the known names and the nearest one.
    """
    names = list(known)
    if name in names:
        return name
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.3)
    hint = f"; nearest: {near[0]}" if near else ""
    raise ValueError(f"unknown {what} {name!r}: known are {', '.join(names) or 'none'}{hint}")
