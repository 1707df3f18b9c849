"""Current models by name, their configurations as data: no hub, no torch; and whether the hub can be reached at all.

`models.json` says of each what its config.json says where a transformers configuration needs it, where that was read,
and how many parameters were published.
"""

from __future__ import annotations

import difflib
import json
import re
import socket
import threading
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field

from results.schema import Strict

FILE = Path(__file__).with_name("models.json")
PATIENCE_S = 1.5
NEAREST = 3
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class NamedModel(Strict):
    """One model: its configuration, where it was read, its parameters as published."""

    hub: str
    config: dict[str, Any]
    source: list[str]
    parameters: int = Field(description="as published")
    counted: str = Field(description="where they were")
    beside: dict[str, int] = Field(default={}, description="what the model's class has more (less) than that count")


class NamedModels(Strict):
    """The file."""

    about: str
    models: dict[str, NamedModel]


@cache
def named_models() -> dict[str, NamedModel]:
    """Return the models by their short names."""
    return NamedModels.model_validate(json.loads(FILE.read_text())).models


def named(name: str) -> str | None:
    """Return the short name of a model called by it or by its name on the hub, in any case; None if it is neither."""
    asked = name.lower()
    return next((short for short, each in named_models().items() if asked in (short, each.hub.lower())), None)


def check_name(name: str, built_in: Iterable[str]) -> None:
    """Raise ValueError, with the nearest names, for what is no model, no folder and not of a hub name's form."""
    if named(name) or name.removeprefix("llama-") in built_in or Path(name).is_dir() or HUB_NAME.fullmatch(name):
        return
    known = [*built_in, *named_models()]
    raise ValueError(
        f"unknown model {name!r}: no folder with config.json, and no name that is known without the hub, whose names "
        f"have a slash; nearest: {', '.join(nearest(name, known))}; all: {', '.join(known)}"
    )


def check_hub(name: str, offline: bool) -> None:
    """Raise ValueError, within `PATIENCE_S` seconds, for a name that only the hub knows and a hub that is out of reach.

    The text says what the connection failed of, and the nearest names that are known without it.
    """
    if named(name) or Path(name).is_dir() or not HUB_NAME.fullmatch(name) or _cached(name):
        return
    cause = "--offline was asked for" if offline else unreachable()
    if cause:
        hubs = {each.hub: short for short, each in named_models().items()}
        near = [hubs[hub] for hub in nearest(name, hubs)]
        raise ValueError(
            f"model {name!r}: its config.json is not in the hub's cache and cannot be fetched: {cause}; give a folder "
            f"with it, or a model known without the hub (nearest: {', '.join(near)})"
        )


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return the names most alike, the nearest first."""
    names = list(known)
    lower = {each.lower(): each for each in reversed(names)}
    found = difflib.get_close_matches(name.lower(), lower, n=NEAREST, cutoff=0.0)
    return [lower[each] for each in found]


def unreachable() -> str | None:
    """Return why no connection to the hub can be made, None if one can; within `PATIENCE_S` seconds."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "the environment says HF_HUB_OFFLINE"
    end = urlsplit(_proxy(constants.ENDPOINT) or constants.ENDPOINT)
    host, port = end.hostname or "", end.port or (443 if end.scheme == "https" else 80)
    said: list[str | None] = []

    def knock() -> None:
        try:
            socket.create_connection((host, port), timeout=PATIENCE_S).close()
            said.append(None)
        except OSError as error:
            said.append(f"{host}:{port}: {error}")

    # Looking a name up has no time limit of its own.
    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    return said[0] if said else f"{host}:{port}: no answer within {PATIENCE_S:g} s"


def _proxy(address: str) -> str | None:
    from urllib.request import getproxies, proxy_bypass

    end = urlsplit(address)
    return None if proxy_bypass(end.hostname or "") else getproxies().get(end.scheme)


def _cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)
