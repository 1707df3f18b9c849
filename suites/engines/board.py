"""Where runs on other nodes say how far they are; torch stays out, since a process is there for this alone."""

from __future__ import annotations

Said = tuple[int, float | None, str | None]
"""Step, loss and name of the device, as a node tells them; a plain tuple, which every process can read."""


class Board:
    """Last step, loss and device by handle, told by the nodes and read by the command."""

    def __init__(self) -> None:
        self._said: dict[str, Said] = {}

    def put(self, handle: str, step: int, loss: float | None, device: str | None) -> None:
        """Say where a run stands: step, loss, device."""
        self._said[handle] = (step, loss, device)

    def read(self) -> dict[str, Said]:
        """Return where all stand."""
        return self._said
