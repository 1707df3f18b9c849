"""The gate: what it compares, its bands, findings and their causes, what it refuses, how a reference is renewed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from results.gate import Refusal, Tolerances, check, compare, derive, load, observe
from results.gate.accept import changelog_entry, changelog_with, replace_reference
from results.gate.observed import NoReference, differences
from results.gate.quantities import quantities, window_name, windows
from results.gate.tolerances import EVERY, ROUNDING, Replicate, log_normal_bound, of_mean
from results.schema import Record
from results.store import write_record

Make = Callable[..., Record]
STEPS = 40


def curve(shift: float = 0.0, start: int = 1) -> list[dict[str, Any]]:
    """Return a falling loss, moved relatively by `shift` from step `start` on."""
    moved = [shift if step >= start else 0.0 for step in range(1, STEPS + 1)]
    return [
        {"step": step, "loss": 2.0 / step * (1 + by), "learning_rate": 1e-3, "gradient_norm": 1.0 / step * (1 + by)}
        for step, by in enumerate(moved, 1)
    ]


def make_run(
    make_record: Make, seed: int = 0, shift: float = 0.0, start: int = 1, score: float = 0.75, **more: Any
) -> Record:
    parts = {
        "curve": curve(shift, start),
        "evaluations": [
            {"step": STEPS, "epoch": 1.0, "rows": {"validation": 277}, "metrics": {"validation/accuracy": score}}
        ],
        **more.pop("parts", {}),
    }
    return make_record(parts, seed=seed, **more)


@pytest.fixture
def reference(make_record: Make) -> list[Record]:
    return [make_run(make_record, seed) for seed in range(3)]


@pytest.fixture
def tolerances(make_record: Make, reference: list[Record]) -> Tolerances:
    """Bands of replicates that move by about 1e-6."""
    noise = random.Random(0)
    sides = []
    for name in ("threads", "portable"):
        records = [
            make_run(make_record, seed, 1e-6 * noise.lognormvariate(0, 0.3), score=0.75 + noise.gauss(0, 0.002))
            for seed in range(3)
        ]
        about = Replicate(name=name, runs=3, threads=2, variables={}, device_name="cpu", commit=None)
        sides.append((about, records))
    return derive(reference, sides, 0.01)


def test_windows_double_and_cover_every_step_once() -> None:
    found = windows(40)
    assert found == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 40)]
    assert window_name(33) == "steps 33-64"
    assert [windows(steps)[-1][1] for steps in range(1, 70)] == list(range(1, 70))


def test_a_record_equals_itself(reference: list[Record], tolerances: Tolerances) -> None:
    verdict = compare(reference, reference, tolerances)
    assert verdict.passed
    assert verdict.exit_code == 0
    assert verdict.runs == 3
    assert all(verdict.comparisons[kind] > 0 for kind in verdict.comparisons)


def test_noise_like_the_replicates_passes(reference: list[Record], tolerances: Tolerances, make_record: Make) -> None:
    assert compare(
        reference, [make_run(make_record, seed, 1.5e-6, score=0.7505) for seed in range(3)], tolerances
    ).passed


@pytest.mark.parametrize("start", [1, 3, 17, 33])
def test_a_moved_curve_is_found_from_its_first_window(
    reference: list[Record], tolerances: Tolerances, make_record: Make, start: int
) -> None:
    moved = [make_run(make_record, seed, 1e-2 if seed == 1 else 0.0, start) for seed in range(3)]
    findings = [each for each in compare(reference, moved, tolerances).findings if each.kind == "loss"]
    assert findings[0].quantity == f"training loss, {window_name(start)}"
    assert {each.seed for each in findings} == {1}
    assert findings[0].sort == "regression"
    assert findings[0].deviation == pytest.approx(1e-2)


def test_one_byte_more_of_state_is_a_regression_and_one_less_an_improvement(
    reference: list[Record], tolerances: Tolerances
) -> None:
    for by, sort in ((1, "regression"), (-1, "improvement")):
        old = reference[0]
        assert old.memory is not None
        memory = old.memory.model_copy(update={"state_bytes": old.memory.state_bytes + by})
        changed = [old.model_copy(update={"memory": memory}), *reference[1:]]
        (finding,) = compare(reference, changed, tolerances).findings
        assert (finding.sort, finding.quantity, finding.cause) == (sort, "state_bytes", "code")


def test_a_tracked_peak_without_noise_in_the_replicates_is_exact(
    reference: list[Record], tolerances: Tolerances
) -> None:
    old = reference[0]
    assert old.memory is not None
    assert old.memory.step_peak is not None
    peak = old.memory.step_peak.model_copy(update={"temporary_bytes": 6, "total_bytes": 37})
    changed = [old.model_copy(update={"memory": old.memory.model_copy(update={"step_peak": peak})}), *reference[1:]]
    found = compare(reference, changed, tolerances).findings
    assert {each.quantity for each in found} == {"step_peak temporary_bytes", "step_peak total_bytes"}


def test_scores_are_judged_over_seeds(reference: list[Record], tolerances: Tolerances, make_record: Make) -> None:
    band = next(each for each in tolerances.bands if each.kind == "score" and each.method == EVERY)
    inside = [0.75 + of_mean(band, 3) * by for by in (2.0, -2.0, 0.5)]
    assert compare(
        reference, [make_run(make_record, s, score=each) for s, each in enumerate(inside)], tolerances
    ).passed
    worse = [make_run(make_record, seed, score=0.75 - 1.1 * of_mean(band, 3)) for seed in range(3)]
    (finding,) = compare(reference, worse, tolerances).findings
    assert (finding.kind, finding.sort, finding.seed) == ("score", "regression", None)


def test_a_score_that_never_moved_may_move_by_one_row(reference: list[Record], make_record: Make) -> None:
    about = Replicate(name="same", runs=3, threads=1, variables={}, device_name="cpu", commit=None)
    tolerances = derive(reference, [(about, reference)], 0.01)
    (band,) = [each for each in tolerances.bands if each.kind == "score"]
    assert (band.largest, band.bound) == (0.0, 2 / 277)
    alone = reference[:1]
    assert compare(alone, [make_run(make_record, 0, score=0.75 - 1 / 277)], tolerances).passed
    assert not compare(alone, [make_run(make_record, 0, score=0.75 - 3 / 277)], tolerances).passed


def test_a_nan_is_within_no_band(reference: list[Record], tolerances: Tolerances, make_record: Make) -> None:
    changed = [make_run(make_record, 0, math.nan), *reference[1:]]
    assert not compare(reference, changed, tolerances).passed


def test_runs_that_vanish_or_appear_are_found(
    reference: list[Record], tolerances: Tolerances, make_record: Make
) -> None:
    new = make_run(make_record, 7)
    found = compare(reference, [*reference[1:], new], tolerances).findings
    assert {(each.sort, each.seed) for each in found} == {("vanished", 0), ("appeared", 7)}


def test_a_changed_plan_is_one_finding_that_names_the_field(
    reference: list[Record], tolerances: Tolerances, make_record: Make
) -> None:
    training = {**reference[0].plan.training.model_dump(), "learning_rate": 1.5e-5}
    changed = [make_run(make_record, 0, training=training), *reference[1:]]
    (finding,) = compare(reference, changed, tolerances).findings
    assert (finding.quantity, finding.before, finding.after) == ("plan.training.learning_rate", 3e-5, 1.5e-5)
    assert finding.cause == "configuration"


def test_a_failed_run_is_a_regression(reference: list[Record], tolerances: Tolerances) -> None:
    broken = reference[0].model_copy(update={"status": "failed", "curve": [], "evaluations": [], "memory": None})
    findings = compare(reference, [broken, *reference[1:]], tolerances).findings
    assert (findings[0].quantity, findings[0].sort) == ("status", "regression")


def test_a_number_that_is_no_longer_recorded_is_found(reference: list[Record], tolerances: Tolerances) -> None:
    old = reference[0]
    assert old.memory is not None
    silent = old.model_copy(update={"memory": old.memory.model_copy(update={"step_peak": None})})
    found = compare(reference, [silent, *reference[1:]], tolerances).findings
    assert {each.quantity for each in found} > {"step_peak total_bytes"}
    assert all(each.after is None for each in found)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"packages": {"torch": "2.14.0"}}, "environment.packages.torch"),
        ({"python": "3.12.1"}, "environment.python"),
        ({"device": "cuda"}, "environment.device"),
        ({"platform": "Windows-10-AMD64"}, "environment.platform"),
    ],
)
def test_another_stack_is_refused_by_name(
    reference: list[Record], tolerances: Tolerances, change: dict[str, Any], field: str
) -> None:
    other = [each.model_copy(update={"environment": each.environment.model_copy(update=change)}) for each in reference]
    with pytest.raises(Refusal, match=field):
        compare(reference, other, tolerances)
    with pytest.raises(Refusal, match="mixes two stacks"):
        compare(reference, [*reference[:2], other[2]], tolerances)


def test_another_build_of_the_same_version_is_the_same_stack(reference: list[Record], tolerances: Tolerances) -> None:
    packages = {"packages": {"torch": "2.13.0+cpu"}}
    other = [
        each.model_copy(update={"environment": each.environment.model_copy(update=packages)}) for each in reference
    ]
    assert compare(reference, other, tolerances).passed


def test_another_profile_or_other_data_are_refused(
    reference: list[Record], tolerances: Tolerances, make_record: Make
) -> None:
    with pytest.raises(Refusal, match=r"profile of glue is paper in the reference and small"):
        compare(reference, [make_run(make_record, profile="small")], tolerances)
    data = {**reference[0].plan.data.model_dump(), "revision": "another"}
    with pytest.raises(Refusal, match=r"plan\.data\.revision of glue/rte"):
        compare(reference, [make_run(make_record, data=data)], tolerances)


def test_the_cause_of_a_moved_number(reference: list[Record], tolerances: Tolerances, make_record: Make) -> None:
    def cause(record: Record) -> str:
        return compare(reference, [record, *reference[1:]], tolerances).findings[0].cause

    def machine(record: Record, **change: Any) -> Record:
        return record.model_copy(update={"environment": record.environment.model_copy(update=change)})

    assert cause(make_run(make_record, 0, 1e-2)) == "code"
    late = make_run(make_record, 0, 1e-2, start=33)
    assert cause(machine(late, device_name="another")) == "stack"
    assert cause(late) == "code"
    band = next(each for each in tolerances.bands if each.kind == "loss" and each.item == "step 1")
    points = curve()
    points[0]["loss"] *= 1 + 1.5 * band.bound
    assert cause(make_run(make_record, 0, parts={"curve": points})) == "noise"
    # Two early numbers: another processor may move them a little further than the replicates, not ten times as far.
    for bounds, likely in ((1.5, "stack"), (10.0, "code")):
        points = curve()
        points[0]["loss"] *= 1 + bounds * band.bound
        points[1]["loss"] *= 1 + bounds * band.bound
        moved = machine(make_run(make_record, 0, parts={"curve": points}), device_name="another")
        found = compare(reference, [moved, *reference[1:]], tolerances).findings
        assert len(found) > 1
        assert found[0].cause == likely
        assert "device_name" in found[0].why


def test_a_window_in_which_few_moved_has_no_boundless_band(reference: list[Record], make_record: Make) -> None:
    noise = random.Random(0)
    sides = []
    for turn in range(4):
        records = []
        for seed in range(3):
            points = curve()
            for step, point in enumerate(points):
                # Of the first step two runs in all move, of the second none.
                moves = step > 1 or (step == 0 and seed == 0 and turn < 2)
                point["loss"] *= 1 + moves * 1e-6 * noise.lognormvariate(0, 1.0)
            records.append(make_run(make_record, seed, parts={"curve": points}))
        sides.append(
            (Replicate(name=str(turn), runs=3, threads=1, variables={}, device_name="cpu", commit=None), records)
        )
    found = derive(reference, sides, 0.01).bands
    bounds = {each.item: each.bound for each in found if each.kind == "loss" and each.method != "every method"}
    assert bounds["step 2"] == ROUNDING
    assert 1e-6 < bounds["step 1"] < 2e-3


def test_the_same_clean_commit_cannot_be_the_cause(tolerances: Tolerances, make_record: Make) -> None:
    def at(record: Record) -> Record:
        same = {"commit": "a" * 40, "dirty": False}
        return record.model_copy(update={"environment": record.environment.model_copy(update=same)})

    old, new = at(make_run(make_record, 0)), at(make_run(make_record, 0, 1e-2))
    assert {each.cause for each in compare([old], [new], tolerances).findings} == {"noise"}


@pytest.fixture
def timed(make_record: Make) -> Make:
    """Return a builder of runs that took so many seconds."""

    def make(method: str, seconds: float, **changes: Any) -> Record:
        config = {"rank": 8} if method == "lora" else {}
        record = make_run(make_record, 0, method=method, method_config=config, **changes)
        assert record.timing is not None
        return record.model_copy(update={"timing": record.timing.model_copy(update={"train_s": seconds})})

    return make


def test_time_is_said_and_only_judged_when_asked(tolerances: Tolerances, timed: Make) -> None:
    old, new = [timed("full", 10.0), timed("lora", 11.0)], [timed("full", 20.0), timed("lora", 44.0)]
    verdict = compare(old, new, tolerances)
    assert verdict.passed
    assert [(each.method, each.before, each.after) for each in verdict.times] == [
        ("lora", pytest.approx(1.1), pytest.approx(2.2))
    ]
    assert not compare(old, new, tolerances, time_factor=1.9).passed
    assert compare(old, new, tolerances, time_factor=2.1).passed


def test_times_are_over_the_runs_that_every_method_has(tolerances: Tolerances, timed: Make) -> None:
    both = [timed("full", 10.0), timed("lora", 11.0)]
    alone = [timed("full", 90.0, task="cola"), timed("full", 50.0, variant="accumulation")]
    (found,) = compare([*both, *alone], [*both, *alone], tolerances).times
    assert (found.before, found.after) == (pytest.approx(1.1), pytest.approx(1.1))
    # A run that brought no time now is no run of any method, on either side.
    cola = [timed(method, 500.0, task="cola") for method in ("full", "lora")]
    broken = [cola[0], cola[1].model_copy(update={"timing": None})]
    (found,) = compare([*both, *cola], [*both, *broken], tolerances, time_factor=1.5).times
    assert (found.before, found.after) == (pytest.approx(1.1), pytest.approx(1.1))


def test_bands_are_per_method_and_pooled_for_a_method_without_its_own(
    tolerances: Tolerances, reference: list[Record]
) -> None:
    plan, loss = reference[0].plan, quantities(reference[0])["training loss, step 1"]
    own, pooled = tolerances.band(plan, loss), tolerances.band(plan.model_copy(update={"method": "new"}), loss)
    assert own is not None
    assert pooled is not None
    assert (own.method, pooled.method) == ("gradnormlorp", EVERY)
    assert own.n == 6


def test_false_alarms_of_the_log_normal_bound_are_as_rare_as_asked() -> None:
    noise = random.Random(1)
    alarms = 0
    for _ in range(3000):
        bound = log_normal_bound([1e-6 * noise.lognormvariate(0, 1) for _ in range(30)], 0.05)
        alarms += 1e-6 * noise.lognormvariate(0, 1) > bound
    assert 0.02 < alarms / 3000 < 0.06


def test_a_bound_is_never_below_what_was_seen_nor_below_one_rounding() -> None:
    assert log_normal_bound([0.0, 0.0], 0.01) == 2.0**-23
    assert log_normal_bound([0.0, 3e-7], 0.01) == 3e-7
    assert log_normal_bound([1e-9] * 20 + [1e-3], 0.5) == 1e-3


def test_a_replicate_of_other_plans_is_refused(reference: list[Record], make_record: Make) -> None:
    about = Replicate(name="x", runs=1, threads=1, variables={}, device_name="cpu", commit=None)
    with pytest.raises(ValueError, match="not in the reference"):
        derive(reference, [(about, [make_run(make_record, 9)])], 0.01)
    with pytest.raises(ValueError, match="nothing to derive"):
        derive(reference, [], 0.01)


def test_bad_references_are_refused(reference: list[Record], tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="does not exist"):
        load(tmp_path / "none", "reference")
    with pytest.raises(Refusal, match="holds no record"):
        load(tmp_path, "reference")
    path = write_record(tmp_path, reference[0])
    (tmp_path / "twin.json").write_bytes(path.read_bytes())
    with pytest.raises(Refusal, match="same plan"):
        load(tmp_path, "reference")
    (tmp_path / "twin.json").write_bytes(path.read_bytes()[:200])
    with pytest.raises(Refusal, match=r"twin\.json"):
        load(tmp_path, "records")


def test_a_renewed_reference_drops_old_plans_and_keeps_other_files(
    reference: list[Record], make_record: Make, tmp_path: Path
) -> None:
    replace_reference(tmp_path, reference)
    (tmp_path / "tolerances.json").write_text("{}")
    replace_reference(tmp_path, [reference[0], make_run(make_record, 9)])
    assert {record.plan.seed for record in load(tmp_path, "reference")} == {0, 9}
    assert (tmp_path / "tolerances.json").exists()
    with pytest.raises(ValueError, match="status failed"):
        replace_reference(tmp_path, [reference[1].model_copy(update={"status": "failed"})])
    assert {record.plan.seed for record in load(tmp_path, "reference")} == {0, 9}


@pytest.mark.parametrize("rest", ["", "\n## 1.0\n\n### Added\n- Old.\n"])
def test_the_changelog_gets_one_line(
    reference: list[Record], tolerances: Tolerances, make_record: Make, tmp_path: Path, rest: str
) -> None:
    path = tmp_path / "CHANGELOG.md"
    path.write_text(f"# Changelog\n\n## Unreleased\n\n### Added\n- New.\n{rest}")
    findings = compare(reference, [make_run(make_record, 0, 1e-2), *reference[1:]], tolerances).findings
    for _ in range(2):
        path.write_text(changelog_with(path, changelog_entry(findings, "c" * 40)))
    text = path.read_text()
    unreleased = text.partition("## 1.0")[0]
    assert unreleased.count("### Changes that alter numbers\n- Gate reference renewed (code at cccccccccccc)") == 1
    assert unreleased.count("training loss, step 1") == 2
    assert text.endswith(rest.removeprefix("\n"))
    path.write_text("nothing")
    with pytest.raises(ValueError, match="Unreleased"):
        changelog_with(path, "- x")


def _numbers(shift: float = 0.0, state: int = 100) -> dict[str, Any]:
    return {"state_bytes": state, "shapes": {"a": 1}, "loss": [1.0 / step * (1 + shift) for step in range(1, 20)]}


def test_any_function_can_be_gated(tmp_path: Path) -> None:
    stack = {"torch": "2.13.0"}
    assert check("mine", lambda replicate: _numbers(1e-7 * replicate), tmp_path, stack, update=True) == []
    assert check("mine", lambda _: _numbers(2e-7), tmp_path, stack) == []
    (line,) = check("mine", lambda _: _numbers(state=101), tmp_path, stack)
    assert line == "state_bytes: 100 -> 101 (exact)"
    lines = check("mine", lambda _: _numbers(1e-2), tmp_path, stack)
    assert lines[0].startswith("loss, step 1: 1 -> 1.01")
    with pytest.raises(Refusal, match=r"torch is 2\.13\.0 in the reference and 2\.14\.0 now"):
        check("mine", lambda _: _numbers(), tmp_path, {"torch": "2.14.0"})
    with pytest.raises(Refusal, match="--gnlorp-update"):
        check("other", lambda _: _numbers(), tmp_path, stack)
    for broken in (math.nan, math.inf):
        with pytest.raises(NoReference, match=r"loss.*(nan|inf) in replicate 2: nothing compares with it"):
            check("mine", lambda n, b=broken: {"loss": b if n == 2 else 1.0}, tmp_path, stack, update=True)
    assert check("mine", lambda _: _numbers(2e-7), tmp_path, stack) == []
    (tmp_path / "mine.observed").write_text("{")
    with pytest.raises(Refusal, match=r"mine\.observed"):
        check("mine", lambda _: _numbers(), tmp_path, stack)


def test_an_unrepeatable_count_cannot_become_a_reference() -> None:
    with pytest.raises(ValueError, match="state_bytes: 100 in replicate 0, 101 in 1"):
        observe(lambda replicate: _numbers(state=100 + replicate), {})
    with pytest.raises(ValueError, match="at least 2"):
        observe(lambda _: _numbers(), {}, replicates=1)


def test_a_shorter_curve_is_found() -> None:
    reference = observe(lambda _: _numbers(), {})
    lines = differences(reference, {**_numbers(), "loss": _numbers()["loss"][:8]}, {})
    assert [line.partition(":")[0] for line in lines] == ["loss, steps 9-16", "loss, steps 17-32"]
