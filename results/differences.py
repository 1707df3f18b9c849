"""In which fields two plans differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from results.schema import Plan


def plan_differences(before: Plan, after: Plan) -> list[tuple[str, Any, Any]]:
    """Return (field, before, after) for every field in which two plans differ, nested names joined by dots."""
    return list(_differences(before.model_dump(mode="json"), after.model_dump(mode="json"), ""))


def _differences(before: Any, after: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in [*before, *(key for key in after if key not in before)]:
            yield from _differences(before.get(name), after.get(name), f"{path}.{name}" if path else name)
    elif before != after:
        yield path, before, after
