"""Prompts and answers as tokens: the loss counts answers alone; batches are a pure function of seed and position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from suites.generated.problems import Problem
from suites.suite import Batch

IGNORED = -100
PROMPT = "question: {question} answer:"


@dataclass(frozen=True)
class Row:
    """A prompt's tokens and its answer's, the end token last."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def prompt_of(problem: Problem, template: str) -> str:
    """Return what the model is asked."""
    return template.replace("{question}", problem.question)


def encode(rows: Sequence[Problem], tokenizer: Any, template: str, max_length: int) -> list[Row]:
    """Return the rows as tokens; of one longer than `max_length` the beginning of the prompt is cut off.

    Raises:
        ValueError: a tokenizer without an end token; an answer that leaves no room for a prompt.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer {tokenizer.name_or_path!r}: has no end token, by which an answer ends")
    prompts = tokenizer([prompt_of(row, template) for row in rows])["input_ids"]
    answers = tokenizer([f" {row.answer}" for row in rows], add_special_tokens=False)["input_ids"]
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ended = (*answer, tokenizer.eos_token_id)
        room = max_length - len(ended)
        if room < 1:
            raise ValueError(
                f"max_length {max_length}: an answer has {len(ended)} tokens and leaves no room for its question "
                f"(nearest allowed value: {len(ended) + 1})"
            )
        found.append(Row(tuple(prompt[-room:]), ended))
    return found


def collate(rows: Sequence[Row], pad_id: int) -> dict[str, Tensor]:
    """Return one batch padded on the right: input_ids, attention_mask and labels (B, T); prompts carry no label."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for place, row in enumerate(rows):
        whole = torch.tensor([*row.prompt, *row.answer])
        ids[place, : len(row)] = whole
        mask[place, : len(row)] = 1
        labels[place, len(row.prompt) : len(row)] = whole[len(row.prompt) :]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def batches(rows: Sequence[Row], size: int, seed: int, start: int, pad_id: int) -> Iterator[Batch]:
    """Yield endless batches from the start-th on; each epoch is one permutation of its own, the last batch smaller."""
    epoch, skip = divmod(start, -(-len(rows) // size))
    while True:
        # RandomState's stream is frozen across numpy versions.
        order = np.random.RandomState([seed, epoch]).permutation(len(rows))
        for first in range(skip * size, len(rows), size):
            yield collate([rows[index] for index in order[first : first + size]], pad_id)
        epoch, skip = epoch + 1, 0


def largest_batch(rows: Sequence[Row], size: int, pad_id: int) -> Batch:
    """Return the `size` longest rows together."""
    return collate(sorted(rows, key=len, reverse=True)[:size], pad_id)


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """Return prompts padded on the left, so that all of them end where the answer begins."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for place, prompt in enumerate(prompts):
        ids[place, width - len(prompt) :] = torch.tensor(prompt)
        mask[place, width - len(prompt) :] = 1
    return {"input_ids": ids, "attention_mask": mask}
