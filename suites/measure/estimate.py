"""From a predicted step to a device's memory: a low, an expected and a high figure, and what each assumes."""

from __future__ import annotations

import math
from typing import Literal

from suites.measure.allocator import Held

Estimate = Literal["low", "expected", "high"]
ESTIMATES: tuple[Estimate, ...] = ("low", "expected", "high")
CONTEXT_BYTES: dict[Estimate, int] = {"low": 300 << 20, "expected": 500 << 20, "high": 900 << 20}
FRAGMENTED = 1.1
ESTIMATE_WORDS = (
    "low: tensors alone and 300 MiB of CUDA context; expected: what the caching allocator reserves for them by its "
    "rules and 500 MiB; high: a tenth more of it and 900 MiB. Context and tenth are assumptions, not measurements"
)


def estimated(held: Held, estimate: Estimate) -> int:
    """Return the bytes of a device that a step is estimated to take, context included."""
    tensors = {
        "low": held.tensor_bytes,
        "expected": held.reserved_bytes,
        "high": math.ceil(held.reserved_bytes * FRAGMENTED),
    }
    return tensors[estimate] + CONTEXT_BYTES[estimate]
