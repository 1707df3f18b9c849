"""Find the suites: every module or package of this one that ends in `SUITE = ...`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

import suites
from baselines.registry import checked_name
from suites.suite import Suite

CORE = frozenset({"__main__", "registry"})


@cache
def all_suites() -> dict[str, Suite]:
    """Return every suite by name."""
    found: dict[str, Suite] = {}
    for module in sorted(pkgutil.iter_modules(suites.__path__), key=lambda item: item.name):
        if module.name not in CORE:
            suite = getattr(importlib.import_module(f"suites.{module.name}"), "SUITE", None)
            if suite is not None:
                found[suite.name] = suite
    return found


def get_suite(name: str) -> Suite:
    """Return the suite called `name`.

    Raises:
        ValueError: unknown name; the text lists the known ones and the nearest.
    """
    return all_suites()[checked_name(name, all_suites(), "suite")]
