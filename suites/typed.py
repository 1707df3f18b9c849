"""Names as they are typed, checked before torch is imported: a typo is answered at once.

What the committed catalogue, a file or an entry point has heard of is left to the registries, which know for sure.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from results.catalogue import Catalogue, committed
from results.choice import check_choice

if TYPE_CHECKING:
    from suites.options import Options

PROFILE_NAMES = ("micro", "small", "paper", "fair")
PROFILES = ("auto", *PROFILE_NAMES)
"""What may be typed for a profile; `auto` goes by the device."""
DEVICES = ("auto", "cpu", "cuda")
GROUP = "gnlorp.methods"
"""Entry points under which other packages bring methods."""
ALL_METHODS = "all"
"""What stands for every method there is, where methods are named."""


def check_typed(options: Options) -> None:
    """Raise ValueError, with the nearest name, for a suite, task, method, profile or device that nothing is called."""
    from suites.options import split

    known = committed()
    check_choice(options.profile, PROFILES, "profile")
    check_choice(options.device, DEVICES, "device")
    check_suite(options.suite)
    suite = known.suite(options.suite)
    for task in split(options.task) if suite.tasks else ():
        if not _is_a_file(task) and not _spoken_of(options.suite, task):
            check_choice(task, [entry.name for entry in suite.tasks], "task")
    check_methods(split(options.method), known)


def check_suite(name: str) -> None:
    """Raise ValueError for a suite that neither the catalogue nor a folder is called."""
    if not _there("suites", name):
        check_choice(name, [entry.name for entry in committed().suites], "suite")


def check_methods(names: Iterable[str], known: Catalogue | None = None) -> None:
    """Raise ValueError for a method that neither the catalogue, a file nor an entry point is called."""
    listed = [*(entry.name for entry in (known or committed()).methods), ALL_METHODS]
    for name in names:
        if name not in listed and not _there("baselines", name) and not _is_a_file(name):
            listed += [point.name for point in entry_points(group=GROUP)]
            check_choice(name, listed, "method")


def complete_suite(incomplete: str) -> list[str]:
    """Return the suites that a shell offers for what is typed so far."""
    return [entry.name for entry in committed().suites if entry.name.startswith(incomplete)]


def complete_tasks(incomplete: str) -> list[str]:
    """Return the tasks of any suite that a shell offers behind the last comma."""
    return _behind_comma(incomplete, (task.name for suite in committed().suites for task in suite.tasks))


def complete_methods(incomplete: str) -> list[str]:
    """Return the methods that a shell offers behind the last comma."""
    return _behind_comma(incomplete, (*(entry.name for entry in committed().methods), ALL_METHODS))


def complete_profile(incomplete: str) -> list[str]:
    """Return the profiles that a shell offers."""
    return [name for name in PROFILES if name.startswith(incomplete)]


def complete_device(incomplete: str) -> list[str]:
    """Return the devices that a shell offers."""
    return [name for name in DEVICES if name.startswith(incomplete)]


def _behind_comma(incomplete: str, names: Iterable[str]) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in names if name.startswith(last)]


def _there(package: str, name: str) -> bool:
    """Whether a package of ours has a module or folder of that name."""
    found = importlib.util.find_spec(package)
    places = [] if found is None else list(found.submodule_search_locations or [])
    return name.isidentifier() and any(
        Path(place, f"{name}.py").exists() or Path(place, name, "__init__.py").exists() for place in places
    )


def _spoken_of(suite: str, task: str) -> bool:
    """Whether a module of the suite has the task's name in quotes: the catalogue may be older than the code."""
    folder = Path(__file__).parent / suite
    return any(f'"{task}"' in path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))


def _is_a_file(name: str) -> bool:
    return any(mark in name for mark in "./\\:")
