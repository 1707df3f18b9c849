"""The contract of an engine: it starts a run somewhere and says queued, running or gone; it knows nothing of results.

What a run's end means, what is tried again and what never is stands in `follow` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from results.schema import Plan, Record

if TYPE_CHECKING:
    # Brings torch along, which a typo on the command line need not wait for.
    from suites.suite import Runtime


@dataclass(frozen=True)
class Resources:
    """What one run is given: processors (its threads), and GPUs, of which a fraction means that runs share one."""

    cpus: int = 1
    gpus: float = 0.0


@dataclass(frozen=True)
class Task:
    """One run as it is handed to an engine; every path is absolute, since the other side stands in another folder.

    `predicted`, `reserved`: bytes said before the run, of tensors and of a device's allocator; None: not known.
    `nonce`: what the command's `store` holds, for a node to know that its own folder of that name is the same.
    """

    plan: Plan
    runtime: Runtime
    store: Path
    predicted: int | None = None
    reserved: int | None = None
    resources: Resources = Resources()
    nonce: str = ""


@dataclass(frozen=True)
class Capacity:
    """How many runs of a size go on at a time, and where: a line for people, such as "2 nodes, 8 GPUs (H100)"."""

    slots: int
    where: str


class NoRoom(ValueError):
    """No node that is up could ever take such a run; one that comes later might."""


class NotTaken(ValueError):
    """A run that the engine does not take now, such as one above the number of jobs that a person may have."""


@dataclass(frozen=True)
class Queued:
    """Handed over, not started as far as the engine knows."""


@dataclass(frozen=True)
class Running:
    """Started; the optimizer step and loss that it last told, and its device; None where it told none yet."""

    step: int | None = None
    loss: float | None = None
    device: str | None = None


Cause = Literal["ended", "lost", "refused", "crowded"]


@dataclass(frozen=True)
class Gone:
    """No longer there.

    `cause`: ended: its launcher came to its end, and the store should hold the record; lost: node or supervisor went
    away under it; refused: the node cannot take it, nor will a second try help; crowded: memory ran out beside other
    runs on the same device.
    `record`: by value, where the node does not share the store.
    """

    why: str
    cause: Cause
    record: Record | None = None


State = Queued | Running | Gone


class Engine(Protocol):
    """Something that starts runs.

    Attributes:
        name: as it is typed behind `--on`.
        outlives: whether what was submitted goes on after the command that submitted it has ended.
        pause_s: seconds between two looks at everything that is in hand.
        capacity: the runs of these resources that go on at a time.
        submit: hands a task over and returns a handle, a text that `poll` and `cancel` of a later command take too
            where the engine outlives its command.
        poll: what has become of a handle; one that the engine has never heard of is gone.
        cancel: asks it to end, at once and without waiting; nothing happens to one that is gone.

    Raises:
        NoRoom: from `capacity`, where no node could ever take such a run.
        NotTaken: from `submit`.
    """

    name: str
    outlives: bool
    pause_s: float

    def capacity(self, resources: Resources) -> Capacity: ...

    def submit(self, task: Task) -> str: ...

    def poll(self, handle: str) -> State: ...

    def cancel(self, handle: str) -> None: ...
