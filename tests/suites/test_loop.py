"""The loop against hand-written arithmetic, a plain torch loop and transformers' Trainer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.method import Placement
from results.schema import DataFacts, Plan, TrainingPlan
from suites.measure.environment import derived_seed
from suites.registry import get_suite
from suites.resolved import resolved
from suites.run.build import build
from suites.run.clock import Clock
from suites.run.loop import (
    UNTIMED_STEPS,
    DivergedError,
    Hooks,
    Outcome,
    evaluation_steps,
    rate_factor,
    timing,
    train,
    train_step,
)
from suites.suite import Batch, Job, Runtime, Scores

CPU = torch.device("cpu")
BAD = -1.0


def training(**values: Any) -> TrainingPlan:
    return TrainingPlan(**{"steps": 10, "batch_size": 4, "learning_rate": 0.1, **values})


def squared_error(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error; not a number where the batch is marked as bad."""
    loss = (model(batch["x"]) - batch["y"]).square().mean()
    return loss * math.nan if batch["x"][0, 0] == BAD else loss


def rows(count: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.rand(count, 3, generator=generator), "y": torch.rand(count, 2, generator=generator)}


def bad_rows() -> Batch:
    batch = rows(4, 0)
    return {**batch, "x": batch["x"].index_fill(1, torch.tensor([0]), BAD)}


def toy_job(stream: list[Batch], loss: Callable[[nn.Module, Batch], Tensor] = squared_error) -> Job:
    return Job(
        model=lambda: nn.Linear(3, 2),
        placement=Placement((), ()),
        batches=lambda start: iter(stream[start:]),
        loss=loss,
        tokens=lambda batch: batch["x"].numel(),
        largest=stream[0],
        evaluate=lambda model: Scores({"validation": 1}, {"validation/accuracy": 0.5}),
        facts=DataFacts(train_rows=1, eval_rows={}, official=False),
        main_metric="validation/accuracy",
    )


def network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


class Recorder(torch.optim.SGD):
    """SGD that keeps the gradients it was given."""

    given: list[Tensor]

    def step(self, closure: Any = None) -> Any:
        self.given = [p.grad.clone() for group in self.param_groups for p in group["params"]]
        return super().step(closure)


def recorded(batches: list[Batch], **plan: Any) -> tuple[float, float, list[Tensor]]:
    model = network()
    optimizer = Recorder(model.parameters(), lr=0.1)
    loss, norm, applied = train_step(model, optimizer, batches, toy_job(batches), training(**plan), Clock(CPU))
    assert applied
    return loss, norm, optimizer.given


def micro_training(plan: Plan, runtime: Runtime, dropout: bool = True) -> tuple[nn.Module, Outcome, Job]:
    """Train full fine-tuning of `plan` through the loop; return the trained model, what happened, and the job."""
    job = get_suite("glue").job(plan, runtime)
    model = job.model() if dropout else without_dropout(job.model())
    built = build(model, job.placement, resolved(plan, Runtime(CPU)))
    out = Outcome()
    torch.manual_seed(derived_seed(plan.seed, "dropout"))
    train(built.model, built.optimizer, job, plan.training, out, Hooks(lambda step, loss: None))
    return built.model, out, job


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def test_linear_schedule_rises_to_the_peak_after_the_warmup_and_falls_towards_zero() -> None:
    plan = training(steps=6, warmup_steps=2)
    assert [rate_factor(step, plan) for step in range(6)] == pytest.approx([1 / 3, 2 / 3, 1, 3 / 4, 1 / 2, 1 / 4])


def test_linear_schedule_without_warmup_is_that_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD(network().parameters(), lr=1.0)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 0, 5)
    theirs = []
    for _ in range(5):
        theirs.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert [rate_factor(step, training(steps=5)) for step in range(5)] == pytest.approx(theirs)


def test_cosine_schedule_ends_at_its_final_fraction() -> None:
    plan = training(steps=100, warmup_steps=20, schedule="cosine", final_fraction=0.1)
    assert rate_factor(20, plan) == pytest.approx(1.0)
    assert rate_factor(60, plan) == pytest.approx(0.55)
    assert rate_factor(40, plan) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert rate_factor(100, plan) == pytest.approx(0.1)
    assert all(rate_factor(step, plan) > rate_factor(step + 1, plan) for step in range(20, 100))


def test_constant_schedule_only_warms_up() -> None:
    plan = training(steps=5, warmup_steps=1, schedule="constant")
    assert [rate_factor(step, plan) for step in range(5)] == [0.5, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("steps", "evaluations", "expected"),
    [(10, 1, {10}), (10, 4, {3, 5, 8, 10}), (3, 3, {1, 2, 3}), (2, 9, {1, 2}), (7, 2, {4, 7})],
)
def test_evaluations_are_spread_and_the_last_step_is_among_them(
    steps: int, evaluations: int, expected: set[int]
) -> None:
    assert evaluation_steps(training(steps=steps, evaluations=evaluations)) == expected


def test_micro_batches_of_unequal_size_give_the_gradient_of_one_batch() -> None:
    whole = rows(10, seed=1)
    parts = [{name: tensor[at] for name, tensor in whole.items()} for at in (slice(4), slice(4, 8), slice(8, 10))]
    loss, norm, gradients = recorded([whole])
    part_loss, part_norm, part_gradients = recorded(parts, accumulation=3)
    assert part_loss == pytest.approx(loss, abs=1e-6)
    assert part_norm == pytest.approx(norm, abs=1e-6)
    for part, one in zip(part_gradients, gradients, strict=True):
        torch.testing.assert_close(part, one, rtol=0, atol=1e-6)
    # A plain mean over micro-batches would count the two last rows twice: the test can see the difference.
    plain = [sum(recorded([part])[2][index] for part in parts) / 3 for index in range(2)]
    assert not torch.allclose(plain[0], gradients[0], rtol=0, atol=1e-4)


def test_clipping_is_that_of_torch_and_the_norm_is_the_one_before_it() -> None:
    batch = {name: 50 * tensor for name, tensor in rows(4, seed=2).items()}
    _, norm, gradients = recorded([batch], clip_norm=0.5)
    model = network()
    squared_error(model, batch).backward()
    expected = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    assert norm == pytest.approx(float(expected))
    assert norm > 0.5
    for got, parameter in zip(gradients, model.parameters(), strict=True):
        assert parameter.grad is not None
        assert torch.equal(got, parameter.grad)


def test_full_fine_tuning_is_a_plain_torch_loop_bit_for_bit(make_plan: Any, runtime: Runtime) -> None:
    plan = make_plan(steps=4, accumulation=2, evaluations=2, weight_decay=0.1, schedule="cosine", warmup_fraction=0.25)
    model, out, job = micro_training(plan, runtime)

    rate = plan.training.learning_rate
    plain = job.model()
    assert max(module.p for module in plain.modules() if isinstance(module, nn.Dropout)) > 0
    optimizer = torch.optim.AdamW(plain.parameters(), lr=rate, eps=1e-8, weight_decay=0.1, fused=True)
    factors = [0.5, *(0.5 * (1 + math.cos(math.pi * step / 3)) for step in range(3))]
    torch.manual_seed(derived_seed(plan.seed, "dropout"))
    stream = job.batches(0)
    losses = []
    for factor in factors:
        optimizer.param_groups[0]["lr"] = rate * factor
        halves = [next(stream), next(stream)]
        total = 0.0
        for half in halves:
            loss = plain(**half).loss
            (loss * (len(half["labels"]) / sum(len(each["labels"]) for each in halves))).backward()
            total += loss.item() * (len(half["labels"]) / sum(len(each["labels"]) for each in halves))
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)

    assert [point.loss for point in out.curve] == losses
    theirs = dict(plain.named_parameters())
    assert {name for name, value in model.named_parameters() if not torch.equal(value, theirs[name])} == set()
    start = dict(job.model().named_parameters())
    assert not torch.equal(theirs["classifier.dense.weight"], start["classifier.dense.weight"])


@pytest.mark.parametrize("rest", [None, 2e-2])
def test_the_schedule_scales_the_rests_rate_too_and_the_curve_holds_both(
    rest: float | None, make_plan: Any, runtime: Runtime
) -> None:
    plan = make_plan(steps=4, schedule="cosine", warmup_fraction=0.25, rest_learning_rate=rest)
    model, out, job = micro_training(plan, runtime)
    rate = plan.training.learning_rate
    factors = [point.learning_rate / rate for point in out.curve]
    assert len(set(factors)) == 4
    found = [point.rest_learning_rate for point in out.curve]
    assert found == ([None] * 4 if rest is None else pytest.approx([rest * factor for factor in factors]))
    written = out.curve[0].model_dump(mode="json")
    assert ("rest_learning_rate" in written) == (rest is not None)

    # The first step of Adam moves every value by its rate: the head's by the rest's, the backbone's by the other.
    first, _, _ = micro_training(
        plan.model_copy(update={"training": plan.training.model_copy(update={"steps": 1})}), runtime
    )
    start = dict(job.model().named_parameters())
    for name, value in first.named_parameters():
        expected = (rest or rate) if name in job.placement.trained else rate
        assert float((value - start[name]).detach().abs().max()) <= 1.01 * expected
    head = next(name for name in job.placement.trained if name.endswith("weight"))
    assert float((dict(first.named_parameters())[head] - start[head]).detach().abs().max()) > 0.3 * (rest or rate)


def test_losses_are_those_of_the_transformers_trainer(make_plan: Any, runtime: Runtime, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    plan = make_plan(steps=6, warmup_fraction=0.0)
    _, out, job = micro_training(plan, runtime, dropout=False)
    stream = job.batches(0)
    batches = [next(stream) for _ in range(plan.training.steps)]
    losses: list[float] = []

    class Plain(transformers.Trainer):
        def get_train_dataloader(self) -> list[Batch]:
            return batches

        def compute_loss(self, model: nn.Module, inputs: Any, *rest: Any, **options: Any) -> Any:
            loss = super().compute_loss(model, inputs, *rest, **options)
            losses.append(float(loss.detach()))
            return loss

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=len(batches), learning_rate=plan.training.learning_rate, use_cpu=True,
        lr_scheduler_type="linear", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, save_strategy="no",
        report_to="none", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    Plain(model=without_dropout(job.model()), args=arguments, train_dataset=[{"labels": 0}]).train()
    assert [point.loss for point in out.curve] == pytest.approx(losses, abs=1e-5)
    assert abs(losses[-1] - losses[0]) > 1e-2


def test_the_number_of_evaluations_does_not_change_the_training(make_plan: Any, runtime: Runtime) -> None:
    once, first, _ = micro_training(make_plan(steps=4, evaluations=1), runtime)
    often, second, _ = micro_training(make_plan(steps=4, evaluations=4), runtime)
    assert [len(first.evaluations), len(second.evaluations)] == [1, 4]
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), often.parameters(), strict=True))
    assert first.evaluations[-1].metrics == second.evaluations[-1].metrics
    assert [evaluation.step for evaluation in second.evaluations] == [1, 2, 3, 4]


def infinite_gradient(model: nn.Module, batch: Batch) -> Tensor:
    """A loss of zero whose gradient is not finite."""
    return sum((parameter * 0.0).sum() for parameter in model.parameters()).sqrt()


@pytest.mark.parametrize(
    ("batch", "loss", "finite"), [(bad_rows(), squared_error, False), (rows(4, 0), infinite_gradient, True)]
)
def test_a_step_that_is_not_finite_touches_neither_weights_nor_state(
    batch: Batch, loss: Callable[[nn.Module, Batch], Tensor], finite: bool
) -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    clock = Clock(CPU)
    good = rows(4, 0)
    assert train_step(model, optimizer, [good], toy_job([good]), training(clip_norm=1.0), clock)[2]
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    value, norm, applied = train_step(model, optimizer, [batch], toy_job([batch], loss), training(clip_norm=1.0), clock)
    assert not applied
    assert math.isfinite(value) is finite
    assert not math.isfinite(norm)
    assert all(torch.equal(model.state_dict()[name], weights[name]) for name in weights)
    for index, kept in state["state"].items():
        assert all(torch.equal(optimizer.state_dict()["state"][index][name], kept[name]) for name in kept)
    assert all(parameter.grad is None for parameter in model.parameters())


def trained(stream: list[Batch], **plan: Any) -> Outcome:
    model = network()
    out = Outcome()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    train(model, optimizer, toy_job(stream), training(steps=len(stream), **plan), out, Hooks(lambda step, loss: None))
    return out


def test_skipped_steps_are_counted_and_a_good_one_between_them_starts_the_count_anew() -> None:
    good, bad = rows(4, 0), bad_rows()
    out = trained([good, bad, bad, good, bad, bad, good], max_skipped=3)
    assert out.skipped_steps == 4
    assert [math.isfinite(point.loss) for point in out.curve] == [True, False, False, True, False, False, True]


def test_too_many_skipped_steps_in_a_row_end_the_run_as_diverged() -> None:
    good, bad = rows(4, 0), bad_rows()
    with pytest.raises(DivergedError, match="3 steps in a row were not finite, the last one step 4"):
        trained([good, bad, bad, bad, good], max_skipped=3)


def test_a_run_without_one_finite_step_has_diverged_however_short_it_is() -> None:
    with pytest.raises(DivergedError, match="no step from step 1 to the last one, step 2, was finite"):
        trained([bad_rows(), bad_rows()], max_skipped=20)


@pytest.mark.parametrize("bad", [1, 2, 18])
def test_a_run_that_ends_in_steps_that_are_not_finite_has_diverged(bad: int) -> None:
    with pytest.raises(DivergedError, match=f"no step from step 3 to the last one, step {bad + 2}, was finite"):
        trained([rows(4, 0), rows(4, 1), *[bad_rows()] * bad], max_skipped=20)


def test_the_curve_holds_the_learning_rate_that_the_step_used() -> None:
    rates: list[float] = []
    stream = [rows(4, seed) for seed in range(5)]

    class Watching(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    model = network()
    out = Outcome()
    plan = training(steps=5, warmup_steps=2)
    train(model, Watching(model.parameters(), lr=0.1), toy_job(stream), plan, out, Hooks(lambda step, loss: None))
    assert [point.learning_rate for point in out.curve] == pytest.approx(rates, rel=1e-12)
    assert rates == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.2 / 3, 0.1 / 3])


def test_two_groups_keep_the_ratio_of_their_learning_rates() -> None:
    model = network()
    groups = [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.2}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    stream = [rows(4, seed) for seed in range(3)]
    train(model, optimizer, toy_job(stream), training(steps=3), Outcome(), Hooks(lambda step, loss: None))
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 / 3, 0.2 / 3])


def test_times_leave_out_the_first_steps_and_the_evaluation() -> None:
    out = trained([rows(4, seed) for seed in range(5)], evaluations=5)
    seconds = timing(out, wall_s=1.0)
    assert (seconds.timed_steps, seconds.warmup_steps) == (5 - UNTIMED_STEPS, UNTIMED_STEPS)
    assert seconds.tokens == (5 - UNTIMED_STEPS) * 12
    assert seconds.train_s == pytest.approx(seconds.forward_s + seconds.backward_s + seconds.optimizer_s)
    assert seconds.refresh_s is None
    assert seconds.tokens_per_s == pytest.approx(seconds.tokens / seconds.train_s)


def endless(stream: list[Batch]) -> Iterator[Batch]:
    while True:
        yield from stream


def test_micro_batches_are_taken_from_the_stream_in_order() -> None:
    taken: list[float] = []
    stream = endless([rows(2, seed) for seed in range(3)])

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        taken.append(float(batch["x"][0, 0]))
        return squared_error(model, batch)

    model = network()
    job = toy_job([rows(2, 0)], loss)
    job = Job(**{**vars(job), "batches": lambda start: stream})
    plan = training(steps=2, accumulation=2)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), job, plan, Outcome(), Hooks(lambda step, loss: None))
    assert taken == [float(rows(2, seed)["x"][0, 0]) for seed in (0, 1, 2, 0)]
