"""What the loop does for a device: batches made ahead, numbers read together, curves of bounded length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from suites.run import clock, loop
from suites.run.clock import read_together
from suites.run.execute import execute
from suites.run.feed import ahead, to_device
from suites.run.loop import CURVE_POINTS, CURVE_START, in_curve
from suites.suite import Runtime
from suites.text import encode


def quiet(step: int, loss: float) -> None:
    pass


def numbered(count: int, fail_at: int | None = None) -> Iterator[dict[str, torch.Tensor]]:
    for index in range(count):
        if index == fail_at:
            raise ValueError(f"row {index} is broken")
        yield {"x": torch.tensor([index])}


def test_batches_made_ahead_are_the_same_in_the_same_order() -> None:
    assert [int(batch["x"]) for batch in ahead(numbered(7))] == list(range(7))
    assert [int(to_device(batch, torch.device("cpu"))["x"]) for batch in ahead(numbered(1))] == [0]


def test_what_goes_wrong_is_raised_where_its_batch_would_have_come() -> None:
    stream = ahead(numbered(9, fail_at=3))
    assert [int(next(stream)["x"]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="row 3 is broken"):
        next(stream)


class Reads(TorchDispatchMode):
    """Counts the single numbers that are read out of tensors, each of which would wait for a device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Reads.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_numbers_read_together_are_the_same_run_without_a_wait_a_number(
    make_plan: Any, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(accumulation=2, steps=4)
    plain = execute(plan, runtime, None, quiet)
    inside: list[int] = []
    real = loop.train_step

    def counted(*given: Any, **more: Any) -> Any:
        Reads.count = 0
        with Reads():
            found = real(*given, **more)
        inside.append(Reads.count)
        return found

    monkeypatch.setattr(loop, "train_step", counted)
    execute(plan, runtime, None, quiet)
    # Two losses and the norm; what the network asks of its masks by itself comes on top.
    own = [count - 3 for count in inside]
    assert min(own) >= 0
    inside.clear()
    for module in (loop, clock):
        monkeypatch.setattr(module, "reads_late", lambda device: True)
    late = execute(plan, runtime, None, quiet)
    assert (late.status, late.error) == ("ok", None)
    assert inside == own
    assert late.curve == plain.curve
    assert late.final_digest == plain.final_digest
    assert plain.timing is not None
    assert late.timing is not None
    assert (late.timing.timed_steps, late.timing.tokens) == (plain.timing.timed_steps, plain.timing.tokens)


def test_numbers_keep_their_order() -> None:
    assert read_together([1.5, torch.tensor(2.5), 3.5, torch.tensor(4.5)]) == [1.5, 2.5, 3.5, 4.5]


def test_short_curves_are_whole_and_long_ones_bounded() -> None:
    assert all(in_curve(step, CURVE_POINTS) for step in range(1, CURVE_POINTS + 1))
    for steps in (CURVE_POINTS + 1, 20_000, 682_000):
        kept = [step for step in range(1, steps + 1) if in_curve(step, steps)]
        assert len(kept) <= CURVE_POINTS + 1
        assert len(kept) > CURVE_POINTS / 2.5
        assert kept[:CURVE_START] == list(range(1, CURVE_START + 1))
        assert kept[-1] == steps


def test_a_thinned_curve_reaches_the_record(make_plan: Any, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CURVE_POINTS", 6)
    monkeypatch.setattr(loop, "CURVE_START", 2)
    record = execute(make_plan(steps=9), runtime, None, quiet)
    assert [point.step for point in record.curve] == [1, 2, 4, 6, 8, 9]


@pytest.mark.parametrize("rows", [64, 83])
def test_grouped_batches_hold_every_row_once_and_little_padding(rows: int) -> None:
    lengths = np.random.RandomState(0).randint(5, 200, rows)
    for epoch in range(2):
        found = encode.epoch_rows(lengths, 8, 3, epoch, grouping=4)
        assert sorted(np.concatenate(found).tolist()) == list(range(rows))
        assert len(found) == encode.batches_per_epoch(rows, 8)
        again = encode.epoch_rows(lengths, 8, 3, epoch, grouping=4)
        assert all(np.array_equal(one, other) for one, other in zip(found, again, strict=True))
    # The longest batches do not come first: their order is drawn.
    widths = [int(lengths[part].max()) for part in found]
    assert widths != sorted(widths, reverse=True)
    plain, grouped = (encode.padding_share(lengths, 8, 512, 3, grouping) for grouping in (0, 8))
    assert grouped < plain / 2


def test_without_grouping_the_stream_is_the_one_it_always_was() -> None:
    lengths = np.arange(1, 30)
    order = np.random.RandomState([7, 2]).permutation(29)
    found = encode.epoch_rows(lengths, 4, 7, 2)
    assert all(np.array_equal(part, order[4 * i : 4 * i + 4]) for i, part in enumerate(found))


def test_a_grouped_run_resumes_where_it_was(make_plan: Any, runtime: Runtime) -> None:
    plan = make_plan(length_grouping=2)
    assert plan.hash() != make_plan().hash()
    from suites.resolved import resolved

    job = resolved(plan, runtime).job()
    whole = [next(stream) for stream in [job.batches(0)] for _ in range(9)]
    later = job.batches(6)
    for batch in whole[6:]:
        assert torch.equal(batch["input_ids"], next(later)["input_ids"])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_a_compiled_run_ends_near_the_eager_one(
    backend: str, make_plan: Any, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("suites.run.execute.COMPILE_BACKEND", backend)
    eager, compiled = (execute(make_plan(compile=on), runtime, None, quiet) for on in (False, True))
    assert (compiled.status, compiled.error) == ("ok", None)
    assert [p.loss for p in compiled.curve] == pytest.approx([p.loss for p in eager.curve], rel=1e-3)
    assert compiled.memory is not None
    assert eager.memory is not None
    assert compiled.memory.step_peak == eager.memory.step_peak
