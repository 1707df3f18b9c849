"""Find the methods: every file of this package but the two of the contract ends in `METHOD = Method(...)`."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache
from typing import Any

import baselines
from baselines.method import Method

CONTRACT = frozenset({"method", "registry"})


@cache
def methods() -> dict[str, Method[Any]]:
    """Return every method by name, in the order of tables.

    Raises:
        ValueError: a file without a METHOD, two methods of one name, or one without a title; the text names the files.
    """
    found: dict[str, Method[Any]] = {}
    files = {module.name for module in pkgutil.iter_modules(baselines.__path__) if not module.ispkg} - CONTRACT
    for name in sorted(files):
        method = getattr(importlib.import_module(f"baselines.{name}"), "METHOD", None)
        if not isinstance(method, Method):
            raise ValueError(
                f"baselines/{name}.py: has no METHOD = Method(...), so it is no method: end it in one, or move what "
                "several methods share to baselines/shared"
            )
        if method.name != name:
            twin = f", as that of baselines/{method.name}.py" if method.name in files else ""
            raise ValueError(
                f"baselines/{name}.py: its METHOD is called {method.name!r}{twin}: a method bears the name of its "
                f"file (nearest allowed name: {name!r})"
            )
        if not method.title.strip():
            raise ValueError(f"baselines/{name}.py: its METHOD has no title, by which tables call it: title='...'")
        found[name] = method
    return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))


def default_methods() -> list[str]:
    """Return the names of the methods that a comparison has if it names none."""
    return [name for name, method in methods().items() if method.default]


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
