"""Where runs on other nodes say how far they are; torch stays out, since a process is there for this alone."""

from __future__ import annotations


class Board:
    """Last step and loss by handle, told by the nodes and read by the command."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[int, float | None]] = {}

    def put(self, handle: str, step: int, loss: float | None) -> None:
        """Say where a run stands."""
        self._said[handle] = (step, loss)

    def read(self) -> dict[str, tuple[int, float | None]]:
        """Return where all stand."""
        return self._said
