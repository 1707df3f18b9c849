"""The gate's own runs: which plans there are, the mark of a tree, replicates, and the probe for other optimizers."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from baselines.registry import default_methods
from gnlorp import GradNormLoRPAdamW
from results.gate import check
from results.gate.quantities import cell_of
from results.schema import Plan
from suites.gate.probe import probe
from suites.gate.replicate import Circumstances, circumstances, run_replicate
from suites.gate.runs import chosen, fingerprint, gate_plans, gate_runtime
from suites.glue.tasks import TASKS
from suites.measure.environment import ROOT, usable_cpus


@pytest.fixture(scope="module")
def plans() -> list[Plan]:
    return gate_plans(gate_runtime())


def test_the_gate_runs_every_method_in_every_cell(plans: list[Plan]) -> None:
    rows = {(plan.suite, plan.task, plan.seed, plan.variant) for plan in plans}
    counted = Counter(plan.method for plan in plans)
    assert {name: counted.pop(name) for name in default_methods()} == dict.fromkeys(default_methods(), len(rows))
    # Weight norm on GaLore trains a layer that no other method has.
    assert counted == {"galore_norm": 1}
    assert {plan.suite for plan in plans} == {"glue", "c4"}
    assert {plan.task for plan in plans if plan.suite == "glue"} == set(TASKS)
    assert len({plan.hash() for plan in plans}) == len(plans)
    assert {plan.purpose for plan in plans} == {"gate"}


def test_the_variants_switch_on_what_the_plain_rows_leave_off(plans: list[Plan]) -> None:
    trainings = [plan.training for plan in plans if plan.variant]
    assert {8, 32} == {training.state_bits for training in trainings}
    assert any(training.per_layer for training in trainings)
    assert any(training.checkpointing for training in trainings)
    assert any(training.accumulation > 1 for training in trainings)
    assert any(training.weight_decay > 0 for training in trainings)
    configs = [plan.method_config for plan in plans if plan.variant]
    assert any(config.get("dropout") for config in configs)
    assert any(config.get("merge_gap") for config in configs)
    assert {config["moments"] for config in configs if "moments" in config} == {"keep", "rotate", "reset"}


def test_a_projecting_run_refreshes_more_than_once(plans: list[Plan]) -> None:
    gaps = [(plan.training.steps, plan.method_config.get("refresh_gap")) for plan in plans]
    assert all(steps > gap for steps, gap in gaps if isinstance(gap, int) and gap)


def test_only_keeps_what_it_names(plans: list[Plan]) -> None:
    chosen = gate_plans(gate_runtime(), ["rte/galore", plans[0].label])
    assert {cell_of(plan).partition(" [")[0] for plan in chosen} == {"glue/rte/galore", cell_of(plans[0])}
    with pytest.raises(ValueError, match=r"only 'rte/none': is part of no run's label and of no cell; cells"):
        gate_plans(gate_runtime(), ["rte/none"])


@pytest.mark.parametrize(
    "only", ["cola-full-s1", "s2", "r24", "[8-bit", "c4/c4/dora", "micro-rte-lora-r8-s0", "micro-rte-galore-s0"]
)
def test_leaving_tasks_out_beforehand_loses_no_run(plans: list[Plan], only: str) -> None:
    assert gate_plans(gate_runtime(), [only]) == chosen(plans, [only])


def test_the_mark_follows_code_and_embedded_data_alone(tmp_path: Path) -> None:
    for name in ("gnlorp", "baselines", "suites"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    before = fingerprint(tmp_path)
    assert before == fingerprint()
    (tmp_path / "suites" / "notes.md").write_text("text")
    assert fingerprint(tmp_path) == before
    path = tmp_path / "gnlorp" / "update.py"
    path.write_text(path.read_text() + "\n")
    assert fingerprint(tmp_path) != before


@pytest.mark.skipif(usable_cpus() < 2, reason="one core: there are no replicates with two threads")
def test_replicates_differ_in_threads_and_instruction_sets() -> None:
    found = circumstances()
    assert len({each.name for each in found}) == len(found) >= 3
    assert {each.workers for each in found} == {1, usable_cpus()}
    assert any("ATEN_CPU_CAPABILITY" in each.variables for each in found)


def test_a_replicate_runs_what_was_asked_for_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def ended(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", ended)
    run_replicate(Circumstances("threads", 1), tmp_path, ["c4/", "glue/rte"])
    assert asked[0][-4:] == ["--only", "c4/", "--only", "glue/rte"]


def _trained(replicate: int, rank: int = 4) -> dict[str, object]:
    torch.manual_seed(0)
    model = nn.Linear(16, 16)
    weights = {"params": [model.weight], "projection_rank": rank}
    optimizer = GradNormLoRPAdamW([weights, {"params": [model.bias]}], lr=1e-2)
    inputs = torch.randn(6, 8, 16)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) - batch).square().mean() * (1 + 1e-7 * replicate)

    return probe(model, optimizer, loss, list(inputs))


def test_the_probe_gates_an_optimizer_of_ones_own(tmp_path: Path) -> None:
    stack = {"torch": torch.__version__}
    check("mine", _trained, tmp_path, stack, update=True)
    assert check("mine", _trained, tmp_path, stack) == []
    lines = check("mine", lambda replicate: _trained(replicate, rank=5), tmp_path, stack)
    named = {line.partition(":")[0] for line in lines}
    assert {"state_bytes", "state_shapes", "peak optimizer_bytes", "loss, steps 3-4"} <= named


def test_the_probe_counts_what_the_formula_says() -> None:
    found = _trained(0)
    # Two moments of 16 x 4, a basis of 16 x 4, two moments of the bias: 4 bytes each; step counters are extra.
    assert found["trainable_bytes"] == 4 * (16 * 16 + 16)
    assert isinstance(found["state_bytes"], int)
    assert 0 <= found["state_bytes"] - 4 * (3 * 16 * 4 + 2 * 16) <= 16
    with pytest.raises(ValueError, match="at least 3"):
        probe(nn.Linear(2, 2), torch.optim.AdamW([torch.zeros(1)]), lambda *_: torch.zeros(1), [1, 2])
