"""Published rates of named devices: what a roofline is drawn from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from results.schema import Bytes
from results.store import read_single
from results.strict import Strict

PUBLISHED = Path(__file__).parent / "published" / "devices.json"


class DeviceRates(Strict):
    """One device as its maker prints it: dense FLOP a second by kind of product, and bytes a second."""

    name: str
    memory_bytes: Bytes
    fp32: float = Field(gt=0)
    tf32: float = Field(gt=0)
    bf16: float = Field(gt=0)
    bandwidth: float = Field(gt=0)
    source: str = Field(min_length=1)


class Devices(Strict):
    """All of them."""

    schema_version: Literal[1] = 1
    note: str
    devices: list[DeviceRates]


def read_devices(path: Path = PUBLISHED) -> list[DeviceRates]:
    """Return the published rates.

    Raises:
        StoreError: the file is not of this schema; a device without a source is none.
    """
    return read_single(path, Devices, "a file of devices").devices
