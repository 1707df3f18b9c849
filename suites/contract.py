"""The former name of `suites.capabilities`: programs that import `check_optimizer` from here go on working."""

from __future__ import annotations

import warnings

from suites.capabilities import check_optimizer

__all__ = ["check_optimizer"]

warnings.warn(
    "suites.contract is called suites.capabilities now: from suites.capabilities import check_optimizer",
    DeprecationWarning,
    stacklevel=2,
)
