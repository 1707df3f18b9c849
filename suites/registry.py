"""Find the suites: every package of this one that ends in `SUITE = ...`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

import suites
from baselines.registry import checked_name
from suites.suite import Suite


@cache
def all_suites() -> dict[str, Suite[Any]]:
    """Return every suite by name.

    Raises:
        ValueError: a suite that does not bear its package's name.
    """
    found: dict[str, Suite[Any]] = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(suites.__path__) if module.ispkg):
        suite = getattr(importlib.import_module(f"suites.{name}"), "SUITE", None)
        if suite is None:
            continue
        if suite.name != name:
            raise ValueError(
                f"suites/{name}: its SUITE is called {suite.name!r}: a suite bears the name of its package "
                f"(nearest allowed name: {name!r})"
            )
        found[name] = suite
    return found


def get_suite(name: str) -> Suite[Any]:
    """Return the suite called `name`.

    Raises:
        ValueError: unknown name; the text lists the known ones and the nearest.
    """
    return all_suites()[checked_name(name, all_suites(), "suite")]
