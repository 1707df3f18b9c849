"""Fresh processes from a fork server that has the libraries loaded already, and how the cores are shared out to them.

The server never touches a device, so that a process of its costs a few milliseconds and works with CUDA.
"""

from __future__ import annotations

import gc
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from typing import Any, TypeVar

import torch

from suites.measure.environment import usable_cpus
from suites.run.forkserver import server
from suites.suite import Runtime

Found = TypeVar("Found")
YOUNG = 10_000
"""New objects before Python looks for cycles among them; its own 700 suit a process of few objects."""


def in_processes(
    work: Callable[..., Found], shares: Sequence[tuple[Any, ...]], workers: int, threads: int, copies: bool = False
) -> Iterator[Found]:
    """Yield `work(*share)` of each share as it is finished, for work that is no run; Ctrl-C ends it at once.

    `workers` at a time, in processes from such a fork server; a single worker's or share's work is done here, in order.
    `copies`: in copies of this process, libraries and all, where the system makes them safely; for one that has run no
    operator yet.
    """
    if workers == 1 or len(shares) <= 1:
        yield from (work(*share) for share in shares)
        return
    forks = copies and sys.platform == "linux" and not torch.cuda.is_initialized()
    context = multiprocessing.get_context("fork") if forks else server()
    with ProcessPoolExecutor(workers, context, _settle, (threads,)) as pool:
        waiting = [pool.submit(work, *share) for share in shares]
        try:
            yield from (done.result() for done in as_completed(waiting))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _settle(threads: int) -> None:
    # What a copy has of the libraries stays as long as it does: the collector of cycles need not go through it.
    gc.freeze()
    gc.set_threshold(YOUNG)
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def shared_out(runtime: Runtime, workers: int | None) -> Runtime:
    """Return `runtime` with workers and threads set: one worker on a GPU, else one thread a worker and a worker a core.

    The processes of a group share the cores and do one run at a time.

    Raises:
        ValueError: `workers` is below 1 or above the number of usable cores, or above 1 in a group.
    """
    cpus, size = usable_cpus(), runtime.group.size
    most = cpus if size == 1 else 1
    if workers is not None and not 1 <= workers <= most:
        rule = "the usable cores" if size == 1 else f"since {size} processes work on one run together"
        raise ValueError(
            f"workers {workers}: must be between 1 and {most}, {rule} "
            f"(nearest allowed value: {min(max(workers, 1), most)})"
        )
    chosen = workers or (1 if runtime.device.type == "cuda" else most)
    return replace(runtime, workers=chosen, threads=max(1, cpus // (chosen * size)))
