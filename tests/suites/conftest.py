"""What the tests of loop, run, launch and command line share: plans of the micro profile with very few steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from results.schema import Plan
from suites.plan import Request, make_plans
from suites.suite import Runtime

MakePlan = Callable[..., Plan]
SMALL = {"steps": 3, "batch_size": 8, "train_rows": 48, "eval_rows": 32, "evaluations": 1}


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
