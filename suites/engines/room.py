"""Room for a run in a cluster that may have none yet: nodes that an autoscaler starts on demand, or that join late."""

from __future__ import annotations

from typing import Protocol

from suites.console import duration_text
from suites.engines.engine import Capacity, NoRoom, Resources
from suites.engines.follow import Clock, Say

PAUSE_S = 2.0


class Growing(Protocol):
    """An engine whose nodes may still come.

    Attributes:
        capacity: as `Engine`'s; raises NoRoom where no node that is up could take such a run.
        ask_for: has whoever starts nodes see that one for such a run is wanted.
    """

    def capacity(self, resources: Resources) -> Capacity: ...

    def ask_for(self, resources: Resources) -> None: ...


def awaited(
    engine: Growing,
    resources: Resources,
    wait_s: float | None,
    say: Say,
    clock: Clock = Clock(),  # noqa: B008  frozen
) -> Capacity:
    """Return the capacity for runs of this size, once a node is up that takes one.

    Args:
        wait_s: how long a node may take to come; it is asked for then, and said to be. None: none can come.

    Raises:
        ValueError: no node could take a run, and none came.
    """
    until = clock.now() + (wait_s or 0)
    asked = False
    while True:
        try:
            return engine.capacity(resources)
        except NoRoom as none:
            if wait_s is None:
                raise
            if clock.now() >= until:
                end = f"none came in {duration_text(wait_s)}" if asked else "if nodes can still come: --wait-nodes 10m"
                raise NoRoom(f"{none}; {end}") from None
            if not asked:
                engine.ask_for(resources)
                say(f"{none}; one is asked for and waited for, {duration_text(wait_s)} at most (--wait-nodes)")
                asked = True
        clock.sleep(min(PAUSE_S, until - clock.now()))
