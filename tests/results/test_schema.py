"""The record schema: strict, frozen, and plans with the same hash on every machine and in every later version."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from results.schema import SCHEMA_VERSION, Plan, Record

ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., Record]
CANONICAL = (
    '{"data":{"max_length":512,"name":"nyu-mll/glue","revision":"bcdcba7","source":"hub"},"method":"gradnormlorp",'
    '"method_config":{"projection_rank":4,"rank":8,"scale":4.0},"model":{"name":"FacebookAI/roberta-base",'
    '"revision":"e2da8e2","source":"hub"},"profile":"paper","seed":1,"suite":"glue","targets":"attention+mlp",'
    '"task":"rte","training":{"batch_size":16,"epochs":30.0,"learning_rate":3e-05,"steps":4680}}'
)
# As where torch is not installed; a None in sys.modules would look like an installed one to scipy.
BLOCK = """
import importlib, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
"""
HASH = "03bc9dbff766"
DEFAULTS: dict[str, dict[str, Any]] = {
    "model": {"digest": None, "disclosure": None, "vocabulary": None},
    "data": {"digest": None, "train_rows": None, "eval_rows": None, "held_out": False, "tokenizer": None,
             "tokenizer_revision": None, "tokenizer_digest": None, "layout": None, "eval_tokens": None,
             "length_grouping": 0, "prompt": None, "new_tokens": None},
    "training": {
        "rest_learning_rate": None,
        "accumulation": 1, "schedule": "linear", "final_fraction": 0.0, "warmup_steps": 0, "weight_decay": 0.0,
        "betas": [0.9, 0.999], "eps": 1e-8, "clip_norm": None, "precision": "fp32", "state_bits": 32,
        "per_layer": False, "checkpointing": False, "recompute": [],
        "clip_scope": "all", "bf16_updates": "nearest", "bf16_products": "native", "tf32": False, "compile": False,
        "evaluations": 1, "max_skipped": 20,
    },
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "model": {"name": "x", "source": "config", "revision": None, "digest": "0" * 64, "disclosure": "said",
              "vocabulary": 9},
    "data": {"source": "micro", "name": "x", "revision": None, "digest": "1" * 64, "max_length": 128,
             "train_rows": 9, "eval_rows": 9, "held_out": True, "tokenizer": "x", "tokenizer_revision": "x",
             "tokenizer_digest": "2" * 64, "layout": "packed", "eval_tokens": 9,
             "length_grouping": 50, "prompt": "{question}", "new_tokens": 9},
    "training": {
        "steps": 9, "epochs": None, "batch_size": 8, "accumulation": 2, "learning_rate": 1e-4, "schedule": "cosine",
        "final_fraction": 0.1, "warmup_steps": 3, "weight_decay": 0.1, "betas": [0.9, 0.95], "eps": 1e-6,
        "rest_learning_rate": 2e-2,
        "clip_norm": 1.0, "precision": "bf16", "state_bits": 8, "per_layer": True, "checkpointing": True,
        "recompute": ["mlp"],
        "clip_scope": "parameter", "bf16_updates": "kahan", "bf16_products": "fp32", "tf32": True, "compile": True,
        "evaluations": 2, "max_skipped": 3,
    },
    "": {"suite": "c4", "task": "x", "profile": "micro", "method": "x", "method_config": {"rank": 8}, "targets": "mlp",
         "seed": 2, "purpose": "tuning", "variant": "x", "method_digest": "3" * 64},
}  # fmt: skip


def test_a_literal_plan_has_a_literal_hash(plan_table: dict[str, Any]) -> None:
    """A change of these letters orphans every record that was ever written."""
    plan = Plan.model_validate(plan_table)
    assert hashlib.sha256(CANONICAL.encode()).hexdigest()[:12] == HASH
    assert plan.hash() == HASH
    assert plan.label == f"glue-paper-rte-gradnormlorp-r8-s1-{HASH}"


def test_defaults_written_out_do_not_change_the_hash(plan_table: dict[str, Any]) -> None:
    for part, defaults in DEFAULTS.items():
        plan_table[part] |= defaults
    plan_table["purpose"] = "result"
    assert Plan.model_validate(plan_table).hash() == HASH


def test_the_order_of_fields_does_not_change_the_hash(plan_table: dict[str, Any]) -> None:
    turned = dict(reversed([(key, value) for key, value in plan_table.items()]))
    turned["method_config"] = dict(reversed(list(plan_table["method_config"].items())))
    assert Plan.model_validate(turned).hash() == HASH


def test_a_plan_keeps_its_hash_through_json(plan_table: dict[str, Any]) -> None:
    plan = Plan.model_validate(plan_table)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert Plan.model_validate_json(plan.model_dump_json()).hash() == HASH


def test_the_others_name_every_field() -> None:
    for part, values in OTHERS.items():
        fields = Plan.model_fields if not part else Plan.model_fields[part].annotation.model_fields  # type: ignore[union-attr]
        assert set(values) == set(fields) - ({"model", "data", "training"} if not part else set())


@pytest.mark.parametrize(("part", "field"), [(part, field) for part, values in OTHERS.items() for field in values])
def test_every_field_changes_the_hash(part: str, field: str, plan_table: dict[str, Any]) -> None:
    table = plan_table[part] if part else plan_table
    table[field] = OTHERS[part][field]
    assert Plan.model_validate(plan_table).hash() != HASH


def test_label_without_a_rank(plan_table: dict[str, Any]) -> None:
    plan_table["method_config"] = {}
    plan = Plan.model_validate(plan_table)
    assert plan.label == f"glue-paper-rte-gradnormlorp-s1-{plan.hash()}"


def test_a_record_comes_back_from_json_as_it_was(make_record: Make) -> None:
    record = make_record()
    assert Record.model_validate_json(record.model_dump_json()) == record
    tables = json.loads(record.model_dump_json())
    assert {key for key, value in tables.items() if value in (None, [])} == {
        "catalogue", "error", "resumed_at", "final_digest",
    }  # fmt: skip


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_values_that_are_not_finite_survive_as_standard_json(value: float, make_record: Make) -> None:
    curve = [{"step": 1, "loss": value, "learning_rate": 1e-3, "gradient_norm": value}]
    text = make_record({"curve": curve, "status": "diverged"}).model_dump_json()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    json.loads(text, parse_constant=refuse)
    point = Record.model_validate_json(text).curve[0]
    for back in (point.loss, point.gradient_norm):
        assert back is not None
        assert back == value or (math.isnan(back) and math.isnan(value))


def paths(table: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every table of fixed fields in a record's JSON."""
    free = {"packages", "eval_rows", "state_shapes", "metrics", "rows", "method_config", "cuda_allocated_bytes"}
    free |= {"constant_scores", "eval_tokens", "eval_bytes", "floor_nats", "variables"}
    found = [at] if isinstance(table, dict) else []
    for key, value in table.items() if isinstance(table, dict) else enumerate(table):
        if isinstance(value, (dict, list)) and key not in free:
            found += paths(value, (*at, key))
    return found


def test_an_unknown_field_is_refused_everywhere(make_record: Make) -> None:
    whole = json.loads(make_record().model_dump_json())
    tried = paths(whole)
    assert len(tried) >= 13
    for path in tried:
        changed = copy.deepcopy(whole)
        table = changed
        for key in path:
            table = table[key]
        table["surplus"] = 1
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            Record.model_validate(changed)


@pytest.mark.parametrize("version", [0, 2, "2", None])
def test_another_version_is_refused(version: object, make_record: Make) -> None:
    table = json.loads(make_record().model_dump_json())
    assert table["schema_version"] == SCHEMA_VERSION == 1
    with pytest.raises(ValidationError, match="Input should be 1"):
        Record.model_validate({**table, "schema_version": version})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("memory", "state_bytes"), -1),
        (("memory", "state_bytes"), 1.5),
        (("memory", "step_peak", "total_bytes"), -1),
        (("timing", "wall_s"), -0.1),
        (("environment", "ram_bytes"), None),
        (("status",), "cancelled"),
        (("plan", "seed"), -1),
        (("plan", "training", "steps"), 0),
        (("plan", "training", "learning_rate"), 0),
        (("plan", "training", "state_bits"), 16),
        (("plan", "training", "final_fraction"), 1.1),
        (("plan", "data", "max_length"), 0),
        (("plan", "model", "source"), "elsewhere"),
        (("plan", "purpose"), "other"),
    ],
)
def test_values_outside_their_rule_are_refused(path: tuple[str, ...], value: object, make_record: Make) -> None:
    table = json.loads(make_record().model_dump_json())
    inner = table
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(ValidationError) as raised:
        Record.model_validate(table)
    assert raised.value.errors()[0]["loc"][: len(path)] == path


def test_records_and_plans_are_frozen(make_record: Make) -> None:
    record = make_record()
    with pytest.raises(ValidationError, match="frozen"):
        record.status = "failed"
    with pytest.raises(ValidationError, match="frozen"):
        record.plan.training.steps = 1


@pytest.mark.parametrize("package", ["results", "reports"])
def test_imports_with_torch_blocked(package: str) -> None:
    modules = [f"{package}.{path.stem}" for path in (ROOT / package).glob("*.py") if not path.stem.startswith("__")]
    assert modules
    code = f"{BLOCK}\nfor name in {modules!r}: importlib.import_module(name)\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
