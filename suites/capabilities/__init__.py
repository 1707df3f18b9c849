"""The contract pack: what every method can do, found by checks; an optimizer goes through it with `check_optimizer`."""

from suites.capabilities.pack import check_optimizer

__all__ = ["check_optimizer"]
