"""Asked to make room, by SIGTERM or SIGUSR2: a run saves its state after the step in hand and ends, to go on elsewhere.

Queues, spot nodes and containers give notice so. It is no failure of the run's: its record says interrupted, which
counts as lost.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR2) if hasattr(signal, "SIGUSR2") else (signal.SIGTERM,)
SAVE_S = 60.0
"""How long one that was asked to save may take before it is killed."""
_why: str | None = None


class Evicted(KeyboardInterrupt):
    """The process was asked to end; what it had reached is saved as far as that was possible."""


def heed() -> None:
    """Take note of `SIGNALS` from now on, in the process of a run, instead of dying of them."""
    for each in SIGNALS:
        signal.signal(each, _note)


def _note(number: int, frame: FrameType | None) -> None:
    ask(f"asked to end by {signal.Signals(number).name}")


def ask(why: str) -> None:
    """Have the run of this process save its state after the step in hand and end; the first reason counts."""
    global _why
    _why = _why or why


def asked() -> str | None:
    """Return why the run of this process should end; None while it should go on."""
    return _why


def is_notice(code: int | None) -> bool:
    """Whether a process's exit code says that it died of one of `SIGNALS`, before it could take note of them."""
    return code is not None and code < 0 and -code in SIGNALS


@contextmanager
def evictable() -> Iterator[None]:
    """Turn `SIGNALS` into `Evicted` inside the context: in a main thread, where nobody has other plans for them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    free = [each for each in SIGNALS if signal.getsignal(each) is signal.SIG_DFL]
    for each in free:
        signal.signal(each, raise_)
    try:
        yield
    finally:
        for each in free:
            signal.signal(each, signal.SIG_DFL)


def raise_(number: int, frame: FrameType | None) -> None:
    """Handle one of `SIGNALS` in a process that launches runs."""
    raise Evicted(f"asked to end by {signal.Signals(number).name}")
