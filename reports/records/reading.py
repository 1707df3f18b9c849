"""All records below some folders, light enough for ten thousand runs: curves thinned, trouble kept as such."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from reports.records.frames import in_order
from reports.records.selection import matching
from results.schema import CurvePoint, Record
from results.search import FILE, Search
from results.store import read_record, read_single, record_paths

CURVE_POINTS = 48
RECORD_MARK = b'"plan_hash"'


@dataclass(frozen=True)
class Trace:
    """A training loss thinned to bins: the last step of each bin and the mean loss in it, None if not finite."""

    steps: tuple[int, ...] = ()
    losses: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Found:
    """One run: its record without the curve, its file as shown and as it is, and the thinned curve."""

    record: Record
    path: str
    file: Path
    trace: Trace = field(default_factory=Trace)

    @property
    def inside(self) -> bool:
        """Whether the path as shown leads to the file from the current folder."""
        return Path(self.path).resolve() == self.file.resolve()


@dataclass(frozen=True)
class Gathered:
    """Everything that was found.

    Attributes:
        found: the runs, in an order that does not depend on files.
        duplicates: (file left out, file kept, whether both ended alike) for every plan that was recorded twice.
        others: JSON files that are no records of runs, left out.
        searches: records of searches beside the runs.
    """

    found: tuple[Found, ...]
    duplicates: tuple[tuple[str, str, bool], ...] = ()
    others: tuple[str, ...] = ()
    searches: tuple[Search, ...] = ()

    @property
    def records(self) -> list[Record]:
        """The records without their curves."""
        return [item.record for item in self.found]

    @property
    def results(self) -> list[Record]:
        """Those that are results, tuning runs left out."""
        return [record for record in self.records if record.plan.purpose == "result"]

    def where(self, conditions: Iterable[str]) -> Gathered:
        """Return what fulfils every "field=value" on its plan, see `selection.matching`."""
        kept = {record.plan_hash for record in matching(self.records, conditions)}
        return replace(self, found=tuple(item for item in self.found if item.record.plan_hash in kept))

    def whole(self, records: Iterable[Record]) -> list[Record]:
        """Return records with their curves, read again from their files."""
        wanted = {record.plan_hash for record in records}
        return [read_record(item.file) for item in self.found if item.record.plan_hash in wanted]

    def paths_of(self, hashes: Iterable[str]) -> tuple[str, ...]:
        """Return the files of the runs with these plan hashes."""
        wanted = set(hashes)
        return tuple(item.path for item in self.found if item.record.plan_hash in wanted)


def gather(roots: Iterable[Path]) -> Gathered:
    """Read every record below `roots`, each file once, the first of equal plans kept.

    Raises:
        StoreError: a record is broken or of a version that cannot be read.
    """
    places = list(roots)
    kept: dict[str, Found] = {}
    duplicates, others = [], []
    # Millions of small objects that all stay alive: the collector would walk them again and again for nothing.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for path in dict.fromkeys(record_paths(places)):
            shown = shown_path(path)
            if RECORD_MARK not in path.read_bytes():
                others.append(shown)
                continue
            whole = read_record(path)
            found = Found(whole.model_copy(update={"curve": []}), shown, path, thinned(whole.curve))
            first = kept.setdefault(whole.plan_hash, found)
            if first is not found:
                duplicates.append((shown, first.path, _ended_alike(first.record, found.record)))
    finally:
        if was_enabled:
            gc.enable()
    by_hash = {record.plan_hash: kept[record.plan_hash] for record in in_order([f.record for f in kept.values()])}
    return Gathered(tuple(by_hash.values()), tuple(duplicates), tuple(others), tuple(read_searches(places)))


def read_searches(roots: Iterable[Path]) -> list[Search]:
    """Return every record of a search below `roots`.

    Raises:
        StoreError: one is broken.
    """
    found = [sorted(root.rglob(FILE)) if root.is_dir() else sorted(root.parent.glob(FILE)) for root in roots]
    return [read_single(path, Search, "a record of a search") for path in dict.fromkeys(sum(found, []))]


def shown_path(path: Path) -> str:
    """Return the path from the current folder, or the last two parts of one elsewhere: no machine's folders."""
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return "/".join(path.parts[-2:])


def _ended_alike(first: Record, second: Record) -> bool:
    return first.status == second.status and first.evaluations == second.evaluations


def thinned(curve: Sequence[CurvePoint], points: int = CURVE_POINTS) -> Trace:
    """Return the curve in at most `points` bins of equal length: mean loss of each, at its last step."""
    if not curve:
        return Trace()
    losses = [point.loss for point in curve]
    bins = min(points, len(curve))
    edges = [round(index * len(curve) / bins) for index in range(bins + 1)]
    steps = tuple(curve[high - 1].step for high in edges[1:])
    return Trace(steps, tuple(_mean(losses[low:high]) for low, high in zip(edges, edges[1:], strict=False)))


def _mean(losses: Sequence[float]) -> float | None:
    # Not fsum: it refuses infinities of both signs, and a screen shows six digits.
    mean = sum(losses) / len(losses)
    return mean if math.isfinite(mean) else None
