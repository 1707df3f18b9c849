"""Site defaults: where runs of this folder or user go unless the command line says otherwise, in `gnlorp.toml`."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from results.choice import check_choice
from suites.engines.queue import SETTINGS

FILE = "gnlorp.toml"
KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "on": ((str,), "the name of an engine"),
    "address": ((str,), "host:port, or auto"),
    "gpus-per-run": ((int, float), "a number above 0, at most 1"),
    "pack": ((bool,), "true or false"),
    "wait-nodes": ((str,), 'a time such as "10m"'),
    "retries": ((int,), "a whole number from 0 on"),
    "slurm": ((dict,), "a table, [slurm]"),
}
"""What may stand there: types, and words for them."""


def site_file() -> Path | None:
    """Return the file of site defaults: that of the working folder, else that of the user; None where there is none."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    places = (Path(FILE), config / "gnlorp" / FILE)
    return next((path for path in places if path.is_file()), None)


def read_site(path: Path) -> dict[str, Any]:
    """Return what a file of site defaults says; the settings of SLURM as text, as `--slurm` has them.

    Raises:
        ValueError: no TOML; a name that is not known, or a value of another kind.
    """
    try:
        found = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is no TOML: {error}") from error
    for name, value in found.items():
        check_choice(name, list(KINDS), f"setting of {path}")
        types, words = KINDS[name]
        # A truth value is a number to Python.
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError(f"{path}: {name} = {value!r}: must be {words}")
    if found.get("pack") and "gpus-per-run" in found:
        raise ValueError(f"{path}: pack and gpus-per-run: give one of the two")
    slurm = found.get("slurm", {})
    for name, value in slurm.items():
        check_choice(name, SETTINGS, f"setting of [slurm] in {path}")
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise ValueError(f"{path}: slurm.{name} = {value!r}: must be a text or a whole number")
    if "slurm" in found:
        found["slurm"] = {name: str(value) for name, value in slurm.items()}
    return found
