"""What Ray says of its nodes, and where it is looked for; read without Ray itself."""

from __future__ import annotations

import math
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path

from suites.engines.engine import Resources

LOCAL = "local"
CONNECT_S = 5.0
UNITS = {"s": 1, "m": 60, "h": 3600}


def named(address: str | None) -> str:
    """Return where Ray is: as typed, else what RAY_ADDRESS says, as for Ray itself, else one to be started here."""
    return address or os.environ.get("RAY_ADDRESS") or LOCAL


def show_token(where: str) -> None:
    """Have Ray show the token that this machine keeps, if it keeps one; to be called before Ray is imported.

    `ray start` asks for a token wherever it finds one, and a Ray that the command starts makes one; but who joins by
    an address shows none unless told to. Where none is asked for, showing it does no harm.
    """
    kept = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if where != LOCAL and (os.environ.get("RAY_AUTH_TOKEN") or kept.is_file()):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def seconds_of(text: str) -> int:
    """Return the seconds of `--wait-nodes`: "90s", "10m", "2h" or "0".

    Raises:
        ValueError: of no such form.
    """
    given = re.fullmatch(r"(\d+)([smh])", text)
    if given is not None:
        return int(given[1]) * UNITS[given[2]]
    if text == "0":
        return 0
    near = f" (nearest allowed value: {text}m)" if text.isdigit() else ""
    raise ValueError(f"wait-nodes {text}: must be a whole number with s, m or h, such as 10m, or 0{near}")


def check_address(where: str) -> None:
    """Raise ValueError where nothing listens: Ray itself would try for long, and may end the process."""
    if where in (LOCAL, "auto"):
        return
    host, colon, port = where.rpartition(":")
    if "://" in where or not (colon and host and port.isdigit()):
        raise ValueError(
            f"--address {where!r}: must be host:port of a Ray head, or auto; run the command on a node of the cluster, "
            "or hand it to `ray job submit`"
        )
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"--address {where}: no Ray answers there ({error}): start one with `ray start --head`"
        ) from None


def fits(available: Mapping[str, float], resources: Resources) -> int:
    """Return how many runs a node with these resources of Ray takes at a time; no run spans two GPUs by halves."""
    found = int(available.get("CPU", 0)) // resources.cpus
    if resources.gpus:
        found = min(found, int(available.get("GPU", 0)) * math.floor(1 / resources.gpus + 1e-9))
    return found


def amounts(*resources: Mapping[str, float]) -> str:
    """Return CPUs, GPUs and their kinds as Ray names them, for reading."""
    cpus, gpus = (sum(int(each.get(name, 0)) for each in resources) for name in ("CPU", "GPU"))
    kinds = sorted(
        {name.partition(":")[2] for each in resources for name in each if name.startswith("accelerator_type:")}
    )
    return f"{cpus} CPUs, {gpus} GPUs" + (f" ({', '.join(kinds)})" if kinds else "")


def loopback_nodes(nodes: Mapping[str, str]) -> list[str]:
    """Return names of nodes (name -> address) that joined as 127.0.0.1 though others did not: none finds them there."""
    inside = [name for name, address in nodes.items() if address.startswith("127.")]
    return sorted(inside) if len(inside) < len(nodes) else []
