"""What an average over tasks means: conventions, and a plug-in a suite that has an average."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from reports.averages.glue import Average, Switchboard
    from reports.records.report_runs import Context
    from reports.tables.table import Table

PARTS = frozenset({"convention"})


class Plugin(Protocol):
    """A module of this package: what a suite's average is, and the tables that it has of its own."""

    def average(self, context: Context, method: str) -> Average: ...

    def switchboard(self, context: Context) -> Switchboard: ...

    def tables(self, context: Context) -> Sequence[Table]: ...


def names() -> list[str]:
    """Return the plug-ins by name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in PARTS)


def plugin(name: str | None) -> Plugin | None:
    """Return the plug-in; None for a suite without an average, and for a name that is none."""
    return cast(Plugin, importlib.import_module(f"{__name__}.{name}")) if name in names() else None
