"""Runs sharded over gloo processes against runs of one: losses, norms, weights, bytes, checkpoints."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import AutoModelForCausalLM

from results.schema import Plan
from results.store import read_records
from suites.measure import live
from suites.measure.environment import ROOT
from suites.plan import Request, make_plans
from suites.resolved import resolved
from suites.run import resume
from suites.run.build import build, check_fit
from suites.run.distributed import Group, sharded_group
from suites.run.loop import Hooks, Outcome, train
from suites.run.shard import check_shard, gathered_state
from suites.suite import Runtime

CPU = torch.device("cpu")
FEW = {"model": "0.1m", "steps": 6, "batch_size": 8, "accumulation": 4, "evaluations": 1, "eval_tokens": 300}
NO_DROPOUT = {"dropout": 0.0}
PROJECTED = {"refresh_gap": 2}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("full", {}),
    "lora": ("lora", NO_DROPOUT),
    "dora": ("dora", NO_DROPOUT),
    "galore": ("galore", PROJECTED),
    "factors": ("gradnormlorp", {**PROJECTED, **NO_DROPOUT, "rank": 8, "projection_rank": 4}),
    "dense": ("galore_norm", PROJECTED),
}


def plan_of(name: str, method: str, config: dict[str, Any], **more: Any) -> Plan:
    settings = {**FEW, **more, f"method.{method}": {"config": config, "learning_rate": 1e-3}}
    overrides: dict[str, Any] = {key: value for key, value in settings.items() if not key.startswith("method.")}
    overrides["method"] = {method: settings[f"method.{method}"]}
    (plan,) = make_plans(Request("c4", "micro", 8, (), (method,), (0,), tuple(overrides.items())), Runtime(CPU))
    return plan


@dataclasses.dataclass(frozen=True)
class Case:
    """One run of a worker: what it is called, its plan, how it is sharded, where its checkpoints stand."""

    name: str
    plan: str
    shard: str | None
    checkpoints: str | None = None
    stop: int | None = None


def run_case(case: Case, group: Group, folder: Path) -> dict[str, Any]:
    plan = Plan.model_validate_json(case.plan)
    group = dataclasses.replace(group, shard=case.shard)
    runtime = Runtime(CPU, group=group, checkpoint_steps=2)
    this = resolved(plan, runtime)
    check_shard(this)
    job = this.job()
    built = build(job.model(), job.placement, this)
    out = Outcome()
    saver = resume.Saver(None if case.checkpoints is None else Path(case.checkpoints), this, built, out, lambda: 0.0)
    saver.load()

    def save(step: int) -> None:
        saver.save(step)
        if step == case.stop:
            raise KeyboardInterrupt

    try:
        train(built.model, built.optimizer, job, plan.training, out, Hooks(lambda step, loss: None, save=save), group)
    except KeyboardInterrupt:
        pass
    state = gathered_state(built.model, group.leads) if case.shard else dict(built.model.state_dict())
    digest = resume.digest(built.model, built.optimizer)
    if group.leads:
        torch.save(state, folder / f"{case.name}-{group.size}.pt")
    counters = sum(value["step"].nbytes for value in built.optimizer.state.values() if torch.is_tensor(value["step"]))
    return {
        "losses": [point.loss for point in out.curve],
        "norms": [point.gradient_norm for point in out.curve],
        "refreshes": out.refreshes,
        "scores": out.evaluations[-1].metrics if out.evaluations else {},
        "state": live.state_bytes(built.optimizer, built.model) - counters,
        "formula": built.formula_state_bytes,
        "weights": live.weight_bytes(built.model),
        "digest": digest,
        "resumed": out.resumed_at,
    }


def work(rank: int, size: int, folder: Path, cases: list[Case]) -> None:
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", f"file://{folder}/meet-{size}", rank=rank, world_size=size)
    for case in cases:
        found = run_case(case, Group(rank, size), folder)
        (folder / f"{case.name}-{size}-{rank}.json").write_text(json.dumps(found))
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()


def run(size: int, folder: Path, cases: list[Case]) -> None:
    if size == 1:
        work(0, 1, folder, cases)
    else:
        mp.start_processes(work, args=(size, folder, cases), nprocs=size, start_method="spawn")
        (folder / f"meet-{size}").unlink(missing_ok=True)


def found(folder: Path, name: str, size: int) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{name}-{size}-{rank}.json").read_text()) for rank in range(size)]


def assert_as_one(folder: Path, name: str, whole: str, size: int, each_value: float = 1e-5) -> None:
    """Assert that a sharded run is a run of one process; `each_value`: by how much a value of a weight may differ."""
    (one,), all_of_them = found(folder, whole, 1), found(folder, name, size)
    for each in all_of_them:
        assert each["losses"] == pytest.approx(one["losses"], rel=1e-5)
        assert each["norms"] == pytest.approx(one["norms"], rel=1e-5)
        assert each["refreshes"] == one["refreshes"]
        assert each["state"] == each["formula"]
        assert each["digest"] == all_of_them[0]["digest"]
    sharded, plain = (torch.load(folder / f"{what}.pt") for what in (f"{name}-{size}", f"{whole}-1"))
    assert set(sharded) == set(plain)
    for key, value in plain.items():
        torch.testing.assert_close(
            sharded[key], value, rtol=1e-5, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_every_method_trains_sharded_as_alone(size: int, tmp_path: Path) -> None:
    plans = {name: plan_of(name, *how).model_dump_json() for name, how in METHODS.items()}
    alone = [Case(name, plan, None) for name, plan in plans.items()]
    shared = [Case(name, plan, "all") for name, plan in plans.items()]
    shared += [Case(f"{name}-frozen", plans[name], "frozen") for name in ("lora", "factors")]
    run(1, tmp_path, alone)
    run(size, tmp_path, shared)
    for case in shared:
        assert_as_one(tmp_path, case.name, case.name.removesuffix("-frozen"), size)
    assert found(tmp_path, "galore", size)[0]["refreshes"] == 3


def checkpointed(
    name: str, plan: Plan, folder: Path, store: str, stop: int | None = None, shard: str | None = "all"
) -> Case:
    return Case(name, plan.model_dump_json(), shard, str(folder / store), stop)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "galore", "factors"])
def test_a_checkpoint_of_two_goes_on_with_two_four_and_one(name: str, tmp_path: Path) -> None:
    plan = plan_of(name, *METHODS[name])
    run(1, tmp_path, [Case(name, plan.model_dump_json(), None)])
    cut = [checkpointed(f"cut-{store}", plan, tmp_path, store, stop=4) for store in ("two", "four", "one", "harmed")]
    run(2, tmp_path, [Case("through", plan.model_dump_json(), "all"), *cut])
    harmed = sorted((tmp_path / "harmed" / "step-00000004.parts").iterdir())[-1]
    harmed.write_bytes(harmed.read_bytes()[:-7] + b"damaged")
    run(2, tmp_path, [checkpointed("two", plan, tmp_path, "two"), checkpointed("harmed", plan, tmp_path, "harmed")])
    run(4, tmp_path, [checkpointed("four", plan, tmp_path, "four")])
    with pytest.warns(UserWarning, match="written by 2 processes, this run has 1"):
        run(1, tmp_path, [checkpointed("one", plan, tmp_path, "one", shard=None)])
    through = found(tmp_path, "through", 2)[0]
    for again, size, step in (("two", 2, 4), ("harmed", 2, 2), ("four", 4, 4), ("one", 1, 4)):
        for each in found(tmp_path, again, size):
            assert each["resumed"] == [step]
            assert each["losses"] == pytest.approx(through["losses"], rel=1e-5)
            # On as many processes bit for bit, on others to rounding.
            assert (each["digest"] == through["digest"]) == (size == 2)
    for again, size in (("four", 4), ("one", 1)):
        state, plain = torch.load(tmp_path / f"{again}-{size}.pt"), torch.load(tmp_path / f"{name}-1.pt")
        for key, value in plain.items():
            torch.testing.assert_close(state[key], value, rtol=1e-5, atol=1e-5)


def _die(rank: int, folder: Path, case: Case) -> None:
    """Run as a worker does, and kill every process of the group in the middle of a step."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet-killed", rank=rank, world_size=2)
    step = torch.nn.Module.__call__
    calls = 0

    def strike(self: Any, *given: Any, **options: Any) -> Any:
        nonlocal calls
        calls += type(self).__name__.endswith("LlamaForCausalLM")
        if calls > 9:  # two micro-batches a step: in the fifth step, with a checkpoint of the fourth
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *given, **options)

    torch.nn.Module.__call__ = strike  # type: ignore[method-assign]
    run_case(case, Group(rank, 2), folder)


@pytest.mark.slow
def test_a_run_killed_in_a_step_goes_on_bit_for_bit(tmp_path: Path) -> None:
    plan = plan_of("galore", *METHODS["galore"])
    case = checkpointed("killed", plan, tmp_path, "killed")
    with pytest.raises(mp.ProcessExitedException, match="SIGKILL"):
        mp.start_processes(_die, args=(tmp_path, case), nprocs=2, start_method="spawn")
    run(2, tmp_path, [case, Case("through", plan.model_dump_json(), "all")])
    killed, through = found(tmp_path, "killed", 2)[0], found(tmp_path, "through", 2)[0]
    assert killed["resumed"] == [4]
    assert killed["digest"] == through["digest"]
    assert killed["losses"] == through["losses"]


@pytest.mark.slow
def test_updates_inside_backward_are_the_same(tmp_path: Path) -> None:
    plain = {"accumulation": 2, "clip_norm": 0.0}
    cases = []
    for name in ("full", "galore", "factors", "dense"):
        run(1, tmp_path, [Case(name, plan_of(name, *METHODS[name], **plain).model_dump_json(), None)])
        inside = plan_of(name, *METHODS[name], **plain, per_layer=True)
        cases.append(Case(f"{name}-inside", inside.model_dump_json(), "all"))
    run(2, tmp_path, cases)
    for case in cases:
        # Adam turns the rounding of a gradient near 0 into a part of a step: of 1e-3 each here.
        assert_as_one(tmp_path, case.name, case.name.removesuffix("-inside"), 2, each_value=3e-5)


@pytest.mark.slow
def test_eight_bits_where_the_trained_stay_whole(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    plans = {name: plan_of(name, *METHODS[name], state_bits=8).model_dump_json() for name in ("lora", "factors")}
    run(1, tmp_path, [Case(name, plan, None) for name, plan in plans.items()])
    run(2, tmp_path, [Case(f"{name}-frozen", plan, "frozen") for name, plan in plans.items()])
    for name in plans:
        one, two = found(tmp_path, name, 1)[0], found(tmp_path, f"{name}-frozen", 2)[0]
        # A rounding of a gradient may be a step of 8 bits.
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-3)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "bf16_updates": ("full", {"precision": "bf16", "bf16_updates": "kahan"}, "bf16_updates 'kahan' with --shard"),
    "state_bits": ("full", {"state_bits": 8}, "state_bits 8 with --shard"),
    "compile": ("full", {"compile": True}, "compile = true with --shard"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_sharded_is_refused_by_name(name: str) -> None:
    method, settings, words = REFUSED[name]
    this = resolved(plan_of(method, method, {}, **settings), Runtime(CPU, group=Group(0, 2, "all")))
    with pytest.raises(ValueError, match=words) as caught:
        check_shard(this)
    assert "nearest allowed value" in str(caught.value)
    check_shard(resolved(this.plan, Runtime(CPU)))


@pytest.mark.parametrize("method", ["muon", "fira"])
def test_an_optimizer_that_needs_whole_weights_is_refused_before_anything_runs(method: str) -> None:
    plan = plan_of(method, method, {})
    with pytest.raises(ValueError, match=f"method '{method}' with --shard: .* needs whole parameters"):
        check_fit(resolved(plan, Runtime(CPU, group=Group(0, 2, "all"))))
    check_fit(resolved(plan, Runtime(CPU)))


def test_merges_are_refused() -> None:
    this = resolved(plan_of("lora", "lora", {"merge_gap": 2}), Runtime(CPU, group=Group(0, 2, "frozen")))
    with pytest.raises(ValueError, match="merge_gap 2 with --shard"):
        check_shard(this)


def test_one_process_has_nothing_to_share_out() -> None:
    with pytest.raises(ValueError, match="there is one process"):
        sharded_group(Group(), shard=True, keep_trained_whole=False)
    with pytest.raises(ValueError, match="keep-trained-whole"):
        sharded_group(Group(0, 2), shard=False, keep_trained_whole=True)
    assert sharded_group(Group(0, 2), shard=True, keep_trained_whole=False).shard == "all"
    assert sharded_group(Group(0, 2), shard=True, keep_trained_whole=True).shard == "frozen"
    assert sharded_group(Group(), shard=False, keep_trained_whole=False) == Group()


@pytest.mark.slow
def test_the_command_line_under_torchrun_shards_and_keeps_the_model(tmp_path: Path) -> None:
    command = "run c4 --profile micro --model 0.1m --method full,galore,gradnormlorp --seeds 0 --steps 3".split()
    settings = ["--set", "accumulation=2", "--set", "eval_tokens=300", "--save-model", "merged", "--shard"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "suites"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*launcher, *command, *settings, "--out", str(tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    records = read_records([tmp_path])
    assert {record.status for record in records} == {"ok"}
    assert len(records) == 3
    for record in records:
        assert record.memory is not None
        assert record.memory.step_peak is not None
        # The optimizer's step counters belong to no formula.
        assert 0 <= record.memory.state_bytes - record.memory.formula_state_bytes <= 4 * 100
        kept = tmp_path / "models" / record.plan.label
        with torch.no_grad():
            model = AutoModelForCausalLM.from_pretrained(str(kept)).eval()
        assert not any(".direction" in name for name in model.state_dict())


@pytest.mark.slow
def test_one_process_is_told_so_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "suites", "run", "c4", "--profile", "micro", "--shard", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "--shard: there is one process" in done.stderr.replace("\n", " ")
    assert not list(tmp_path.iterdir())
