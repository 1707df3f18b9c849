"""The libraries that are measured against, where they are installed."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PEERS = ("peft", "galore-torch", "bitsandbytes", "transformers")
NO_GALORE = "galore-torch is not installed: pip install --no-deps galore-torch==1.0"


def galore_torch() -> Any | None:
    """Return the module, or None where it is not installed."""
    try:
        return importlib.import_module("galore_torch")
    except ImportError:
        return None


def peer_versions() -> dict[str, str | None]:
    """Return the version of every peer, None where it is missing."""
    found: dict[str, str | None] = {}
    for name in PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
