"""The capability pack: what every method can do, found by checks; `check_optimizer` puts any optimizer through it."""

from suites.capabilities.pack import check_optimizer

__all__ = ["check_optimizer"]
