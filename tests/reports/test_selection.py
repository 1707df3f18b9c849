"""Which records make a report, and the errors that say why not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from reports.records.selection import ReportError, parse_rank, select, uneven_settings
from results.schema import Record

Make = Callable[..., Record]
Grid = Callable[..., list[Record]]


def test_profiles_and_ranks_do_not_mix(make_record: Make) -> None:
    records = [
        make_record(method="full"),
        make_record(method="lora"),
        make_record(method="lora", method_config={"rank": 4}),
        make_record(method="galore", method_config={"projection_rank": 4}),
        make_record(method="lora", profile="small"),
        make_record(method="lora", seed=9, purpose="tuning"),
    ]
    assert [r.plan.method for r in select(records, "glue", "micro", 8)] == ["full", "lora"]
    assert [r.plan.method for r in select(records, "glue", "micro", 4)] == ["full", "lora", "galore"]
    assert [r.plan.profile for r in select(records, "glue", "small", 8)] == ["small"]


def test_only_profile_is_taken_and_several_are_named(make_record: Make) -> None:
    assert len(select([make_record()], "glue", None, 8)) == 1
    with pytest.raises(ReportError, match="several profiles, choose one with --profile: micro, small"):
        select([make_record(), make_record(profile="small")], "glue", None, 8)


@pytest.mark.parametrize(
    ("profile", "rank", "where", "text"),
    [
        ("mirco", 8, (), "unknown profile .* 'mirco': known are micro; nearest: micro"),
        ("micro", 7, (), "no run of rank 7: known are 8; nearest: 8"),
        ("micro", 8, ("training.steps",), "must be field=value"),
        ("micro", 8, ("training.step=3",), "unknown plan field 'training.step'.*nearest: training.steps"),
        ("micro", 8, ("training.steps=3",), "no run has training.steps = 3: known are 60"),
    ],
)
def test_bad_requests(make_record: Make, profile: str, rank: int, where: tuple[str, ...], text: str) -> None:
    with pytest.raises(ReportError, match=text):
        select([make_record()], "glue", profile, rank, where)


def test_nothing_to_report(make_record: Make) -> None:
    with pytest.raises(ReportError, match="no records: run the suite first"):
        select([], "glue", "micro", 8)
    with pytest.raises(ReportError, match="only tuning runs"):
        select([make_record(purpose="tuning")], "glue", "micro", 8)
    with pytest.raises(ReportError, match="unknown suite"):
        select([make_record(suite="c4")], "glue", "micro", 8)


def test_two_settings_of_a_method_stay_and_one_is_kept_on_request(make_record: Make) -> None:
    records = [make_record(), make_record(state_bits=8), make_record(method="full")]
    assert len(select(records, "glue", "micro", 8)) == 3
    kept = select(records, "glue", "micro", 8, ("training.state_bits=32",))
    assert [r.plan.method for r in kept] == ["lora", "full"]
    with pytest.raises(ReportError, match="two records of glue micro rte lora seed 0 have the same plan"):
        select([*records, make_record()], "glue", "micro", 8)


def test_all_ranks_are_taken_where_asked_for(make_record: Make) -> None:
    records = [make_record(), make_record(method_config={"rank": 4}), make_record(method="full")]
    with pytest.raises(ReportError, match="several ranks, choose one with --rank: 4, 8, or all"):
        select(records, "glue", "micro", None)
    assert len(select(records, "glue", "micro", "all")) == 3
    assert (parse_rank(None), parse_rank("4"), parse_rank("all")) == (None, 4, "all")
    with pytest.raises(ReportError, match="rank 'al': must be a whole number, or all"):
        parse_rank("al")


def test_condition_on_a_method_setting_spares_methods_without_it(make_record: Make) -> None:
    records = [
        make_record(),
        make_record(method_config={"rank": 8, "alpha": 4.0}),
        make_record(method="full"),
    ]
    kept = select(records, "glue", "micro", 8, ("method_config.alpha=4.0",))
    assert [r.plan.method_config for r in kept] == [{"rank": 8, "alpha": 4.0}, {}]


def test_uneven_settings_are_named_but_learning_rates_may_differ(make_record: Make) -> None:
    assert uneven_settings([make_record(method="full"), make_record()]) == []
    assert uneven_settings([make_record(method="full", steps=30), make_record()]) == ["rte: steps 30, 60"]


def test_uneven_numbers_stand_in_their_order_and_epochs_are_said_only_where_nothing_else_says_them(
    make_record: Make,
) -> None:
    batches = [make_record(method=f"m{size}", batch_size=size, epochs=size / 7) for size in (9, 13, 8)]
    assert uneven_settings(batches) == ["rte: batch size 8, 9, 13"]
    assert uneven_settings([make_record(epochs=1.0), make_record(epochs=2.0)]) == ["rte: epochs 1.0, 2.0"]
