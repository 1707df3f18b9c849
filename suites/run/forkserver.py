"""The fork server that has the libraries loaded already. This module loads none of them, so that it can come first."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

PRELOAD = ["suites.run.preload"]


def server() -> ForkServerContext:
    """Return the fork server's context."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context
