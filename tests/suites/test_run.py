"""One run from plan to record, for every method; every failure is a record with its own status."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.registry import get_method, methods
from results.schema import Memory, Plan, Record
from results.store import read_record, write_record
from suites.measure import environment
from suites.registry import get_suite
from suites.run import execute as run
from suites.run.execute import execute, is_out_of_memory
from suites.run.preflight import predict_peaks
from suites.suite import Batch, Runtime

Execute = Callable[..., Record]
REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference" / "glue-micro-r8"
NAMES = tuple(methods())


def by_default(*names: str) -> list[Any]:
    """Every method, those that are not among `names` slow."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in names)) for name in NAMES]


EIGHT_BITS = by_default("full", "galore")
"""Other methods' moments in 8 bits are tested by default in tests/baselines; whole runs with them are slow."""
WIDTHS = [
    pytest.param(*each.values, bits, marks=each.marks if bits == 8 else ())
    for each in EIGHT_BITS
    for bits in get_method(each.values[0]).widths
]


def quiet(step: int, loss: float) -> None:
    pass


def plan_for(make_plan: Any, name: str, **settings: Any) -> Plan:
    """A plan whose bases, where the method has any, are refreshed at steps 1 and 3 of 3."""
    gap = {"config": {"refresh_gap": 2}} if "refresh_gap" in get_method(name).config_type.model_fields else {}
    plan: Plan = make_plan(method=name, **gap, **settings)
    return plan


@pytest.fixture(scope="module")
def record_of(make_plan: Any, runtime: Runtime) -> Execute:
    kept: dict[tuple[str, int], Record] = {}

    def find(name: str, state_bits: int = 32) -> Record:
        if (name, state_bits) not in kept:
            plan = plan_for(make_plan, name, state_bits=state_bits)
            predicted = predict_peaks([plan], runtime)[plan.hash()]
            kept[name, state_bits] = execute(plan, runtime, predicted, quiet)
        return kept[name, state_bits]

    return find


@pytest.mark.parametrize("name", NAMES)
def test_a_run_gives_a_whole_record(name: str, record_of: Execute) -> None:
    record = record_of(name)
    assert (record.status, record.error) == ("ok", None)
    assert record.plan_hash == record.plan.hash()
    assert record.data is not None
    assert record.data.train_rows == 48
    assert record.data.eval_rows == {"validation": 32}
    assert [point.step for point in record.curve] == [1, 2, 3]
    assert record.skipped_steps == 0
    assert record.timing is not None
    assert record.timing.timed_steps == 1
    (evaluation,) = record.evaluations
    assert (evaluation.step, record.main_metric) == (3, "validation/accuracy")
    assert 0 <= (evaluation.metrics["validation/accuracy"] or -1) <= 1


def trains_layers(name: str) -> bool:
    return get_method(name).trains_layers((96, 96), get_method(name).configure(8))


def needs_less(name: str) -> bool:
    """Whether a method can have moments of either width: one that always has 8 bits saves nothing more."""
    method, shape = get_method(name), (4096, 4096)
    sizes = [method.layer_state_bytes(shape, method.configure(8), bits) for bits in method.widths]
    return not method.trains_layers(shape, method.configure(8)) or len(set(sizes)) > 1


@pytest.mark.parametrize("name", NAMES)
def test_the_certificate_says_what_the_method_did(name: str, record_of: Execute, runtime: Runtime) -> None:
    record = record_of(name)
    method = get_method(name)
    config = method.config_type(**record.plan.method_config)
    certificate, memory = record.engagement, record.memory
    assert certificate is not None
    assert memory is not None
    placed = get_suite("glue").placement(record.plan, runtime)
    assert tuple(layer.name for layer in certificate.layers) == placed.targets
    for layer in certificate.layers:
        ranks = method.ranks(layer.shape, config)
        assert (layer.rank, layer.projection_rank) == (ranks.rank, ranks.projection_rank)
    projects = certificate.layers[0].projection_rank is not None and method.bases
    assert (certificate.basis_bytes > 0) is projects
    # Bases at steps 1 and 3; a factor whose partner starts at zero has its first gradient, so its first basis, at 2.
    assert certificate.refreshes in ((2, 3) if projects else (None,))
    assert (certificate.state_bytes < certificate.dense_state_bytes) is method.saves_state
    assert memory.state_bytes == certificate.state_bytes
    # Beside what the formula counts there are only step counters and tables, which the ledger names.
    assert memory.formula_state_bytes is not None
    assert memory.ledger is not None
    (state,) = [gap for gap in memory.ledger.gaps if gap.name == "optimizer state, count - formula"]
    assert (state.gap_bytes, state.unexplained_bytes) == (memory.state_bytes - memory.formula_state_bytes, 0)
    assert (certificate.trainable_parameters == certificate.total_parameters) is (
        memory.trainable_bytes == memory.weight_bytes
    )


@pytest.mark.two_methods
@pytest.mark.parametrize("name", NAMES)
def test_memory_is_the_same_to_the_byte_in_a_second_run(name: str, record_of: Execute, runtime: Runtime) -> None:
    first = record_of(name)
    second = execute(first.plan, runtime, None, quiet)
    assert counted(first.memory) == counted(second.memory)
    assert first.engagement == second.engagement
    assert [point.loss for point in first.curve] == [point.loss for point in second.curve]
    assert first.evaluations == second.evaluations


@pytest.mark.parametrize("name", NAMES)
def test_the_ledger_explains_every_gap_of_formula_and_count(name: str, record_of: Execute) -> None:
    memory = record_of(name).memory
    assert memory is not None
    assert memory.ledger is not None
    lines = {line.name: line for line in memory.ledger.lines}
    assert lines["optimizer state"].count_bytes == memory.state_bytes
    assert lines["weights"].formula_bytes == memory.weight_bytes
    assert lines["gradients"].formula_bytes == memory.gradient_bytes
    projects = "refresh" in memory.ledger.phases
    assert projects is (memory.refresh_peak is not None)
    assert {"load", "forward", "backward", "optimizer", "evaluation"} <= set(memory.ledger.phases)
    for gap in memory.ledger.gaps:
        assert gap.gap_bytes == sum(gap.explained.values()) + gap.unexplained_bytes
        if "formula" in gap.name or gap.name == "total, peak - count":
            assert gap.unexplained_bytes == 0, gap


def test_the_ledger_explains_every_gap_of_a_base_weight_in_8_bits(make_plan: Any, runtime: Runtime) -> None:
    record = execute(make_plan(method="gradnormlorp", config={"base_bits": 8}), runtime, None, quiet)
    assert (record.status, record.error) == ("ok", None)
    assert record.memory is not None
    assert record.memory.ledger is not None
    assert {each.unexplained_bytes for each in record.memory.ledger.gaps if "formula" in each.name} == {0}


def test_regression_is_predicted_to_the_byte(make_plan: Any, runtime: Runtime) -> None:
    plan = plan_for(make_plan, "full", task="stsb")
    memory = execute(plan, runtime, predict_peaks([plan], runtime)[plan.hash()], quiet).memory
    assert memory is not None
    assert memory.step_peak is not None
    assert memory.predicted_peak_bytes == memory.step_peak.total_bytes


def test_the_median_error_of_the_committed_predictions_is_under_two_percent() -> None:
    found = []
    for path in sorted(REFERENCE.glob("*.json")):
        memory = read_record(path).memory
        assert memory is not None
        assert memory.step_peak is not None
        assert memory.predicted_peak_bytes is not None
        found.append(abs(memory.predicted_peak_bytes / memory.step_peak.total_bytes - 1))
    assert len(found) == 135
    assert statistics.median(found) < 0.02


def counted(memory: Memory | None) -> dict[str, Any]:
    """What is counted, without what the process saw and what was predicted."""
    assert memory is not None
    assert memory.ledger is not None
    found = memory.model_dump(exclude={"rss_peak_bytes", "rss_start_bytes", "predicted_peak_bytes"})
    seen = ("process growth - tracked peak", "peak, tracked - predicted")
    found["ledger"]["gaps"] = [gap for gap in found["ledger"]["gaps"] if gap["name"] not in seen]
    return found


@pytest.mark.parametrize(("name", "state_bits"), WIDTHS)
def test_the_predicted_peak_is_the_tracked_one(name: str, state_bits: int, record_of: Execute) -> None:
    if state_bits == 8:
        pytest.importorskip("bitsandbytes")
    memory = record_of(name, state_bits).memory
    assert memory is not None
    assert memory.step_peak is not None
    assert memory.predicted_peak_bytes == memory.step_peak.total_bytes


@pytest.mark.parametrize("name", [each for each in EIGHT_BITS if needs_less(each.values[0])])
def test_moments_of_eight_bits_work_and_need_less(name: str, record_of: Execute) -> None:
    pytest.importorskip("bitsandbytes")
    record = record_of(name, 8)
    assert record.status == "ok"
    assert record.engagement is not None
    assert any("uint8" in shape for shape in record.engagement.state_shapes)
    wide = record_of(name).engagement
    assert wide is not None
    assert record.engagement.state_bytes < wide.state_bytes


def test_a_record_survives_the_store(record_of: Execute, tmp_path: Path) -> None:
    record = record_of("gradnormlorp")
    assert read_record(write_record(tmp_path, record)) == record


def test_a_method_that_saves_nothing_fails_with_the_reason(make_plan: Any, runtime: Runtime) -> None:
    config = {"projection_rank": 96, "allow_full_rank": True, "rank": 96}
    record = execute(make_plan(method="gradnormlorp", config=config), runtime, None, quiet)
    assert record.status == "failed"
    assert "GradNormLoRP" in (record.error or "")
    assert "not below" in (record.error or "")
    assert record.engagement is not None
    assert record.engagement.state_bytes >= record.engagement.dense_state_bytes
    assert (len(record.curve), record.evaluations) == (1, [])


def test_galore_at_the_size_of_the_layer_is_refused(make_plan: Any, runtime: Runtime) -> None:
    record = execute(make_plan(method="galore", config={"projection_rank": 96}), runtime, None, quiet)
    assert record.status == "failed"
    assert "projection_rank 96" in (record.error or "")
    assert len((record.error or "").splitlines()) == 1


@pytest.mark.parametrize(
    ("problem", "status", "lines"),
    [
        (ValueError("rank 0: must be at least 1"), "failed", 1),
        (RuntimeError("something broke"), "failed", 3),
        (MemoryError("no more"), "out_of_memory", 1),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory", 1),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
            "out_of_memory",
            1,
        ),
        (RuntimeError("CUDA error: out of memory"), "out_of_memory", 1),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(h)`"), "out_of_memory", 1),
        (KeyboardInterrupt(), "interrupted", 1),
    ],
)
def test_a_failure_is_a_record_with_its_status(
    problem: BaseException,
    status: str,
    lines: int,
    make_plan: Any,
    runtime: Runtime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: Any) -> None:
        raise problem

    # Not in the pass that only measures: memory that runs out there is not the method's.
    monkeypatch.setattr(run, "train", fail)
    record = execute(make_plan(), runtime, None, quiet)
    assert record.status == status
    text = (record.error or "").splitlines()
    assert (str(problem) or "interrupted by the user") in text[0]
    assert len(text) >= lines
    assert len(text) == lines or lines > 1
    assert (record.memory, record.timing, record.curve) == (None, None, [])
    assert record.data is not None


def test_the_code_is_that_of_the_beginning(make_plan: Any, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "code_version", lambda root: ("a" * 40, False))

    def commit_meanwhile(step: int, loss: float) -> None:
        monkeypatch.setattr(environment, "code_version", lambda root: ("b" * 40, True))

    record = execute(make_plan(), runtime, None, commit_meanwhile)
    assert (record.environment.commit, record.environment.dirty) == ("a" * 40, False)
    told = execute(make_plan(), runtime, None, quiet, code=("c" * 40, False))
    assert (told.environment.commit, told.environment.dirty) == ("c" * 40, False)


def test_other_runtime_errors_are_no_lack_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator"))


def test_what_was_reached_before_an_interruption_is_kept(make_plan: Any, runtime: Runtime) -> None:
    def stop(step: int, loss: float) -> None:
        if step == 2:
            raise KeyboardInterrupt

    record = execute(make_plan(), runtime, None, stop)
    assert (record.status, record.error) == ("interrupted", "interrupted by the user")
    assert [point.step for point in record.curve] == [1, 2]
    assert record.engagement is not None


def test_a_run_that_explodes_is_diverged_and_its_curve_survives_the_store(
    make_plan: Any, runtime: Runtime, tmp_path: Path
) -> None:
    plan = make_plan(steps=12, learning_rate=1e30, clip_norm=0.0)
    plan = plan.model_copy(update={"training": plan.training.model_copy(update={"max_skipped": 4})})
    record = execute(plan, runtime, None, quiet)
    assert record.status == "diverged"
    assert "4 steps in a row were not finite" in (record.error or "")
    assert record.skipped_steps >= 4
    assert not math.isfinite(record.curve[-1].loss)
    again = read_record(write_record(tmp_path, record))
    assert math.isnan(again.curve[-1].loss) is math.isnan(record.curve[-1].loss)
    assert again.skipped_steps == record.skipped_steps


def spoil(monkeypatch: pytest.MonkeyPatch, first_steps: int) -> None:
    """Make the loss not a number in the first steps of the training; the tracked pass has another model."""
    seen: list[nn.Module] = []
    calls = 0

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        nonlocal calls
        if not any(model is other for other in seen):
            seen.append(model)
        value: Tensor = model(**batch).loss
        if len(seen) == 2:
            calls += 1
            return value * math.nan if calls <= first_steps else value
        return value

    monkeypatch.setattr("suites.text.classification._loss", loss)


def test_a_skipped_first_step_is_no_failure(make_plan: Any, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, first_steps=1)
    record = execute(make_plan(method="gradnormlorp"), runtime, None, quiet)
    assert (record.status, record.error, record.skipped_steps) == ("ok", None, 1)
    assert record.engagement is not None
    assert record.engagement.basis_bytes > 0


def test_a_short_run_of_skipped_steps_alone_is_diverged(
    make_plan: Any, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, first_steps=3)
    record = execute(make_plan(), runtime, None, quiet)
    assert record.status == "diverged"
    assert record.error == "no step from step 1 to the last one, step 3, was finite"


@pytest.mark.parametrize("name", by_default("full"))
def test_per_layer_updates_give_the_same_run_and_free_gradients(name: str, make_plan: Any, runtime: Runtime) -> None:
    settings = {"clip_norm": 0, "steps": 4}
    plain, inside = (plan_for(make_plan, name, per_layer=on, **settings) for on in (False, True))
    predicted = predict_peaks([inside], runtime)[inside.hash()]
    first, second = execute(plain, runtime, None, quiet), execute(inside, runtime, predicted, quiet)
    assert (first.status, second.status) == ("ok", "ok"), second.error
    assert [point.loss for point in first.curve] == [point.loss for point in second.curve]
    assert first.final_digest == second.final_digest
    assert [p.gradient_norm for p in first.curve] == pytest.approx([p.gradient_norm for p in second.curve], rel=1e-5)
    assert first.memory is not None
    assert first.memory.step_peak is not None
    assert second.memory is not None
    assert second.memory.step_peak is not None
    if get_method(name).ranks((96, 96), get_method(name).configure(8)).rank is None and trains_layers(name):
        assert second.memory.step_peak.gradient_bytes < first.memory.step_peak.gradient_bytes
    assert second.memory.predicted_peak_bytes == second.memory.step_peak.total_bytes


@pytest.mark.parametrize("name", by_default("gradnormlorp"))
def test_checkpointing_gives_the_same_losses_with_fewer_activations(
    name: str, make_plan: Any, runtime: Runtime
) -> None:
    plain, again = (plan_for(make_plan, name, checkpointing=on, batch_size=16) for on in (False, True))
    predicted = predict_peaks([again], runtime)[again.hash()]
    first, second = execute(plain, runtime, None, quiet), execute(again, runtime, predicted, quiet)
    assert (first.status, second.status) == ("ok", "ok"), second.error
    assert [p.loss for p in first.curve] == pytest.approx([p.loss for p in second.curve], rel=1e-6)
    assert first.memory is not None
    assert first.memory.step_peak is not None
    assert second.memory is not None
    assert second.memory.step_peak is not None
    # Where no layer is trained nothing is kept for backward that could be left out, and the blocks' inputs come on top.
    fewer = second.memory.step_peak.activation_bytes < first.memory.step_peak.activation_bytes
    assert fewer == trains_layers(name)
    assert second.memory.predicted_peak_bytes == second.memory.step_peak.total_bytes
