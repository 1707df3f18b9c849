"""The gate: records or a function's numbers against a reference, with bands derived from replicates."""

from results.gate.comparable import Refusal, load
from results.gate.compare import Finding, Verdict, compare
from results.gate.observed import check, observe
from results.gate.tolerances import Tolerances, derive, read_tolerances, write_tolerances

__all__ = [
    "Finding", "Refusal", "Tolerances", "Verdict", "check", "compare", "derive", "load", "observe", "read_tolerances",
    "write_tolerances",
]  # fmt: skip
