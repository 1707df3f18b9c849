"""The fork server that has the libraries loaded already. This module loads none of them, so that it can come first."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
from multiprocessing.context import ForkServerContext

PRELOAD = ["suites.run.preload"]


def server() -> ForkServerContext:
    """Return the fork server's context."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def start_early() -> None:
    """Let the server load its libraries while the command loads its own."""
    server()
    multiprocessing.forkserver.ensure_running()
