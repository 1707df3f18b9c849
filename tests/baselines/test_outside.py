"""Methods from outside the repository, by file and entry point: they run where named; the plan holds their source."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from baselines import registry
from baselines.method import AdamSettings, Placement
from baselines.registry import add_method, default_methods, get_method, methods, source_digest
from suites.capabilities.checks import checks
from suites.capabilities.pack import row_of
from suites.capabilities.subject import method_subject
from suites.outside import named_methods
from suites.plan import Request, make_plans
from suites.run.execute import execute
from suites.suite import Outside, Runtime

SGD = '''"""Plain gradient descent."""
from __future__ import annotations

from dataclasses import replace

import torch

from baselines.full import METHOD as FULL
from baselines.method import Part, Rates, nothing_kept, trainable


def optimizer(model, placement, adam, config):
    return torch.optim.SGD(trainable(model).values(), lr=adam.learning_rate)


METHOD = replace(
    FULL, name="own_sgd", title="Plain SGD", yardstick=False, optimizer=optimizer, widths=(32,), rest_kept=nothing_kept,
    layer_parts=lambda shape, config: (Part("weight", shape, trained=True, added=False, kept=()),), saves_state=True,
    pack_rate=0.2, order=50, slot=None, rates={"fine-tuning": Rates.around(0.05, "own choice")},
)
'''
SETTINGS = {"steps": 3, "batch_size": 8, "train_rows": 48, "eval_rows": 32, "evaluations": 1}


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let what a test brings be gone after it."""
    monkeypatch.setattr(registry, "_given", {})
    registry._plugged.cache_clear()
    methods.cache_clear()
    yield
    registry._plugged.cache_clear()
    methods.cache_clear()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sgd.py"
    path.write_text(SGD)
    return path


def plan_of(name: str, runtime: Runtime, **settings: Any) -> Any:
    request = Request("glue", "micro", 8, ("rte",), (name,), (0,), tuple({**SETTINGS, **settings}.items()))
    (plan,) = make_plans(request, runtime)
    return plan


def test_a_method_in_a_file_runs_without_state_and_is_no_default(file: Path) -> None:
    known = default_methods()
    names, references = named_methods(["lora", str(file)])
    assert names == ["lora", "own_sgd"]
    assert references == (f"{file.resolve()}:METHOD",)
    assert default_methods() == known
    runtime = Runtime(torch.device("cpu"), outside=Outside(references))
    record = execute(plan_of("own_sgd", runtime), runtime, None, lambda step, loss: None)
    assert record.status == "ok", record.error
    assert record.memory is not None
    assert record.engagement is not None
    assert (record.memory.state_bytes, record.memory.formula_state_bytes) == (0, 0)
    assert record.engagement.state_bytes == 0
    assert record.memory.ledger is not None
    state = next(line for line in record.memory.ledger.lines if line.name == "optimizer state")
    assert (state.formula_bytes, state.count_bytes) == (0, 0)
    assert record.catalogue is not None
    assert record.catalogue.method("own_sgd").title == "Plain SGD"


def test_all_stands_for_every_method_once(file: Path) -> None:
    names, references = named_methods(["full", "all", str(file)])
    assert names == ["full", *(name for name in methods() if name not in ("full", "own_sgd")), "own_sgd"]
    assert references == (f"{file.resolve()}:METHOD",)


def test_the_plan_holds_a_digest_of_the_source_and_no_path(file: Path, tmp_path: Path) -> None:
    runtime = Runtime(torch.device("cpu"))
    assert plan_of("lora", runtime).method_digest is None
    assert "method_digest" not in plan_of("lora", runtime).model_dump(exclude_defaults=True)
    add_method(str(file))
    plan = plan_of("own_sgd", runtime)
    assert plan.method_digest == source_digest("own_sgd")
    assert str(tmp_path) not in plan.model_dump_json()
    registry._given.clear()
    file.write_text(SGD + "# changed\n")
    add_method(str(file))
    assert plan_of("own_sgd", runtime).hash() != plan.hash()
    record = execute(plan, runtime, None, lambda step, loss: None)
    assert record.status == "failed"
    assert "its source changed since the plan was made" in (record.error or "")


def test_state_bits_that_it_cannot_keep_are_one_line(file: Path) -> None:
    add_method(str(file))
    with pytest.raises(ValueError, match=r"state_bits 8: own_sgd has 32 \(nearest allowed value: 32\)"):
        get_method("own_sgd").make_optimizer(nn.Linear(2, 2), Placement((), ()), AdamSettings(0.1, state_bits=8), None)


@pytest.mark.slow
def test_the_capability_checks_take_its_own_rate_and_widths(file: Path) -> None:
    add_method(str(file))
    subject = method_subject(get_method("own_sgd"))
    assert (subject.learning_rate, subject.eight_bit) == (0.2, False)
    row = row_of(subject, ("bert",))
    answers = {cell.check: cell.answer for cell in row.cells}
    assert answers.keys() == checks().keys()
    assert "no" not in answers.values(), [str(cell) for cell in row.cells if cell.answer == "no"]


class Point(SimpleNamespace):
    """An entry point as `importlib.metadata` gives it."""


def plugged(monkeypatch: pytest.MonkeyPatch, module: str, attribute: str = "METHOD") -> None:
    point = Point(name="own_sgd", value=f"{module}:{attribute}", module=module, attr=attribute, dist=None)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point] if group == "gnlorp.methods" else [])


def test_an_entry_point_brings_a_method(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(file.parent))
    monkeypatch.delitem(sys.modules, "sgd", raising=False)
    plugged(monkeypatch, "sgd")
    assert "own_sgd" in methods()
    assert "own_sgd" not in default_methods()
    add_method(str(file))
    assert source_digest("own_sgd") is not None


@pytest.mark.parametrize(
    ("text", "reference", "words"),
    [
        (None, "nowhere.py:METHOD", "is no file; must be path.py:NAME"),
        ("x = 1\n", "m.py", "METHOD is no Method; it has none"),
        (SGD.replace("METHOD = replace", "MINE = replace"), "m.py:OTHER", "OTHER is no Method; it has FULL, MINE"),
        (SGD.replace("own_sgd", "Own SGD"), "m.py", "a name has small letters, digits and _ alone"),
        (SGD.replace("own_sgd", "lora"), "m.py", r"baselines/lora\.py is called so too"),
        ("import nothing_of_that_name\n", "m.py", "cannot be loaded: ModuleNotFoundError"),
    ],
    ids=["no file", "no method", "another name", "a name for no file", "a name of ours", "does not load"],
)
def test_what_is_no_method_is_refused_in_one_line(text: str | None, reference: str, words: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "m.py").write_text(text)

    def look() -> None:
        add_method(str(tmp_path / reference))
        methods()

    with pytest.raises(ValueError, match=words) as caught:
        look()
    assert "\n" not in str(caught.value)


def test_an_entry_point_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plugged(monkeypatch, "nothing_of_that_name")
    with pytest.raises(
        ValueError, match="entry point own_sgd = nothing_of_that_name:METHOD of a package: cannot be loaded"
    ):
        methods()
