"""pytest plugin: `pytest --gnlorp-reference DIR` gates a project's own optimizers, or records of the suites.

    def test_sophia(gnlorp_gate):
        gnlorp_gate("sophia", run)          # run(replicate) -> {"state_bytes": 1234, "loss": [0.69, ...]}

`--gnlorp-update` writes the reference from replicates. With `--gnlorp-records DIR` every cell of the suites' records in
the reference folder becomes a test. Found through an entry point by pytest; without the options it does nothing.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the gate's options."""
    group = parser.getgroup("gnlorp", "gate of memory and accuracy")
    group.addoption("--gnlorp-reference", metavar="DIR", help="folder of the gate's reference")
    group.addoption("--gnlorp-records", metavar="DIR", help="judge these records of the suites, a test a cell")
    group.addoption("--gnlorp-update", action="store_true", help="write the reference of every gnlorp_gate call")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse options that need a reference where none is given."""
    if config.getoption("--gnlorp-reference") is None:
        for name in ("--gnlorp-records", "--gnlorp-update"):
            if config.getoption(name):
                raise pytest.UsageError(f"{name}: needs --gnlorp-reference DIR")


@pytest.fixture
def gnlorp_gate(request: pytest.FixtureRequest) -> Callable[[str, Callable[[int], Any]], None]:
    """Return gate(name, run): fails the test where `run` no longer returns what the reference holds.

    Skips without `--gnlorp-reference`.
    """
    folder = request.config.getoption("--gnlorp-reference")
    if folder is None:
        pytest.skip("no --gnlorp-reference DIR: nothing to compare with")
    from results.gate.comparable import Refusal
    from results.gate.observed import NoReference, check

    def gate(name: str, run: Callable[[int], Any]) -> None:
        try:
            found = check(name, run, Path(folder), _stack(), bool(request.config.getoption("--gnlorp-update")))
        except Refusal as problem:
            pytest.fail(f"cannot be compared: {problem}", pytrace=False)
        except NoReference as problem:
            pytest.fail(f"no reference was written: {problem}", pytrace=False)
        if found:
            pytest.fail("\n".join([f"{name} is not as in the reference:", *found]), pytrace=False)

    return gate


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add a test for each cell of the reference where records are given."""
    records = config.getoption("--gnlorp-records")
    if records:
        items.extend(_cells(session, Path(str(config.getoption("--gnlorp-reference"))), Path(records)))


class CellItem(pytest.Item):
    """One cell of the reference; fails with the findings of the gate in it."""

    lines: tuple[str, ...] = ()

    def runtest(self) -> None:
        """Fail where the gate found anything."""
        if self.lines:
            raise Changed("\n".join(self.lines))

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        """Return the findings without a trace."""
        return str(excinfo.value) if isinstance(excinfo.value, Changed) else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Return the cell's name."""
        return self.path, None, f"gnlorp gate: {self.name}"


class Changed(AssertionError):
    """The gate found something in a cell."""


def _cells(session: pytest.Session, reference: Path, records: Path) -> Iterator[CellItem]:
    from results.gate.comparable import Refusal, load
    from results.gate.compare import compare
    from results.gate.quantities import cell_of
    from results.gate.tolerances import FILE, read_tolerances

    try:
        wanted = load(reference, "reference")
        verdict = compare(wanted, load(records, "records"), read_tolerances(reference / FILE))
    except (Refusal, ValueError) as problem:
        raise pytest.UsageError(f"gnlorp gate: {problem}") from problem
    found: dict[str, list[str]] = {cell_of(record.plan): [] for record in wanted}
    for each in verdict.findings:
        line = f"{each.sort}: {each.quantity} {each.before} -> {each.after}; likely {each.cause}: {each.why}"
        found.setdefault(each.cell, []).append(line)
    for name, lines in found.items():
        cell: CellItem = CellItem.from_parent(session, name=name)
        cell.lines = tuple(lines)
        yield cell


def _stack() -> dict[str, str]:
    found = {"python": ".".join(platform.python_version_tuple()[:2]), "machine": platform.machine()}
    for name in ("torch", "bitsandbytes", "numpy"):
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
