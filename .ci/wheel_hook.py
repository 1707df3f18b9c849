"""Leave the pytest plugin out of the wheel: it lies in `results`, which only a checkout (an editable install) has."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WheelHook(BuildHookInterface):
    """Drops the pytest entry point of every wheel that is not editable: pytest would fail to load it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before a wheel is built."""
        if version != "editable":
            self.metadata.core.entry_points.pop("pytest11", None)
