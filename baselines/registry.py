"""Find the methods: files of this package, entry points of installed packages, and files that somebody names.

Every file of this package but the two of the contract ends in `METHOD = Method(...)`. A package of somebody else's says
in its pyproject.toml

    [project.entry-points."gnlorp.methods"]
    mine = "my_package.my_module:METHOD"

Methods from outside run where they are named, and a digest of their source goes into the plan.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import baselines
from baselines.method import Method

CONTRACT = frozenset({"method", "registry"})
GROUP = "gnlorp.methods"


class _Source(NamedTuple):
    method: Method[Any]
    digest: str
    where: str


_given: dict[str, _Source] = {}


@cache
def methods() -> dict[str, Method[Any]]:
    """Return every method by name, in the order of tables.

    Raises:
        ValueError: a file without a METHOD, two methods of one name, or one without a title; an entry point that cannot
            be loaded; the text names the files.
    """
    found: dict[str, Method[Any]] = {}
    files = {module.name for module in pkgutil.iter_modules(baselines.__path__) if not module.ispkg} - CONTRACT
    for name in sorted(files):
        method = getattr(importlib.import_module(f"baselines.{name}"), "METHOD", None)
        if not isinstance(method, Method):
            raise ValueError(
                f"baselines/{name}.py: has no METHOD = Method(...), so it is no method: end it in one, or move what "
                "several methods share to baselines/shared"
            )
        if method.name != name:
            twin = f", as that of baselines/{method.name}.py" if method.name in files else ""
            raise ValueError(
                f"baselines/{name}.py: its METHOD is called {method.name!r}{twin}: a method bears the name of its "
                f"file (nearest allowed name: {name!r})"
            )
        if not method.title.strip():
            raise ValueError(f"baselines/{name}.py: its METHOD has no title, by which tables call it: title='...'")
        found[name] = method
    for name, source in _outside().items():
        if name in found:
            raise ValueError(
                f"{source.where}: method {name!r}: baselines/{name}.py is called so too: give it another name"
            )
        found[name] = source.method
    return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))


def default_methods() -> list[str]:
    """Return the names of the methods that a comparison has if it names none: of the repository's own alone."""
    return [name for name, method in methods().items() if method.default and source_digest(name) is None]


def source_digest(name: str) -> str | None:
    """Return sha256 of the source file of a method from outside; None for one of the repository's."""
    source = _outside().get(name)
    return None if source is None else source.digest


def add_method(reference: str) -> str:
    """Make the method in a file known, and return its name.

    Args:
        reference: `path/to/file.py:NAME`; without a name `METHOD`.

    Raises:
        ValueError: no such file; it cannot be loaded; what it names is no `Method`, or is called as another one is.
    """
    file, _, attribute = reference.partition(".py:")
    path = Path(file if file.endswith(".py") else f"{file}.py")
    if not path.is_file():
        raise ValueError(f"method {reference!r}: {path} is no file; must be path.py:NAME with NAME = Method(...) in it")
    source = _source(module_of(path), attribute or "METHOD", path.read_bytes(), path.name)
    before = _outside().get(source.method.name)
    if before is not None and before.digest != source.digest:
        raise ValueError(f"method {source.method.name!r}: stands in {before.where} and in {source.where}")
    if before is None:
        _given[source.method.name] = source
        methods.cache_clear()
    return source.method.name


def _outside() -> dict[str, _Source]:
    return {**_plugged(), **_given}


@cache
def _plugged() -> dict[str, _Source]:
    found: dict[str, _Source] = {}
    for point in metadata.entry_points(group=GROUP):
        where = f"entry point {point.name} = {point.value} of {point.dist.name if point.dist else 'a package'}"
        try:
            module = importlib.import_module(point.module)
        except Exception as error:  # noqa: BLE001  somebody else's code may raise anything
            raise ValueError(f"{where}: cannot be loaded: {type(error).__name__}: {error}") from error
        content = Path(module.__file__).read_bytes() if module.__file__ else b""
        source = _source(module, point.attr or "METHOD", content, where)
        if source.method.name != point.name:
            raise ValueError(
                f"{where}: its method is called {source.method.name!r}: an entry point bears its method's name"
            )
        found[source.method.name] = source
    return found


def _source(module: ModuleType, attribute: str, content: bytes, where: str) -> _Source:
    method = getattr(module, attribute, None)
    if not isinstance(method, Method):
        known = [name for name, value in vars(module).items() if isinstance(value, Method)]
        raise ValueError(f"{where}: {attribute} is no Method; it has {', '.join(known) or 'none'}")
    # A method's name is part of file names.
    if not re.fullmatch(r"[a-z0-9_]+", method.name):
        raise ValueError(f"{where}: method {method.name!r}: a name has small letters, digits and _ alone")
    if not method.title.strip():
        raise ValueError(f"{where}: method {method.name!r} has no title, by which tables call it: title='...'")
    return _Source(method, hashlib.sha256(content).hexdigest(), where)


def module_of(path: Path) -> ModuleType:
    """Return the module in a file, loaded once for each content."""
    name = f"gnlorp_outside_{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # noqa: BLE001  somebody else's code may raise anything
        del sys.modules[name]
        raise ValueError(f"{path}: cannot be loaded: {type(error).__name__}: {error}") from error
    return module


def get_method(name: str) -> Method[Any]:
    """Return the method called `name`.

    Raises:
        ValueError: unknown name; the text lists the known ones and the nearest.
    """
    return methods()[checked_name(name, methods(), "method")]


def checked_name(name: str, known: Iterable[str], what: str) -> str:
    """Return `name` if it is among `known`.

    Raises:
        ValueError: it is not; the text lists the known names and the nearest one.
    """
    names = list(known)
    if name in names:
        return name
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.3)
    hint = f"; nearest: {near[0]}" if near else ""
    raise ValueError(f"unknown {what} {name!r}: known are {', '.join(names) or 'none'}{hint}")
