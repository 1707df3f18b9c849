"""The run engine's promises about memory: what is measured is let go, what it takes is not the run's."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from baselines.method import Placement, trainable
from baselines.registry import get_method, methods
from results.schema import Memory
from suites.measure import live
from suites.measure.ledger import run_gaps
from suites.resolved import resolved
from suites.run import execute as run
from suites.run.build import build
from suites.run.execute import execute, measured
from suites.run.tracked import tracked_pass
from suites.suite import Runtime

NAMES = tuple(methods())
TWO = ("full", "gradnormlorp")


def quiet(step: int, loss: float) -> None:
    pass


def per_layer_plan(make_plan: Any, name: str, **settings: Any) -> Any:
    return make_plan(method=name, **{"clip_norm": 0, "per_layer": True, **settings})


@pytest.mark.parametrize(
    ("name", "per_layer"),
    [
        pytest.param(name, per_layer, marks=[pytest.mark.slow] * (name not in TWO))
        for name in NAMES
        for per_layer in (False, True)
    ],
)
def test_nothing_of_the_measured_model_lives_on(
    name: str, per_layer: bool, make_plan: Any, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = resolved(per_layer_plan(make_plan, name, per_layer=per_layer), runtime)
    alive: list[weakref.ref[Any]] = []

    def seen(*given: Any, **more: Any) -> Any:
        built = build(*given, **more)
        alive.extend(weakref.ref(each) for each in (built.model, built.optimizer, *built.model.parameters()))
        return built

    monkeypatch.setattr(run, "build", seen)
    load, tracked, untracked = measured(case.job(), case)
    assert load is not None
    assert tracked is not None
    assert untracked is None
    assert len(alive) > 10
    assert [ref for ref in alive if ref() is not None] == []


@pytest.mark.parametrize("name", NAMES)
def test_with_per_layer_updates_the_tracked_pass_never_holds_all_gradients(
    name: str, make_plan: Any, runtime: Runtime
) -> None:
    found = {}
    for per_layer in (False, True):
        case = resolved(per_layer_plan(make_plan, name, per_layer=per_layer), runtime)
        job = case.job()
        built = build(job.model(), job.placement, case)
        trained = list(trainable(built.model).values())
        most = 0

        def count(_: torch.Tensor, trained: list[nn.Parameter] = trained) -> None:
            nonlocal most
            most = max(most, sum(parameter.grad is not None for parameter in trained))

        handles = [parameter.register_post_accumulate_grad_hook(count) for parameter in trained]
        found[per_layer] = tracked_pass(built, job, case).gradient_bytes
        assert most == (1 if per_layer else len(trained))
        for handle in handles:
            handle.remove()
    assert found[True] == found[False]


@pytest.mark.two_methods
@pytest.mark.parametrize("name", NAMES)
def test_per_layer_updates_with_accumulation_run(name: str, make_plan: Any, runtime: Runtime) -> None:
    plain = execute(make_plan(method=name, clip_norm=0, accumulation=2), runtime, None, quiet)
    inside = execute(per_layer_plan(make_plan, name, accumulation=2), runtime, None, quiet)
    assert (inside.status, inside.error) == ("ok", None)
    losses = [[point.loss for point in record.curve] for record in (plain, inside)]
    if get_method(name).bases:
        # A basis comes from one micro-batch, not from the sum.
        assert losses[1] == pytest.approx(losses[0], rel=0.05)
    else:
        assert losses[1] == losses[0]


def test_memory_that_runs_out_in_the_instrumentation_pass_is_not_the_methods(
    make_plan: Any, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Any]] = []

    def full(built: Any, *_: Any) -> Any:
        alive.append(weakref.ref(built.model))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(run, "tracked_pass", full)
    record = execute(make_plan(), runtime, 7, quiet)
    assert (record.status, record.error) == ("ok", None)
    memory = record.memory
    assert memory is not None
    assert memory.untracked is not None
    assert "instrumentation pass" in memory.untracked
    assert "9 GiB" in memory.untracked
    assert (memory.step_peak, memory.refresh_peak, memory.gradient_bytes, memory.ledger) == (None, None, None, None)
    assert memory.state_bytes > 0
    assert len(record.curve) == 3
    gc.collect()
    assert alive[0]() is None


def test_memory_that_runs_out_in_the_run_is_the_methods(
    make_plan: Any, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run, "train", full)
    assert execute(make_plan(), runtime, None, quiet).status == "out_of_memory"


class StandIn:
    """torch.cuda's counters as an allocator keeps them: what is freed stays reserved until the cache is emptied."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.allocated = self.reserved = self.most_allocated = self.most_reserved = 0
        for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.most_allocated)
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: self.most_reserved)

    def use(self, size: int) -> None:
        self.allocated += size
        self.reserved = max(self.reserved, self.allocated)
        self.most_allocated = max(self.most_allocated, self.allocated)
        self.most_reserved = max(self.most_reserved, self.reserved)

    def synchronize(self, device: object = None) -> None:
        pass

    def empty_cache(self) -> None:
        self.reserved = self.allocated

    def reset_peak_memory_stats(self, device: object = None) -> None:
        self.most_allocated, self.most_reserved = self.allocated, self.reserved


def test_no_peak_of_the_run_keeps_what_the_instrumentation_took(monkeypatch: pytest.MonkeyPatch) -> None:
    device = StandIn(monkeypatch)
    peaks = live.DevicePeaks(torch.device("cuda"))
    with peaks.phase("instrumentation"):
        device.use(100)
        device.use(-100)
    peaks.release()
    with peaks.phase("load"):
        device.use(10)
    with peaks.phase("train"):
        device.use(30)
        device.use(-25)
        with peaks.phase("evaluation"):
            device.use(2)
            device.use(-2)
        device.use(1)
    assert peaks.allocated_bytes == {"instrumentation": 100, "load": 10, "train": 40, "evaluation": 17}
    assert peaks.reserved_bytes == {"instrumentation": 100, "load": 10, "train": 40, "evaluation": 40}


def test_reserved_is_not_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    device = StandIn(monkeypatch)
    peaks = live.DevicePeaks(torch.device("cuda"))
    device.use(50)
    device.use(-50)
    with peaks.phase("train"):
        device.use(20)
    assert (peaks.allocated_bytes, peaks.reserved_bytes) == ({"train": 20}, {"train": 50})
    fields = dict.fromkeys(Memory.model_fields)
    fields |= dict.fromkeys(
        ("weight_bytes", "trainable_bytes", "buffer_bytes", "gradient_bytes", "state_bytes", "basis_bytes"), 1
    )
    zero = {f"{part}_bytes": 0 for part in ("parameter", "buffer", "gradient", "activation", "temporary", "optimizer")}
    memory = Memory(
        **{
            **fields,
            "step_peak": {"total_bytes": 15, **zero},
            "cuda_allocated_bytes": {**(peaks.allocated_bytes or {}), "instrumentation": 500},
            "cuda_reserved_bytes": {**(peaks.reserved_bytes or {}), "instrumentation": 900},
        }
    )
    assert (memory.device_allocated_bytes, memory.device_reserved_bytes) == (20, 50)
    gaps = {gap.name: gap.gap_bytes for gap in run_gaps(memory)}
    assert gaps == {"device allocator - tracked peak": 5, "device reserved - allocated": 30}


def weights_after_a_step(name: str, scale: float, make_plan: Any, runtime: Runtime) -> dict[str, torch.Tensor]:
    config = {"scale": scale, "refresh_gap": 5}
    plan = make_plan(method=name, clip_norm=0, config=config, warmup_fraction=0.0, schedule="constant")
    case = resolved(plan, runtime)
    job = case.job()
    built = build(job.model(), job.placement, case)
    built.model.eval()
    for parameter in trainable(built.model).values():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    before = {name: value.detach().clone() for name, value in built.model.named_parameters()}
    built.optimizer.step()
    return {name: value.detach() - before[name] for name, value in built.model.named_parameters()}


@pytest.mark.parametrize("name", [name for name in NAMES if "scale" in get_method(name).config_type.model_fields])
def test_the_scale_of_a_plan_reaches_the_update(name: str, make_plan: Any, runtime: Runtime) -> None:
    one, four = (weights_after_a_step(name, scale, make_plan, runtime) for scale in (1.0, 4.0))
    ratios = [float(four[key].norm() / moved) for key, change in one.items() if (moved := change.norm()) > 0]
    scaled = [ratio for ratio in ratios if ratio == pytest.approx(4.0, rel=1e-3)]
    assert len(scaled) >= 2
    assert all(ratio == pytest.approx(1.0, rel=1e-3) for ratio in ratios if ratio not in scaled)


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 12, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out


ADAPTERS = [name for name in NAMES if "alpha" in get_method(name).config_type.model_fields]


def adapted(name: str, alpha: float, dropout: float) -> nn.Module:
    method = get_method(name)
    model = OneLayer()
    config = method.config_type(**{**method.configure(4).model_dump(), "alpha": alpha, "dropout": dropout})
    torch.manual_seed(1)
    method.attach(model, Placement(("layer",), ()), config)
    for index, parameter in enumerate(trainable(model).values()):
        if parameter.ndim == 2:
            values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
            parameter.data.copy_(0.01 * values)
    return model


@pytest.mark.parametrize("name", ADAPTERS)
def test_alpha_reaches_the_layer(name: str) -> None:
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(3))
    merged = {alpha: get_method(name).merge(adapted(name, alpha, 0.0)) for alpha in (1e-9, 2.0, 4.0)}
    base, small, large = (model(x) for model in merged.values())
    # Small factors: the change is linear in alpha up to the normalisation's second order.
    assert float((large - base).norm() / (small - base).norm()) == pytest.approx(2.0, rel=0.02)
    assert float((small - base).norm()) > 1e-4


@pytest.mark.parametrize("name", ADAPTERS)
def test_dropout_reaches_the_layer(name: str) -> None:
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(3))
    with_dropout, without = (adapted(name, 16.0, dropout).train() for dropout in (0.5, 0.0))
    torch.manual_seed(0)
    assert torch.equal(without(x), without(x))
    assert not torch.equal(with_dropout(x), with_dropout(x))
    assert torch.equal(with_dropout.eval()(x), with_dropout(x))
