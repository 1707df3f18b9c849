"""Our layer as an earlier commit had it: that commit's `gnlorp`, taken out of git, imported under a name of its own."""

from __future__ import annotations

import difflib
import importlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

from pydantic import JsonValue
from torch import nn

from gnlorp.layer import Activations, NormGradient
from suites.measure.environment import ROOT, code_version, git

PACKAGE = "gnlorp"
LAYER = f"{PACKAGE}/layer.py"
TARGETS: Mapping[Activations, float] = {"fast": 1.0, "auto": 1.15, "least": 1.3}
"""Of the time of the former layer, at most: what each mode of today's may take."""
PARAMETERS = frozenset({"factor_out", "factor_in", "magnitude"})


@dataclass(frozen=True)
class Former:
    """A revision as it was typed (of a hash 12 digits), the whole hash of its commit, its layer and its `attach`."""

    revision: str
    commit: str
    layer: Callable[..., nn.Module]
    attach: Callable[..., list[str]]


def against(former: Former | None) -> dict[str, JsonValue]:
    """Return what a cell's settings say of it."""
    return {} if former is None else {"against": former.commit}


@contextmanager
def former_layer(revision: str) -> Iterator[Former]:
    """Give the layer of `revision`, whose files and modules are there until the context ends.

    Raises:
        ValueError: no git checkout, no such revision, or one whose layer is not there, cannot be imported, or does not
            take what the bench gives it.
    """
    commit = _commit(revision)
    name = f"{PACKAGE}_at_{commit}"
    with TemporaryDirectory() as folder:
        _unpack(revision, commit, Path(folder), name)
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
        try:
            yield _imported(revision, commit, name)
        finally:
            sys.path.remove(folder)
            for module in [each for each in sys.modules if each.partition(".")[0] == name]:
                del sys.modules[module]


def _commit(revision: str) -> str:
    if code_version(ROOT)[0] is None:
        raise ValueError(f"against {revision!r}: needs git, and this code as a git checkout with its history")
    commit = git(ROOT, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if commit is None:
        known = (git(ROOT, "for-each-ref", "--format=%(refname:short)") or "").split()
        nearest = difflib.get_close_matches(revision, known, n=1, cutoff=0.0)
        raise ValueError(
            f"against {revision!r}: must be a commit of this checkout, as a hash, a tag or a branch; nearest: {nearest}"
        )
    return commit


def _unpack(revision: str, commit: str, folder: Path, name: str) -> None:
    """Write the package of `commit` into `folder` as package `name`, which imports itself by that name."""
    if git(ROOT, "cat-file", "-e", f"{commit}:{LAYER}") is None:
        first = (git(ROOT, "log", "--format=%h", "--", LAYER) or "").split()[-1:]
        raise ValueError(f"against {revision!r}: commit {commit[:12]} has no {LAYER}; the first that has it: {first}")
    packed = folder / "packed.zip"
    if git(ROOT, "archive", "--format=zip", f"--output={packed}", commit, PACKAGE) is None:
        raise ValueError(f"against {revision!r}: git cannot take {PACKAGE} out of commit {commit[:12]}")
    shutil.unpack_archive(packed, folder)
    (folder / PACKAGE).rename(folder / name)
    for path in (folder / name).rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        source = re.sub(rf"^(\s*import )({PACKAGE})$", rf"\1{name} as \2", source, flags=re.MULTILINE)
        source = re.sub(rf"^(\s*(?:from|import) ){PACKAGE}\b", rf"\1{name}", source, flags=re.MULTILINE)
        path.write_text(source, encoding="utf-8")


def _imported(revision: str, commit: str, name: str) -> Former:
    """Import the package and try its layer under both gradient rules."""
    try:
        module = importlib.import_module(f"{name}.layer")
        shown = commit[:12] if commit.startswith(revision) and len(revision) > 12 else revision
        found = Former(shown, commit, module.NormLowRankLinear, module.attach)
        for rule in get_args(NormGradient):
            options = {"rank": 1, "alpha": 1.0, "dropout": 0.0, "norm_gradient": rule}
            missing = PARAMETERS - dict(found.layer(nn.Linear(2, 2), **options).named_parameters()).keys()
            if missing:
                raise TypeError(f"it has no parameter {', '.join(sorted(missing))}")
            found.attach(nn.Sequential(nn.Linear(2, 2)), ["0"], **options)
    except (ImportError, AttributeError, RuntimeError, SyntaxError, TypeError, ValueError) as error:
        why = str(error).partition("\n")[0]
        raise ValueError(
            f"against {revision!r}: the layer of commit {commit[:12]} cannot be measured beside today's: {why}"
        ) from error
    return found
