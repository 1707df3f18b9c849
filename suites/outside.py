"""Methods and tasks from outside the repository: named on the command line, known in every process of a launch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baselines.registry import add_method, methods
from suites.suite import Outside, Suite
from suites.typed import ALL_METHODS


def named_methods(texts: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Return the names of methods given by name, as `path.py:NAME` or by `all`, and the references of those from files.

    Raises:
        ValueError: a file that brings no method.
    """
    files = {text: _absolute(text) for text in texts if ".py" in text}
    added = {text: add_method(reference) for text, reference in files.items()}
    names = (name for text in texts for name in (methods() if text == ALL_METHODS else [added.get(text, text)]))
    return list(dict.fromkeys(names)), tuple(files.values())


def named_tasks(texts: Sequence[str], suite: Suite[Any]) -> tuple[list[str], tuple[Path, ...]]:
    """Return the names of tasks given by name or by file, and the files.

    Raises:
        ValueError: a file that describes no task, or a suite that takes none.
    """
    files = {text: Path(text).resolve() for text in texts if Path(text).suffix in (".toml", ".py")}
    add = getattr(suite, "add_task", None)
    if files and add is None:
        raise ValueError(
            f"task {next(iter(files))!r}: suite {suite.name!r} takes no files of tasks; they run as a suite of their "
            "own: python -m suites run own --task FILE"
        )
    return [add(files[text]) if add and text in files else text for text in texts], tuple(files.values())


def register(outside: Outside) -> None:
    """Make what a launch was given known in this process.

    Raises:
        ValueError: a file that is no longer there, or no longer what it was.
    """
    for reference in outside.methods:
        add_method(reference)
    if outside.tasks:
        from suites.own.tasks import add_task

        for path in outside.tasks:
            add_task(path)


def _absolute(reference: str) -> str:
    file, _, attribute = reference.partition(".py:")
    path = Path(file if file.endswith(".py") else f"{file}.py")
    return f"{path.resolve()}:{attribute or 'METHOD'}" if path.is_file() else reference
