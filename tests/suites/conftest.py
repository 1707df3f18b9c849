"""What the tests of loop, run, launch and command line share: plans of the micro profile with very few steps."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from baselines.registry import methods
from results.schema import Plan
from suites import offline
from suites.__main__ import app
from suites.engines.engine import Task
from suites.plan import Request, make_plans
from suites.suite import Runtime
from tests.suites.fake_engine import Told

MakePlan = Callable[..., Plan]
SMALL = {"steps": 3, "batch_size": 8, "train_rows": 48, "eval_rows": 32, "evaluations": 1}
HERE = Path(__file__).parent


TWO_METHODS = frozenset({"full", "gradnormlorp"})


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark slow whole runs of the methods that run only where they are named, and what compares whole runs of others.

    Their steps, state, memory formulas and capabilities are tested by default in tests/baselines.
    """
    every = methods()
    opt_in = {name for name, method in every.items() if not method.default}
    for item in items:
        given = getattr(item, "callspec", None)
        if given is None or HERE not in item.path.parents:
            continue
        named = {str(each) for each in given.params.values()} & set(every)
        if named & opt_in or (item.get_closest_marker("two_methods") and named - TWO_METHODS):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo after a test what `--offline` of a command in this process tells libraries and later processes."""
    for name in offline.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for module, switches in offline.SWITCHES.items():
        for name in switches:
            if hasattr(sys.modules.get(module), name):
                monkeypatch.setattr(sys.modules[module], name, False)


@pytest.fixture(scope="session")
def runtime() -> Runtime:
    return Runtime(torch.device("cpu"))


@pytest.fixture(scope="session")
def make_plan(runtime: Runtime) -> MakePlan:
    """(task, method, rank, seed, **settings) -> a plan of the micro profile, few rows and steps unless told."""

    def make(task: str = "rte", method: str = "full", rank: int = 8, seed: int = 0, **settings: Any) -> Plan:
        overrides = tuple({**SMALL, **settings}.items())
        request = Request("glue", "micro", rank, (task,), (method,), (seed,), overrides)
        (plan,) = make_plans(request, runtime)
        return plan

    return make


@pytest.fixture(scope="session")
def refused() -> Callable[..., str]:
    """(*arguments) -> the one line with which `python -m suites memory` refuses them, its exit code 2."""

    def line(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["memory", *arguments])
        assert result.exit_code == 2, result.output
        (found,) = result.stderr.strip().splitlines()
        return found

    return line


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def tasks(make_plan: Any, runtime: Runtime, tmp_path: Path) -> list[Task]:
    return [Task(make_plan(seed=seed), runtime, tmp_path) for seed in (0, 1, 2)]
