"""Values as short texts: of two lists or tables only what differs."""

from __future__ import annotations

import math
from typing import Any

LONGEST = 90


def value_text(value: Any, name: str = "") -> str:
    """Return a value for reading: structures cut short, whole numbers in full, with a B where `name` ends in _bytes."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        text = str(value)
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
    if isinstance(value, int):
        return f"{value:,}" + (" B" if name.endswith("_bytes") else "")
    return f"{value:.8g}" if math.isfinite(value) else str(value)


def pair_text(before: Any, after: Any, name: str = "") -> tuple[str, str]:
    """Return both values; of two lists the first entry that differs, of two tables all that do."""
    if isinstance(before, list) and isinstance(after, list):
        at = next((i for i, (one, other) in enumerate(zip(before, after, strict=False)) if one != other), None)
        if at is None:
            return f"{len(before)} entries", f"{len(after)} entries"
        return f"[{at}] {value_text(before[at])}", f"[{at}] {value_text(after[at])}"
    if isinstance(before, dict) and isinstance(after, dict):
        names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        old, new = ({name: side[name] for name in names if name in side} for side in (before, after))
        return value_text(old), value_text(new)
    return value_text(before, name), value_text(after, name)
