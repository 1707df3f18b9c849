"""The catalogue as the owners of methods and suites fill it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from baselines.method import Method
from baselines.registry import get_method, methods
from results.catalogue import Catalogue, MethodEntry, SuiteEntry, entry_of
from results.schema import Plan
from suites.registry import all_suites, get_suite


def method_entry(method: Method[Any]) -> MethodEntry:
    """Return what readers of records must know of a method.

    Raises:
        CatalogueError: its METHOD has no title, or another field is wrong.
    """
    said = {name: getattr(method, name) for name in MethodEntry.model_fields}
    return entry_of(MethodEntry, f"METHOD of baselines/{method.name}.py", said)


def catalogue(names: Iterable[str] | None = None) -> Catalogue:
    """Return every method, or those named, and every suite.

    Raises:
        CatalogueError: an owner leaves out what tables need.
    """
    chosen = methods() if names is None else names
    suites: list[SuiteEntry] = [suite.entry for suite in all_suites().values()] if names is None else []
    return Catalogue(methods=[method_entry(get_method(name)) for name in chosen], suites=suites)


def catalogue_for(plan: Plan) -> Catalogue:
    """Return the entries that a record of `plan` needs.

    Raises:
        CatalogueError: an owner leaves out what tables need.
    """
    methods_alone = catalogue([plan.method])
    return methods_alone.model_copy(update={"suites": [get_suite(plan.suite).entry.reduced(plan.task)]})
