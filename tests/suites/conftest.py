"""What the tests of loop, run, launch and command line share: plans of the micro profile with very few steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.registry import methods
from results.schema import Plan
from suites.plan import Request, make_plans
from suites.suite import Runtime

MakePlan = Callable[..., Plan]
SMALL = {"steps": 3, "batch_size": 8, "train_rows": 48, "eval_rows": 32, "evaluations": 1}
HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark slow whole runs of the methods that run only where they are named, but for one test that makes a record.

    Their steps, state, memory formulas and capabilities are tested by default in tests/baselines.
    """
    opt_in = {name for name, method in methods().items() if not method.default}
    for item in items:
        given = getattr(item, "callspec", None)
        if given is None or HERE not in item.path.parents or not opt_in & {str(each) for each in given.params.values()}:
            continue
        if item.originalname != "test_a_run_gives_a_whole_record":  # type: ignore[attr-defined]
            item.add_marker(pytest.mark.slow)


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
