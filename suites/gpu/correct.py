"""Questions of correctness: the contract pack, fast against slow, 8-bit, resuming, one small real run."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from baselines.method import AdamSettings
from baselines.registry import default_methods, get_method
from baselines.shared.adamw import adamw
from gnlorp import GradNormLoRPAdamW, attach
from gnlorp.reference import ReferenceOptions, ReferenceState, reference_step, reference_weight
from results.schema import Plan, Record
from results.store import read_records
from suites.capabilities.networks import on_device
from suites.capabilities.pack import row_of
from suites.capabilities.subject import method_subject
from suites.gpu.where import Where
from suites.measure.environment import ROOT
from suites.plan import Request, make_plans
from suites.run.execute import execute
from suites.suite import Runtime

STEP_LIMIT, LAYER_LIMIT = 1e-8, 1e-4
REFERENCE = ROOT / "results" / "reference" / "glue-micro-r8"
REAL_STEPS, REAL_TASK = 200, "sst2"


def contract_pack(where: Where) -> None:
    """Ask what every method can do, on the device."""
    names = default_methods()[:1] if where.rehearsal else default_methods()
    with on_device(where.device):
        for name in names:
            row = row_of(method_subject(get_method(name)), ("llama-lm",) if where.rehearsal else ("bert", "llama-lm"))
            wrong = [f"{cell.check}: {cell.reason}" for cell in row.cells if cell.answer == "no"]
            words = "; ".join(wrong) or f"{len(row.cells)} checks, none answered no"
            where.judge(name, not wrong, words, **{cell.check: cell.answer for cell in row.cells})


def fast_against_slow(where: Where) -> None:
    """Compare the optimizer with the slow reference in float64, and the layer with the formed weight in float32."""
    for side in ("small", "large", "both"):
        options: dict[str, Any] = {"lr": 0.02, "projection_rank": 3, "refresh_gap": 4, "side": side, "scale": 0.7}
        generator = torch.Generator().manual_seed(0)
        slow = torch.randn(40, 24, generator=generator, dtype=torch.float64)
        fast = nn.Parameter(slow.to(where.device))
        optimizer, state = GradNormLoRPAdamW([fast], **options), ReferenceState()
        for _ in range(10):
            grad = torch.randn(40, 24, generator=generator, dtype=torch.float64)
            slow = reference_step(slow, grad, state, ReferenceOptions(**options))
            fast.grad = grad.to(where.device)
            optimizer.step()
        off = float((fast.detach().cpu() - slow).abs().max())
        where.judge(f"optimizer, side {side}", off < STEP_LIMIT, f"ten steps end {off:.1e} apart", largest=off)
    for rule in ("full", "detached"):
        off = _layer_gap(where, rule)
        where.judge(f"layer, gradient rule {rule}", off < LAYER_LIMIT, f"relative difference {off:.1e}", largest=off)


def _layer_gap(where: Where, rule: Any) -> float:
    """Return the largest relative difference of outputs and gradients between the layer and its formed weight."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 64, bias=False))
    weight = next(model.parameters()).detach().clone()
    attach(model, ["0"], 8, 16.0, 0.0, rule)
    layer: Any = model[0]
    with torch.no_grad():
        layer.factor_out.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.1)
    parts = [layer.factor_out, layer.factor_in, layer.magnitude]
    copies = [part.detach().clone().requires_grad_() for part in parts]
    x = torch.randn(20, 48, generator=torch.Generator().manual_seed(2))
    formed = reference_weight(weight, copies[0], copies[1], copies[2], 2.0, rule == "full")
    want = x @ formed.T
    want.square().sum().backward()
    model.to(where.device)
    got = model(x.to(where.device))
    got.square().sum().backward()
    pairs = [(got, want)] + [(part.grad, copy.grad) for part, copy in zip(parts, copies, strict=True)]
    return max(float((a.detach().cpu() - b.detach()).norm() / b.detach().norm()) for a, b in pairs)


def eight_bit(where: Where) -> None:
    """Ask whether 8-bit updates decay the weight before the step, as AdamW says, in both widths of the state."""
    lr, decay = 0.5, 0.5
    for values in (64, 8192):
        for name in ("bitsandbytes", "gnlorp"):
            weight = nn.Parameter(torch.full((values,), 2.0, device=where.device))
            adam = AdamSettings(lr, weight_decay=decay, state_bits=8)
            optimizer = (
                adamw([weight], adam)
                if name == "bitsandbytes"
                else GradNormLoRPAdamW([weight], lr=lr, weight_decay=decay, state_bits=8)
            )
            weight.grad = torch.ones_like(weight)
            optimizer.step()
            found, before, after = float(weight.detach().mean()), 2 * (1 - lr * decay) - lr, (2 - lr) * (1 - lr * decay)
            words = f"one step gives {found:.4f}: decay first {before:.4f}, decay last {after:.4f}"
            where.judge(f"{name}, {values} values: decay order", abs(found - before) < 0.02, words, found=found)


def resuming(where: Where) -> None:
    """Ask whether a run that is cut off ends bit-equal, with torch's deterministic algorithms."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        for name in default_methods()[-1:] if where.rehearsal else default_methods():
            plan = micro_plan(where, name, steps=6, evaluations=1)
            with tempfile.TemporaryDirectory() as folder:
                whole, cut, resumed = _cut_off(where, plan, Path(folder))
            same = whole.final_digest == resumed.final_digest and whole.final_digest is not None
            words = f"{whole.status}, {cut.status}, {resumed.status}; went on at {resumed.resumed_at}"
            words += "" if whole.error is None else f": {whole.error.splitlines()[0]}"
            where.judge(name, same and bool(resumed.resumed_at), words)
    finally:
        torch.use_deterministic_algorithms(before)


def _cut_off(where: Where, plan: Plan, folder: Path) -> tuple[Record, Record, Record]:
    runtime = replace(runtime_of(where), checkpoint_steps=1)

    def stop(step: int, loss: float) -> None:
        if step == 4:
            raise KeyboardInterrupt

    whole = execute(plan, runtime, None, _quiet)
    return whole, execute(plan, runtime, None, stop, folder), execute(plan, runtime, None, _quiet, folder)


def real_run(where: Where) -> None:
    """Train on a generated task and compare with the committed record of a processor."""
    known = {record.plan.method: record for record in read_records([REFERENCE]) if _is_reference(record.plan)}
    for name in default_methods()[-1:] if where.rehearsal else default_methods():
        steps = 5 if where.rehearsal else REAL_STEPS
        record = execute(micro_plan(where, name, steps=steps), runtime_of(where), None, _quiet)
        scores = {key: value for each in record.evaluations[-1:] for key, value in each.metrics.items()}
        losses = [point.loss for point in record.curve]
        first, last = (sum(part) / len(part) if part else math.nan for part in (losses[:20], losses[-20:]))
        falls = last < first or where.rehearsal
        words = f"{record.status}; loss {first:.3f} to {last:.3f}"
        words += "" if record.error is None else f": {record.error.splitlines()[0]}"
        other = known.get(name)
        beside = {} if other is None or where.rehearsal else {f"processor {k}": v for k, v in _scores(other).items()}
        memory = record.memory
        where.judge(
            name, record.status == "ok" and falls, words, **scores, **beside,
            tracked_bytes=None if memory is None or memory.step_peak is None else memory.step_peak.total_bytes,
            allocated_bytes=None if memory is None else memory.device_allocated_bytes,
            reserved_bytes=None if memory is None else memory.device_reserved_bytes,
        )  # fmt: skip


def micro_plan(where: Where, name: str, **settings: Any) -> Plan:
    """Return a plan of the generated tasks, small in a rehearsal."""
    small = {"batch_size": 8, "train_rows": 48, "eval_rows": 32} if where.rehearsal else {}
    request = Request("glue", "micro", 8, (REAL_TASK,), (name,), (0,), tuple({**small, **settings}.items()))
    (plan,) = make_plans(request, runtime_of(where))
    return plan


def runtime_of(where: Where) -> Runtime:
    """Return the runtime of a run on the device, without the network."""
    return Runtime(where.device, threads=torch.get_num_threads(), offline=True)


def _is_reference(plan: Plan) -> bool:
    return plan.task == REAL_TASK and plan.seed == 0 and plan.purpose == "result"


def _scores(record: Record) -> dict[str, float | None]:
    return record.evaluations[-1].metrics if record.evaluations else {}


def _quiet(step: int, loss: float) -> None:
    pass
