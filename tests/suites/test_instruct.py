"""Instruction tuning: rows, tokens, what counts of an answer, and runs on generated problems and on a folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from suites import models
from suites.generated import problems
from suites.instruct import KINDS, SUITE, encode, evaluate
from suites.instruct.data import load, problem, read
from suites.instruct.evaluate import Asked, constant, exact, final, likelihoods, parts
from suites.plan import Request, make_plans
from suites.run.execute import execute
from suites.suite import Runtime

SMALL = {"steps": 3, "batch_size": 4, "train_rows": 16, "eval_rows": 6, "evaluations": 1, "new_tokens": 6}
CPU = Runtime(torch.device("cpu"))


def plan_of(task: str, method: str = "lora", runtime: Runtime = CPU, **settings: Any) -> Any:
    request = Request("instruct", "micro", 4, (task,), (method,), (0,), tuple({**SMALL, **settings}.items()))
    (plan,) = make_plans(request, runtime)
    return plan


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("7 + 5 = 12 #### 12", "12"),
        ("so 5 then 7 #### 1,234", "1234"),
        ("#### 5.0", "5"),
        ("#### $3.50 each", "3.5"),
        ("#### -4", "-4"),
        ("#### 10", "10"),
        ("the answer is 41 or rather 42.", "42"),
        ("#### 12 and then 13", "12"),
        ("Paris  of course", "paris of course"),
        ("", ""),
    ],
)
def test_what_counts_of_an_answer(text: str, counts: str) -> None:
    assert final(text) == counts


@pytest.mark.parametrize("kind", problems.KINDS)
def test_generated_problems_are_right_and_apart(kind: str) -> None:
    for split in problems.ROWS:
        for row in problems.rows(kind, split):
            assert set(f"{row.question} {row.answer}".split()) <= set(problems.words())
            if row.choices:
                assert row.choices[row.label] == row.answer
                assert len(set(row.choices)) == len(row.choices)
                continue
            for part in row.answer.partition(" ####")[0].split(" ; "):
                left, _, right = part.partition(" = ")
                a, sign, b = left.split()
                assert int(a) + (int(b) if sign == "+" else -int(b)) == int(right)
            assert row.answer.endswith(f"= {final(row.answer)} #### {final(row.answer)}")
    questions = [{row.question for row in problems.rows(kind, split)} for split in problems.ROWS]
    assert not questions[0] & questions[1]


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ({"choices": ["x", "y"], "label": 1}, 1),
        ({"choices": ["x", "y"], "label": "B"}, 1),
        ({"choices": ["x", "y"], "label": "y"}, 1),
        ({"choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "1"}, 0),
    ],
)
def test_a_choice_is_named_by_place_letter_or_text(row: dict[str, Any], label: int) -> None:
    assert problem({"question": "q", **row}, True, "row 1").label == label


@pytest.mark.parametrize(
    ("content", "choices", "words"),
    [
        (b'{"question": "q"}', False, "line 1: has no 'answer' that is a text; the fields are question"),
        (b'{"question": "q", "answer": "1"}\n{"answer": "1"}', False, "line 2: has no 'question'"),
        (b'{"question": "q", "answer": "caf\xe9"}', False, "line 1, byte 33: not UTF-8"),
        (b'{"question": "q", "choices": ["x"], "label": 0}', True, "line 1: choices .*at least two texts"),
        (b'{"question": "q", "choices": ["x", "y"], "label": 2}', True, "line 1: label 2: must be 0 to 1, one of A, B"),
        (b"[1]", False, "line 1: is no object"),
        (b"", False, "line 1: no JSON"),
    ],
)
def test_a_row_that_does_not_say_what_is_needed_is_named(
    content: bytes, choices: bool, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        list(read(path, choices))


def test_the_loss_counts_answers_alone_and_the_prompt_is_cut_at_its_beginning() -> None:
    tokenizer = models.tokenizer(models.resolve_model("micro-decoder", CPU), CPU)
    rows = problems.rows("answer", "validation")[:5]
    coded = encode.encode(rows, tokenizer, encode.PROMPT, 96)
    batch = encode.collate(coded, tokenizer.pad_token_id)
    for place, row in enumerate(rows):
        told = batch["labels"][place][batch["labels"][place] >= 0]
        assert tokenizer.decode(told).split() == [*row.answer.split(), tokenizer.eos_token]
        whole = batch["input_ids"][place][batch["attention_mask"][place] == 1]
        assert tokenizer.decode(whole).split() == f"question: {row.question} answer: {row.answer} </s>".split()
    short = encode.encode(rows, tokenizer, encode.PROMPT, 20)
    assert all(len(row) <= 20 and row.prompt[-1] == coded[0].prompt[-1] for row in short)
    with pytest.raises(ValueError, match="leaves no room for its question"):
        encode.encode(rows, tokenizer, encode.PROMPT, 5)


def test_batches_are_a_pure_function_of_seed_and_position() -> None:
    tokenizer = models.tokenizer(models.resolve_model("micro-decoder", CPU), CPU)
    rows = encode.encode(problems.rows("answer", "validation")[:10], tokenizer, encode.PROMPT, 96)
    stream = encode.batches(rows, 4, 7, 0, 0)
    first = [next(stream) for _ in range(7)]
    assert [len(batch["labels"]) for batch in first] == [4, 4, 2, 4, 4, 2, 4]
    again = encode.batches(rows, 4, 7, 5, 0)
    for batch in first[5:]:
        assert all(torch.equal(value, batch[name]) for name, value in next(again).items())


def test_likelihoods_are_those_of_each_answer_alone() -> None:
    plan = models.resolve_model("micro-decoder", CPU)
    model, tokenizer = models.causal(plan, CPU, 0).eval(), models.tokenizer(plan, CPU)
    rows = encode.encode(problems.rows("answer", "validation")[:3], tokenizer, encode.PROMPT, 96)
    found = likelihoods(model, rows, tokenizer.pad_token_id)
    for row, value in zip(rows, found, strict=True):
        ids = torch.tensor([[*row.prompt, *row.answer[:-1]]])
        log_p = functional.log_softmax(model(input_ids=ids).logits[0, :-1], -1)
        own = sum(log_p[len(row.prompt) - 1 + place, token] for place, token in enumerate(row.answer[:-1]))
        assert float(value) == pytest.approx(float(own), rel=1e-5)


def test_generation_with_padding_is_that_of_each_question_alone() -> None:
    plan = models.resolve_model("micro-decoder", CPU)
    model, tokenizer = models.causal(plan, CPU, 0).eval(), models.tokenizer(plan, CPU)
    asked = problems.rows("answer", "validation")[:6]
    rows = encode.encode(asked, tokenizer, encode.PROMPT, 96)
    texts = []
    for row in rows:
        ids = list(row.prompt)
        for _ in range(8):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
        texts.append(tokenizer.decode(ids[len(row.prompt) :], skip_special_tokens=True))
    answers = [row._replace(answer=f"#### {final(text)}") for row, text in zip(asked, texts, strict=True)]
    whole = Asked("validation", answers, rows, tokenizer, 8, [])
    assert exact(model, whole)["exact"] == 1.0


def test_few_long_rows_are_evaluated_together() -> None:
    short, long = encode.Row((1,), (2, 3)), encode.Row((1,) * 1500, (2,) * 500)
    assert [len(part) for part in parts([short] * 130)] == [64, 64, 2]
    assert [len(part) for part in parts([short] * 4 + [long])] == [2, 2, 1]
    assert [len(part) for part in parts([encode.Row((1,) * 9000, (2,))] * 2)] == [1, 1]


@pytest.mark.parametrize("task", KINDS)
def test_no_forward_of_an_evaluation_is_larger_than_the_job_says(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "TOKENS_AT_ONCE", 100)
    job = SUITE.job(plan_of(task, eval_rows=9), CPU)
    model, shapes = job.model(), []  # type: Any, list[Any]
    model.register_forward_pre_hook(
        lambda module, given, named: shapes.append(named["input_ids"].shape), with_kwargs=True
    )
    monkeypatch.setattr(evaluate, "exact", lambda model, asked: {})
    job.evaluate(model)
    assert job.evaluation is not None
    assert job.evaluation["input_ids"].shape in shapes
    assert max(shape.numel() for shape in shapes) == job.evaluation["input_ids"].numel() <= 100
    assert len(shapes) > 2


def test_an_answer_needs_positions_beside_its_question() -> None:
    SUITE.verify(plan_of("solve", new_tokens=32), CPU)
    with pytest.raises(
        ValueError, match=r"max_length 96 with new_tokens 33: .* has 128 positions .*together 128.*--model"
    ):
        SUITE.verify(plan_of("solve", new_tokens=33), CPU)
    # Nothing is generated there.
    SUITE.verify(plan_of("choose", new_tokens=33), CPU)


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("method", ["full", "gradnormlorp"])
def test_a_run_of_generated_problems(task: str, method: str) -> None:
    plan = plan_of(task, method)
    assert SUITE.verify(plan, CPU) == []
    record = execute(plan, CPU, None, lambda step, loss: None)
    assert record.status == "ok", record.error
    assert record.main_metric in record.evaluations[-1].metrics
    loss = record.evaluations[-1].metrics["validation/answer_loss"]
    assert loss is not None
    assert 0 < loss < math.log(len(problems.words())) * 3
    assert record.data is not None
    assert record.data.constant_scores.keys() == {record.main_metric}


def test_nothing_but_the_adapters_is_trained() -> None:
    placement = SUITE.placement(plan_of("solve"), CPU)
    assert placement.trained == ()
    assert len(placement.targets) == 3 * 7


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as GSM8K's files are, and one of choices."""
    for name, split in (("train", "train"), ("test", "validation")):
        rows = problems.rows("answer", split)[:20]
        text = "".join(json.dumps({"question": row.question, "answer": row.answer}) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    return tmp_path


def test_a_folder_like_gsm8ks_runs(folder: Path) -> None:
    runtime = Runtime(torch.device("cpu"), data_dir=folder)
    plan = plan_of("solve", runtime=runtime, source="directory")
    assert (plan.data.source, plan.data.name) == ("directory", "instructions")
    assert str(folder) not in plan.model_dump_json()
    record = execute(plan, runtime, None, lambda step, loss: None)
    assert record.status == "ok", record.error
    assert record.data is not None
    assert (record.data.train_rows, record.data.eval_rows) == (16, {"validation": 6})


def test_a_question_of_validation_is_not_trained_on(folder: Path) -> None:
    with (folder / "train.jsonl").open("a") as stream:
        stream.write((folder / "test.jsonl").read_text().splitlines()[0] + "\n")
    found = load(KINDS["solve"], "directory", folder, None)
    assert len(found.train) == 20
    assert found.notes == ("1 train questions left out, since they stand in validation",)


def test_a_folder_without_a_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no file for train: one of train.jsonl"):
        load(KINDS["solve"], "directory", tmp_path, None)
    with pytest.raises(ValueError, match="needs a folder of JSON lines, given with --data-dir"):
        load(KINDS["solve"], "directory", None, None)


def test_the_hub_is_asked_at_one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"question": f"q {n}", "answer": f"{n} #### {n}"} for n in range(4)]
    seen: list[Any] = []

    def load_dataset(name: str, config: str, split: str, revision: str) -> list[dict[str, str]]:
        seen.append((name, config, split, revision))
        return rows

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *a, **k: SimpleNamespace(sha="abc"))
    plan = plan_of("solve", source="hub")
    assert (plan.data.name, plan.data.revision) == ("openai/gsm8k", "abc")
    assert seen == [("openai/gsm8k", "main", "train", "abc"), ("openai/gsm8k", "main", "test", "abc")]


def test_the_best_answer_that_looks_at_nothing() -> None:
    rows = [problems.Problem("q", f"x #### {n}") for n in (3, 3, 5)]
    assert constant(Asked("validation", rows, [], None, 1, [])) == {"validation/exact": pytest.approx(2 / 3)}


def test_a_prompt_without_the_question_is_refused() -> None:
    with pytest.raises(ValueError, match="must have {question} in it"):
        plan_of("solve", prompt="answer me:")
