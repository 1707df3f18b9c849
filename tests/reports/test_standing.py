"""Tables of our own runs: groups, standings, metrics of other suites, state reduction; and the switchboard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from reports.averages.convention import convention_of
from reports.averages.glue import all_conventions, switchboard, tables
from reports.page.conclusions import conclusions
from reports.records.groups import Group, groups
from reports.records.report_runs import Context
from reports.tables.cost import peaks_of
from reports.tables.standing import scores_of, standing_table, state_table
from reports.tables.table import to_markdown
from reports.write import suite_report
from results.schema import EQUAL_MEMORY, Evaluation, Record

Make = Callable[..., Record]
Grid = Callable[..., list[Record]]


def c4(make_record: Make, method: str, seed: int, perplexity: float, **changes: Any) -> Record:
    """Return a micro C4 run."""
    last = Evaluation(step=60, epoch=None, rows={}, metrics={"validation/perplexity": perplexity})
    parts = {"evaluations": [last], "main_metric": "validation/perplexity"}
    return make_record("c4", method, seed, score=0.5, parts=parts, suite="c4", **changes)


@pytest.fixture(scope="module")
def glue(make_grid: Grid) -> Group:
    """Return the group of a full micro grid."""
    (group,) = groups(make_grid(curve=False))
    return group


def test_groups_are_by_suite_profile_and_rank(make_record: Make) -> None:
    records = [
        make_record(), make_record(method="full"), make_record(profile="small"), make_record(purpose="tuning", seed=9),
        make_record(method_config={"rank": 4}),
    ]  # fmt: skip
    found = groups(records)
    assert [(g.name, len(g.records)) for g in found] == [
        ("glue-micro-r4", 2), ("glue-micro-r8", 2), ("glue-small-r8", 1)
    ]  # fmt: skip
    assert found[1].is_micro
    assert not found[2].is_micro


def test_equal_memory_is_a_comparison_of_its_own(make_record: Make) -> None:
    records = [make_record(), make_record(method="full"), make_record(variant=EQUAL_MEMORY, seed=5)]
    plain, equal = groups(records)
    assert [(g.name, g.title, len(g.records)) for g in (plain, equal)] == [
        ("glue-micro-r8", "GLUE, profile micro, rank 8", 2),
        ("glue-micro-r8-equal-memory", "GLUE, profile micro, rank 8, equal memory", 1),
    ]
    assert conclusions(equal.context)[-1] == (
        "limits",
        "Memory is equal by intent: the most rows a step that fit in the same room; peaks from 5.08 to 5.08 MiB.",
    )
    # Any other variant is a row beside its method's.
    (group,) = groups([make_record(), make_record(variant="bf16 study: nearest")])
    assert len(group.context.methods) == 2


def test_a_report_of_equal_memory_has_a_folder_of_its_own(make_record: Make) -> None:
    equal = [make_record(variant=EQUAL_MEMORY)]
    assert suite_report(equal, "glue").folder == "glue-micro-r8-equal-memory"
    assert suite_report([make_record()], "glue").folder == "glue-micro-r8"
    assert suite_report([make_record(), *equal], "glue").folder == "glue-micro-r8"


def test_two_settings_of_a_method_stand_in_the_table_as_two_rows(make_record: Make) -> None:
    (group,) = groups([make_record(learning_rate=1e-3), make_record(learning_rate=2e-3)])
    table = standing_table(group)
    assert table is not None
    assert [row[0].text for row in table.rows] == ["LoRA, learning rate 0.001", "LoRA, learning rate 0.002"]


def test_standing_has_ranks_front_and_chance(glue: Group) -> None:
    table = standing_table(glue)
    assert table is not None
    frame = table.data.set_index("method")
    assert frame["ranked_tasks"].eq(8).all()
    assert frame["mean_rank"].sum() == pytest.approx(15)
    assert frame["front_probability"].between(0, 1).all()
    # The cheapest method is on every front.
    assert frame.loc[frame["peak_bytes"].idxmin(), "front_probability"] == 1
    assert frame["on_front"].any()
    assert "not the paper's numbers" in to_markdown(table)


def test_memory_that_is_null_is_said_and_not_placed(make_grid: Grid, make_record: Make) -> None:
    records = make_grid(methods=("full",), curve=False) + make_grid(methods=("lora",), curve=False, measured=False)
    (group,) = groups(records)
    table = standing_table(group)
    assert table is not None
    assert "| LoRA | " in to_markdown(table)
    assert "| not measured | — | — |" in to_markdown(table)


def test_peaks_are_compared_over_the_same_tasks(make_record: Make) -> None:
    records = [make_record(task, "lora") for task in ("cola", "rte")] + [make_record("cola", "dora")]
    context = Context(records, "micro", 8)
    found = peaks_of(context, context.methods, context.tasks)
    memory = {record.plan.method: record.memory for record in records if record.plan.task == "cola"}
    want = {method: of.step_peak.total_bytes for method, of in memory.items() if of is not None and of.step_peak}
    assert (found.of, found.words) == (want, " of CoLA")
    # Of more tasks there is the peak of the one that was measured on them.
    assert set(peaks_of(context, ["lora"], context.tasks).of) == {"lora"}
    assert peaks_of(context, ["lora"], context.tasks).of["lora"] > want["lora"]
    said = [text for _, text in conclusions(context) if text.startswith("Least memory: LoRA")]
    assert len(said) == 1
    assert "at the highest step of CoLA, " in said[0]
    apart = Context([records[1], records[2]], "micro", 8)
    assert ("open", "Memory: no task was measured for every method.") in conclusions(apart)
    (group,) = groups(records)
    table = standing_table(group)
    assert table is not None
    assert dict(table.data.set_index("method")["peak_bytes"]) == want
    assert any(note.startswith("Peak: the highest of CoLA; on other tasks") for note in table.notes)


def test_a_share_of_nearly_all_draws_is_not_printed_as_all(glue: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = dict(zip(glue.context.methods, (0.9995, 0.0005, 1.0, 0.0, 0.5), strict=True))
    monkeypatch.setattr("reports.tables.standing.front_probability", lambda costs, scores: shares)
    table = standing_table(glue)
    assert table is not None
    assert [row[-1].text for row in table.rows] == [">0.99", "<0.01", "1.00", "0.00", "0.50"]


def test_perplexity_ranks_the_lower_first(make_record: Make) -> None:
    records = [c4(make_record, "lora", seed, 30.0 + seed) for seed in range(3)]
    records += [c4(make_record, "full", seed, 20.0 + seed) for seed in range(3)]
    (group,) = groups(records)
    assert group.context is not None
    assert scores_of(group.context)["full"]["c4"][0] == -20.0
    standing = standing_table(group)
    assert standing is not None
    assert standing.data.set_index("method")["mean_rank"].to_dict() == {"full": 1.0, "lora": 2.0}


def test_a_cell_with_a_broken_run_has_no_mean(make_record: Make) -> None:
    records = [c4(make_record, "lora", 0, 30.0), make_record("c4", "lora", 1, score=0.5, status="diverged", suite="c4")]
    (group,) = groups(records)
    assert group.context is not None
    assert scores_of(group.context) == {"lora": {}}


def test_state_reduction_is_counted_by_profile(make_record: Make) -> None:
    table = state_table(groups([make_record(), make_record(method="full", measured=False)]))
    assert table is not None
    assert table.data["reduction_max"].tolist() == [pytest.approx(100 * (1 - 8000 / 4_800_000))]
    assert state_table([]) is None


def test_the_switchboard_holds_every_convention_and_agrees_with_the_score_table(glue: Group) -> None:
    assert glue.context is not None
    board = switchboard(glue.context)
    assert len(board.conventions) == len(set(board.conventions)) == 324
    default = board.averages[board.default]
    assert default == glue.context.averages


@pytest.mark.parametrize(
    "changes",
    [{"tasks": 9}, {"mrpc": "accuracy", "epoch": "best"}, {"stsb": "mean", "qqp": "f1", "mnli": "mismatched"}],
)
def test_each_convention_is_what_a_report_under_it_says(glue: Group, changes: dict[str, Any]) -> None:
    assert glue.context is not None
    board = switchboard(glue.context)
    convention = convention_of(glue.context.entry, **changes)
    alone = Context(glue.records, "micro", 8, convention)
    found = board.averages[all_conventions(glue.context.entry, "same").index(convention)]
    assert {m: a.summary.mean for m, a in found.items()} == {
        m: pytest.approx(a.summary.mean) for m, a in alone.averages.items()
    }


def test_the_switchboard_table_moves_by_the_choice(glue: Group) -> None:
    assert glue.context is not None
    (table,) = tables(glue.context)
    text = to_markdown(table)
    assert "| tasks: 9 | −" in text
    assert "| mrpc: accuracy | −" in text
    assert len(table.data) == 324 * 5


def test_no_average_no_switchboard(make_grid: Grid) -> None:
    (group,) = groups(make_grid(tasks=("rte",), curve=False))
    assert group.context is not None
    assert tables(group.context) == []
