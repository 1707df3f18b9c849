"""The tracked peak against sums by hand, against the allocator, and against itself."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.utils.checkpoint import checkpoint

from suites.measure.live import state_bytes, weight_bytes
from suites.measure.trace import Event, Trace, peak_of
from suites.measure.tracker import track, track_step

Case = tuple[nn.Module, Optimizer, Callable[[], object]]

BATCH, INPUTS, HIDDEN, OUTPUTS = 16, 64, 128, 16
X = 4 * BATCH * INPUTS
H = 4 * BATCH * HIDDEN
Y = 4 * BATCH * OUTPUTS
W1 = 4 * INPUTS * HIDDEN
W2 = 4 * HIDDEN * OUTPUTS
SCALAR = 4


def stack() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, HIDDEN, bias=False), nn.ReLU(), nn.Linear(HIDDEN, OUTPUTS, bias=False))


def case(
    model: nn.Module, make: Callable[..., Optimizer], inputs: Tensor, micro_batches: int = 1, zero: bool = True
) -> Case:
    optimizer = make([parameter for parameter in model.parameters() if parameter.requires_grad])

    def step() -> None:
        for _ in range(micro_batches):
            model(inputs).float().pow(2).sum().backward()
        optimizer.step()
        if zero:
            optimizer.zero_grad(set_to_none=True)

    return model, optimizer, step


def sgd(parameters: Any) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def adamw(parameters: Any) -> Optimizer:
    return torch.optim.AdamW(parameters, fused=True)


def batch() -> Tensor:
    return torch.ones(BATCH, INPUTS)


def test_stack_of_linears_by_hand() -> None:
    model, optimizer, step = case(stack(), adamw, batch())
    step()
    peak = track_step(model, optimizer, step)
    assert peak.parameter_bytes == W1 + W2
    assert peak.other_bytes == X
    assert peak.optimizer_bytes == 2 * (W1 + W2) + 2 * SCALAR
    # The last product of backward: the gradient of the first weight out of the batch and the gradient of the hidden
    # layer; of the forward only the loss is left, and the one that backward starts from.
    assert peak.gradient_bytes == W1 + W2
    assert peak.temporary_bytes == H
    assert peak.activation_bytes == 2 * SCALAR
    assert peak.buffer_bytes == 0
    assert peak.total_bytes == 4 * (W1 + W2) + X + H + 4 * SCALAR


def test_phases_by_hand() -> None:
    trace = track(*case(stack(), sgd, batch()))
    forward, backward = peak_of(trace, "forward"), peak_of(trace, "backward")
    # In the forward: the hidden layer before and after the nonlinearity; later the output, its square and the loss.
    assert forward.activation_bytes == max(2 * H, H + 2 * Y + SCALAR)
    assert forward.gradient_bytes == forward.temporary_bytes == forward.optimizer_bytes == 0
    assert backward == peak_of(trace)
    assert peak_of(trace, "optimizer").gradient_bytes == W1 + W2
    assert peak_of(trace, "optimizer").activation_bytes == 0


def test_a_phase_that_begins_with_a_release_has_a_peak() -> None:
    model = stack()
    held = [torch.ones(BATCH)]

    class Forgetful(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            held.clear()
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.add_(parameter.grad, alpha=-0.1)

    optimizer = Forgetful(model.parameters(), lr=0.1)

    def step() -> None:
        held.append(held.pop() * 2)
        model(batch()).pow(2).sum().backward()
        optimizer.step()

    peak = peak_of(track(model, optimizer, step), "optimizer")
    assert (peak.parameter_bytes, peak.gradient_bytes) == (W1 + W2, W1 + W2)


def test_state_that_the_first_step_creates_is_optimizer_state() -> None:
    model, optimizer, step = case(stack(), adamw, batch())
    trace = track(model, optimizer, step)
    assert peak_of(trace, "backward").optimizer_bytes == 0
    assert peak_of(trace, "optimizer").optimizer_bytes == state_bytes(optimizer)
    assert peak_of(trace, "optimizer").temporary_bytes == 0


def test_gradients_left_alive_are_seen() -> None:
    model, optimizer, step = case(stack(), adamw, batch(), zero=False)
    step()
    peak = peak_of(track(model, optimizer, step), "forward")
    assert peak.gradient_bytes == W1 + W2


class WithCopy(torch.optim.SGD):
    """Plain descent that makes one more full-size copy of every weight, all alive at once."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        copies = [parameter.clone() for group in self.param_groups for parameter in group["params"]]
        super().step(closure)
        del copies


def test_a_full_size_temporary_raises_the_peak_by_exactly_its_bytes() -> None:
    plain = track(*case(stack(), sgd, batch()))
    copied = track(*case(stack(), lambda parameters: WithCopy(parameters, lr=0.1), batch()))
    before, after = peak_of(plain, "optimizer"), peak_of(copied, "optimizer")
    assert after.temporary_bytes - before.temporary_bytes == W1 + W2
    assert after.total_bytes - before.total_bytes == W1 + W2

    model, optimizer, step = case(stack(), sgd, batch())

    def held() -> None:
        extra = torch.empty(W1)
        step()
        del extra

    assert track_step(model, optimizer, held).total_bytes == peak_of(plain).total_bytes + 4 * W1


def test_accumulation_holds_old_and_new_gradient_of_one_weight() -> None:
    once = track_step(*case(stack(), sgd, batch()))
    twice = track_step(*case(stack(), sgd, batch(), micro_batches=2))
    assert twice.gradient_bytes == W1 + W2
    assert twice.temporary_bytes == once.temporary_bytes + W1


class InBackward(torch.optim.SGD):
    """Steps each parameter as its gradient arrives and frees the gradient."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(self.update)

    @torch.no_grad()
    def update(self, parameter: Tensor) -> None:
        parameter.sub_(parameter.grad, alpha=0.1)
        parameter.grad = None


def test_update_inside_backward_holds_one_gradient_at_a_time() -> None:
    peak = track_step(*case(stack(), InBackward, batch()))
    assert peak.gradient_bytes == W1
    assert track_step(*case(stack(), sgd, batch())).total_bytes - peak.total_bytes == W2


class Doubling(torch.autograd.Function):
    """Saves a tensor of its own making for backward."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.save_for_backward(torch.full_like(value, 2.0))
        return value * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0]


class Double(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return Doubling.apply(value)


def test_what_an_autograd_function_saves_is_an_activation() -> None:
    model = nn.Sequential(nn.Linear(INPUTS, HIDDEN, bias=False), Double())
    peak = peak_of(track(*case(model, sgd, batch())), "forward")
    # Output of the layer (kept by the closure of `Sequential`), saved factor, output of the function.
    assert peak.activation_bytes >= 3 * H
    assert peak.temporary_bytes == 0


class Checkpointed(nn.Module):
    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Tanh()) for _ in range(4))
        self.enabled = enabled

    def forward(self, value: Tensor) -> Tensor:
        for block in self.blocks:
            value = checkpoint(block, value, use_reentrant=False) if self.enabled else block(value)
        return value


def test_checkpointing_shows_and_recomputed_values_are_activations() -> None:
    peaks = [track_step(*case(Checkpointed(enabled), sgd, torch.ones(512, 64))) for enabled in (False, True)]
    block = 4 * 512 * 64
    # Two saved values per block without; with, one per block, and the two of the block that is being recomputed.
    assert peaks[0].activation_bytes - peaks[1].activation_bytes >= block
    assert peaks[1].activation_bytes >= 4 * block
    assert peaks[0].total_bytes > peaks[1].total_bytes


def test_tied_and_low_precision_weights() -> None:
    model = stack()
    model.append(nn.Linear(OUTPUTS, HIDDEN, bias=False)).append(nn.Linear(HIDDEN, OUTPUTS, bias=False))
    model[4].weight = model[2].weight
    model.to(torch.bfloat16)
    model, optimizer, step = case(model, adamw, batch().bfloat16())
    step()
    peak = track_step(model, optimizer, step)
    assert peak.parameter_bytes == weight_bytes(model) == (W1 + 2 * W2) // 2
    assert peak.gradient_bytes == peak.parameter_bytes
    assert peak.optimizer_bytes == 2 * peak.parameter_bytes + 3 * SCALAR


def test_peft_wrapped_model_counts_its_frozen_weights_and_small_gradients() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(stack(), peft.LoraConfig(r=2, target_modules=["0"], lora_dropout=0.1))
    model, optimizer, step = case(model, adamw, batch())
    step()
    peak = track_step(model, optimizer, step)
    factors = 4 * 2 * (INPUTS + HIDDEN)
    assert peak.parameter_bytes == W1 + W2 + factors
    assert peak.optimizer_bytes == 2 * factors + 2 * SCALAR
    assert peak_of(track(model, optimizer, step), "optimizer").gradient_bytes == factors


def adamw_8bit(parameters: Any) -> Optimizer:
    return pytest.importorskip("bitsandbytes").optim.AdamW8bit(parameters)


def test_what_bitsandbytes_unpacks_on_a_cpu_is_seen() -> None:
    model, optimizer, step = case(stack(), adamw_8bit, batch())
    step()
    trace = track(model, optimizer, step)
    inside, blind = peak_of(trace, "optimizer"), track(model, optimizer, step, look_into_foreign=False)
    assert inside.optimizer_bytes == state_bytes(optimizer)
    # Both moments of the larger weight in fp32, its scaled gradient, and the denominator.
    assert inside.temporary_bytes >= 4 * W1
    assert peak_of(blind, "optimizer").temporary_bytes == 0


CASES: dict[str, Callable[[], Case]] = {
    "fused": lambda: case(stack(), adamw, batch()),
    "for loop": lambda: case(stack(), lambda parameters: torch.optim.AdamW(parameters, foreach=False), batch()),
    "foreach": lambda: case(stack(), lambda parameters: torch.optim.AdamW(parameters, foreach=True), batch()),
    "accumulated": lambda: case(stack(), adamw, batch(), micro_batches=3),
    "in backward": lambda: case(stack(), InBackward, batch()),
    "attention": lambda: case(
        nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), adamw, torch.ones(4, 8, 64), micro_batches=2
    ),
    "8 bit": lambda: case(stack(), adamw_8bit, batch()),
}


def allocated_peak(step: Callable[[], object], folder: Path) -> int:
    """Growth of the allocator's total over the call, from the profiler's list of every allocation."""
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    profile.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    changes = [event for event in events if event["name"] == "[memory]"]
    assert len(changes) > 10
    highest = total = 0
    for event in sorted(changes, key=lambda event: event["ts"]):
        total += event["args"]["Bytes"]
        highest = max(highest, total)
    return highest


@pytest.mark.parametrize("name", CASES)
def test_growth_is_that_of_the_allocator(name: str, tmp_path: Path) -> None:
    model, optimizer, step = CASES[name]()
    step()
    trace = track(model, optimizer, step)
    start = sum(event.delta_bytes for event in trace.events if event.phase == "start")
    growth = peak_of(trace).total_bytes - start
    # Workspace within kernels is the allocator's alone; here it is a few scalars at most.
    assert 0 <= allocated_peak(step, tmp_path) - growth <= 64


@pytest.mark.parametrize("name", CASES)
def test_two_runs_agree_to_the_byte(name: str) -> None:
    traces = []
    for _ in range(2):
        model, optimizer, step = CASES[name]()
        step()
        traces.append([track(model, optimizer, step), track(model, optimizer, step)])
        # Garbage in cycles, as a longer process has more or less of.
        knot: list[Any] = [torch.ones(1000)]
        knot.append(knot)
    assert len({peak_of(trace).model_dump_json() for pair in traces for trace in pair}) == 1


def test_hooks_and_cycle_collection_are_restored_when_the_step_fails() -> None:
    model, optimizer, _ = case(stack(), adamw, batch())

    def fail() -> None:
        model(batch())
        raise ArithmeticError("on purpose")

    with pytest.raises(ArithmeticError):
        track(model, optimizer, fail)
    assert gc.isenabled()
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    assert not torch.nn.modules.module._global_forward_hooks
    assert not _global_optimizer_pre_hooks
    assert not _global_optimizer_post_hooks


def test_tracking_changes_no_result() -> None:
    results = []
    for tracked in (False, True):
        model, optimizer, step = case(nn.Sequential(stack(), nn.Dropout(0.5)), adamw, batch())
        torch.manual_seed(1)
        for _ in range(3):
            track(model, optimizer, step) if tracked else step()
        results.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_evaluation_without_optimizer_and_in_inference_mode() -> None:
    model = stack()
    inputs = batch()

    def evaluate() -> None:
        with torch.inference_mode():
            model(inputs)

    peak = track_step(model, None, evaluate)
    assert (peak.optimizer_bytes, peak.gradient_bytes, peak.temporary_bytes) == (0, 0, 0)
    assert peak.activation_bytes == 2 * H


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="ReLU has no parameter"):
        track(nn.ReLU(), None, lambda: None)


TRACE = Trace(
    events=(
        Event(0, 100, "start"),
        Event(1, 50, "start"),
        Event(2, 30, "forward"),
        Event(2, -30, "backward"),
        Event(3, 20, "backward"),
        Event(3, 10, "backward"),
        Event(None, 0, "optimizer"),
        Event(1, -50, "optimizer"),
    ),
    categories={0: "parameter", 1: "other", 2: "activation", 3: "gradient"},
)


def test_replay_finds_the_first_highest_moment() -> None:
    peak = peak_of(TRACE)
    assert (peak.total_bytes, peak.activation_bytes, peak.gradient_bytes) == (180, 30, 0)


def test_replay_within_a_phase_starts_from_what_was_there() -> None:
    assert peak_of(TRACE, "backward").total_bytes == 180
    assert peak_of(TRACE, "optimizer").gradient_bytes == 30
    assert peak_of(TRACE, "optimizer").total_bytes == 180
    only_start = Trace(TRACE.events[:2], TRACE.categories)
    assert peak_of(only_start).total_bytes == 150
    assert peak_of(only_start, "backward").total_bytes == 0
