"""Scores of answers: a generated one by its number, one of several choices by its likelihood."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from results.catalogue import MetricEntry
from suites.generated.problems import Problem
from suites.instruct.encode import Row, collate, left_padded

ROWS_AT_ONCE = 64
TOKENS_AT_ONCE = 4096
"""Of rows whose logits are formed together: each token's are as many as the vocabulary has entries."""
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
MARK = "####"
ENTRIES = [
    MetricEntry(name="exact", title="exact answers", better="higher", unit="%", format=".1f", scale=100.0),
    MetricEntry(name="finished", title="answers that end", better="higher", unit="%", format=".1f", scale=100.0),
    MetricEntry(name="accuracy", title="right choices", better="higher", unit="%", format=".1f", scale=100.0),
    MetricEntry(
        name="accuracy_by_length",
        title="right choices, per character",
        better="higher",
        unit="%",
        format=".1f",
        scale=100.0,
    ),
    MetricEntry(name="answer_loss", title="loss on answers", better="lower", unit="nats", format=".4f"),
]


@dataclass(frozen=True)
class Asked:
    """What is evaluated: problems, their tokens, and what is needed to ask."""

    split: str
    problems: Sequence[Problem]
    rows: Sequence[Row]
    tokenizer: Any
    new_tokens: int
    choices: Sequence[Sequence[Row]]


def final(text: str) -> str:
    """Return what counts of an answer: the number after the last mark, else the last number, else the words."""
    after = text.rpartition(MARK)[2] if MARK in text else text
    numbers = NUMBER.findall(after)
    if not numbers:
        return " ".join(after.lower().split())
    number: str = numbers[0 if MARK in text else -1].replace(",", "")
    # 5.0 is 5.
    return number.rstrip("0").rstrip(".") if "." in number else number


@torch.no_grad()
def exact(model: Any, asked: Asked) -> dict[str, float | None]:
    """Return the share of generated answers whose number is the right one, and of those that came to an end.

    Greedy, at most `new_tokens` each.
    """
    device, end, pad = next(model.parameters()).device, asked.tokenizer.eos_token_id, asked.tokenizer.pad_token_id
    right = ended = 0
    order = sorted(range(len(asked.rows)), key=lambda index: -len(asked.rows[index].prompt))
    for first in range(0, len(order), ROWS_AT_ONCE):
        part = order[first : first + ROWS_AT_ONCE]
        batch = left_padded([asked.rows[index].prompt for index in part], pad)
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        made = model.generate(
            **batch, max_new_tokens=asked.new_tokens, do_sample=False, num_beams=1, use_cache=True, eos_token_id=end,
            pad_token_id=pad, temperature=None, top_p=None, top_k=None,
        )  # fmt: skip
        answers = made[:, batch["input_ids"].shape[1] :]
        ended += int((answers == end).any(dim=1).sum())
        texts = asked.tokenizer.batch_decode(answers, skip_special_tokens=True)
        right += sum(
            final(text) == final(asked.problems[index].answer) for index, text in zip(part, texts, strict=True)
        )
    return {"exact": right / len(order), "finished": ended / len(order)}


def parts(rows: Sequence[Row]) -> list[Sequence[Row]]:
    """Return the rows in parts whose logits are formed together: few of them where one is long."""
    size = max(1, min(ROWS_AT_ONCE, TOKENS_AT_ONCE // max(map(len, rows), default=1)))
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def _without_end(rows: Sequence[Row]) -> list[Row]:
    return [Row(row.prompt, row.answer[:-1]) for row in rows]


def largest_batch(asked: Asked) -> dict[str, Tensor]:
    """Return the largest batch whose logits `measured` has the model form."""
    choices = _without_end([row for rows in asked.choices for row in rows])
    largest = max([*parts(asked.rows), *parts(choices)], key=lambda part: len(part) * max(map(len, part)))
    return collate(largest, asked.tokenizer.pad_token_id)


@torch.no_grad()
def likelihoods(model: nn.Module, rows: Sequence[Row], pad: int) -> Tensor:
    """Return (N,) log p of each row's answer after its prompt, the end token left out."""
    device = next(model.parameters()).device
    found = []
    for part in parts(_without_end(rows)):
        batch = {name: tensor.to(device) for name, tensor in collate(part, pad).items()}
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch, use_cache=False).logits[:, :-1].float()
        losses = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        found.append(-losses.sum(dim=1).double().cpu())
    return torch.cat(found)


def chosen(model: nn.Module, asked: Asked) -> dict[str, float | None]:
    """Return the share of questions whose right choice is the likeliest one, whole and per character of its text."""
    flat = [row for rows in asked.choices for row in rows]
    scores = likelihoods(model, flat, asked.tokenizer.pad_token_id).tolist()
    whole = per_character = place = 0
    for problem in asked.problems:
        own = scores[place : place + len(problem.choices)]
        place += len(own)
        shares = [score / len(text) for score, text in zip(own, problem.choices, strict=True)]
        whole += own.index(max(own)) == problem.label
        per_character += shares.index(max(shares)) == problem.label
    return {"accuracy": whole / len(asked.problems), "accuracy_by_length": per_character / len(asked.problems)}


@torch.no_grad()
def answer_loss(model: nn.Module, asked: Asked) -> float | None:
    """Return the mean loss of an answer's tokens, end token included; None where it is not finite."""
    device, pad = next(model.parameters()).device, asked.tokenizer.pad_token_id
    total, count = 0.0, 0
    for part in parts(asked.rows):
        batch = {name: tensor.to(device) for name, tensor in collate(part, pad).items()}
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch, use_cache=False).logits[:, :-1].float()
        losses = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        total, count = total + float(losses.double().sum()), count + int((labels >= 0).sum())
    loss = total / count
    return loss if torch.isfinite(torch.tensor(loss)) else None


def measured(model: nn.Module, asked: Asked) -> dict[str, float | None]:
    """Return all metrics of a task; leaves the model as it found it. All are None where its loss is not finite."""
    training = model.training
    model.eval()
    loss = answer_loss(model, asked)
    found = chosen(model, asked) if asked.choices else exact(model, asked)
    model.train(training)
    if loss is None:
        found = dict.fromkeys(found)
    return {f"{asked.split}/{name}": value for name, value in {**found, "answer_loss": loss}.items()}


def constant(asked: Asked) -> dict[str, float | None]:
    """Return the scores of the best answer that looks at no question: the most frequent number, or place."""
    name = "accuracy" if asked.choices else "exact"
    values = [problem.label if asked.choices else final(problem.answer) for problem in asked.problems]
    return {f"{asked.split}/{name}": Counter(values).most_common(1)[0][1] / len(values)}
