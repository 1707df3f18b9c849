"""Seeded faults for the mutation trial: changes as a careless commit makes them, each silent, and changes of nothing.

Every fault leaves a tree that imports and trains.
"""

from suites.gate.faults.fault import Edit, Fault
from suites.gate.faults.memory import MEMORY_ONLY
from suites.gate.faults.mixed import BOTH, UNSEEN
from suites.gate.faults.nothing import NO_OPS
from suites.gate.faults.numbers import NUMBERS_ONLY

FAULTS: tuple[Fault, ...] = MEMORY_ONLY + NUMBERS_ONLY + BOTH + UNSEEN

__all__ = ["BOTH", "FAULTS", "MEMORY_ONLY", "NO_OPS", "NUMBERS_ONLY", "UNSEEN", "Edit", "Fault"]
