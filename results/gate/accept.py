"""Make the records of a pass the new reference: the one explicit way to change it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from results.gate.compare import Finding
from results.gate.texts import pair_text
from results.schema import Record
from results.store import write_record

HEADING = "### Changes that alter numbers"


def replace_reference(folder: Path, records: Sequence[Record]) -> None:
    """Write `records` to `folder`, then remove the records of other plans there; other files stay.

    Raises:
        StoreError: the folder cannot be written.
        ValueError: a record is not of status ok, or none is given: such a reference would make failure the rule.
    """
    if not records:
        raise ValueError("no record to make a reference of")
    for record in records:
        if record.status != "ok":
            raise ValueError(
                f"{record.plan.label}: status {record.status}: only runs that ended well become a reference"
            )
    kept = {write_record(folder, record) for record in records}
    for path in folder.glob("*.json"):
        if path not in kept and _is_record(path):
            path.unlink()


def changelog_entry(findings: Sequence[Finding], commit: str | None) -> str:
    """Return the line of the changelog that says what the new reference changes."""
    code = f"code at {commit[:12]}" if commit else "code outside a checkout"
    if not findings:
        return f"- Gate reference made ({code})."
    cells = list(dict.fromkeys(finding.cell for finding in findings))
    named = ", ".join(cells[:6]) + (f" and {len(cells) - 6} more" if len(cells) > 6 else "")
    first = findings[0]
    before, after = pair_text(first.before, first.after)
    return (
        f"- Gate reference renewed ({code}): {len(findings)} numbers in {named}; first: {first.cell}, {first.quantity} "
        f"{before} -> {after}."
    )


def changelog_with(path: Path, entry: str) -> str:
    """Return a changelog with `entry` under the heading for changed numbers of its unreleased part, made where missing.

    Raises:
        ValueError: the file has no heading of an unreleased part.
        OSError: it cannot be read.
    """
    text = path.read_text()
    start = re.search(r"^## \[?Unreleased\]?.*$", text, re.MULTILINE | re.IGNORECASE)
    if start is None:
        raise ValueError(f"{path}: has no heading '## [Unreleased]': add one")
    end = re.search(r"^## ", text[start.end() :], re.MULTILINE)
    stop = len(text) if end is None else start.end() + end.start()
    part = text[start.end() : stop]
    if HEADING in part:
        part = part.replace(f"{HEADING}\n", f"{HEADING}\n{entry}\n", 1)
    else:
        part = f"{part.rstrip()}\n\n{HEADING}\n{entry}\n" + ("" if end is None else "\n")
    return text[: start.end()] + part + text[stop:]


def _is_record(path: Path) -> bool:
    return re.search(r"-[0-9a-f]{12}$", path.stem) is not None
