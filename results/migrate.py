"""Records of another schema version: older ones are brought forward step by step, newer ones are refused.

A change of the schema that older files do not satisfy raises `SCHEMA_VERSION` by one and adds one entry to
`MIGRATIONS`: the version it starts from and a function from the older JSON table to the newer one. Additive fields with
a default need neither. Version 1 is the first that was ever written, so the table is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from results.schema import SCHEMA_VERSION

Table = dict[str, Any]
Step = Callable[[Table], Table]

MIGRATIONS: dict[int, Step] = {}


class VersionError(ValueError):
    """A record of a version that this code cannot read."""


def migrated(table: Table, steps: Mapping[int, Step] = MIGRATIONS, current: int = SCHEMA_VERSION) -> Table:
    """Return the JSON table of a record brought to version `current`, unchanged if it is of that version.

    Each step must leave `table` as it was; the version it leads to is written here.

    Raises:
        VersionError: no whole version number, a newer version, or an older one without a way forward.
    """
    version = table.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        raise VersionError(f"schema_version {version!r}: must be a whole number, known are up to {current}")
    if version > current:
        raise VersionError(
            f"schema version {version} is newer than {current}, the newest that this code reads: update the code"
        )
    while version < current:
        if version not in steps:
            known = ", ".join(map(str, sorted(steps))) or "none"
            raise VersionError(
                f"schema version {version} is older than {current} and has no migration (known from: {known}): "
                "run it again"
            )
        table = {**steps[version](table), "schema_version": version + 1}
        version += 1
    return table
