"""Instruction tuning of a causal language model: answers it generates, and choices by their likelihood.

The loss counts answers alone. Adapters, or all weights in full training, are what is trained: the language model keeps
its embeddings and head, as fine-tuning of language models does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from baselines.method import Placement, Work
from baselines.shared import targets
from results.catalogue import SuiteEntry, TaskEntry
from results.schema import DataFacts, DataPlan, ModelPlan, Plan
from suites import models
from suites.config import Settings
from suites.generated.problems import Problem
from suites.instruct import encode
from suites.instruct.data import Hub, Kind, Questions, held_out, hub_commit, load
from suites.instruct.evaluate import ENTRIES, Asked, constant, largest_batch, measured
from suites.measure.environment import derived_seed
from suites.suite import Batch, Job, Runtime, Scores

NAMES = {"directory": "instructions", "micro": "problems"}
KINDS = {
    "solve": Kind(choices=False, micro="answer", hub=Hub("openai/gsm8k", "main", "test")),
    "choose": Kind(choices=True, micro="choice", hub=Hub("allenai/ai2_arc", "ARC-Easy", "validation")),
}
UNKNOWN_FROM = 0.1
SAMPLE = 200


class InstructSettings(Settings):
    """What a run of instruction tuning can be told."""

    eval_rows: int | None = Field(default=None, gt=0, description="the first rows of validation alone")
    prompt: str = Field(default=encode.PROMPT, description="what the model is asked; has {question} in it")
    new_tokens: int = Field(default=256, gt=0, description="longest generated answer")


@dataclass(frozen=True)
class InstructSuite:
    """The suite."""

    name: str = "instruct"
    tasks: tuple[str, ...] = tuple(KINDS)
    entry: SuiteEntry = SuiteEntry(
        name="instruct", title="Instruction tuning", metrics=ENTRIES,
        notes=["Answers are generated greedily; choices are compared by the likelihood of their text"],
        tasks=[
            TaskEntry(
                name="solve", title="Generated answer", order=0, main_metric="validation/exact",
                metrics=["exact", "finished", "answer_loss"], constant="Constant answer",
                constant_rule="the most frequent number of the evaluated rows for every row",
            ),
            TaskEntry(
                name="choose", title="Multiple choice", order=1, main_metric="validation/accuracy",
                metrics=["accuracy", "accuracy_by_length", "answer_loss"], constant="Constant choice",
                constant_rule="the most frequent place of the right choice for every row",
            ),
        ],
    )  # fmt: skip
    work: Work = "fine-tuning"
    settings: type[InstructSettings] = InstructSettings

    def model(self, settings: InstructSettings, runtime: Runtime) -> ModelPlan:
        """Return which language model the settings name."""
        return models.resolve_model(settings.model, runtime)

    def data(self, task: str, settings: InstructSettings, runtime: Runtime) -> DataPlan:
        """Return what the questions are and how they are asked; digests name them, no path does."""
        if "{question}" not in settings.prompt:
            raise ValueError(f"prompt {settings.prompt!r}: must have {{question}} in it")
        kind, hub = KINDS[task], settings.source == "hub"
        revision = hub_commit(kind, runtime.offline) if hub else None
        return DataPlan(
            source=settings.source,
            name=kind.hub.name if hub else NAMES[settings.source],
            revision=revision,
            digest=None if hub else load(kind, settings.source, runtime.data_dir, None).digest,
            max_length=settings.max_length,
            train_rows=settings.train_rows,
            eval_rows=settings.eval_rows,
            prompt=settings.prompt,
            new_tokens=settings.new_tokens,
        )

    def train_rows(self, task: str, settings: InstructSettings, runtime: Runtime) -> int:
        """Return how many rows one epoch has."""
        revision = hub_commit(KINDS[task], runtime.offline) if settings.source == "hub" else None
        rows = len(load(KINDS[task], settings.source, runtime.data_dir, revision).train)
        return min(rows, settings.train_rows or rows)

    def verify(self, plan: Plan, runtime: Runtime) -> list[str]:
        """Load questions, tokenizer and configuration, so that what does not fit is found before the first run."""
        questions = _questions(plan, runtime)
        if not KINDS[plan.task].choices:
            _check_room(plan, runtime)
        notes = models.check_text(plan.model, runtime, plan.data.max_length)
        tokenizer = models.tokenizer(plan.model, runtime)
        texts = [f"{row.question} {row.answer}" for row in questions.train[:SAMPLE]]
        tokens = [token for ids in tokenizer(texts, verbose=False)["input_ids"] for token in ids]
        share = tokens.count(tokenizer.unk_token_id) / len(tokens)
        if tokenizer.unk_token_id is not None and share >= UNKNOWN_FROM:
            notes.append(
                f"warning: {share:.0%} of the words of task {plan.task} are unknown to the tokenizer of model "
                f"{plan.model.name}: it was made for other text, and scores will say little of any method"
            )
        return notes

    def skeleton(self, plan: Plan, runtime: Runtime) -> nn.Module:
        """Return the plan's language model from its configuration alone."""
        return models.causal_skeleton(plan.model, runtime)

    def placement(self, plan: Plan, runtime: Runtime) -> Placement:
        """Return the target layers; nothing beside them is trained by parameter-efficient methods."""
        with torch.device("meta"):
            return targets.place(self.skeleton(plan, runtime), plan.targets, train_rest=False, train_head=False)

    def outline(self, plan: Plan, runtime: Runtime) -> Job:
        """Return the whole job: the shape of its largest batch depends on the rows."""
        return self.job(plan, runtime)

    def job(self, plan: Plan, runtime: Runtime) -> Job:
        """Make one run ready."""
        questions, tokenizer = _questions(plan, runtime), models.tokenizer(plan.model, runtime)
        train, asked = _rows(plan, questions, tokenizer)
        size, order = plan.training.batch_size // plan.training.accumulation, derived_seed(plan.seed, "order")
        pad, main = tokenizer.pad_token_id, self.entry.task(plan.task)
        assert main is not None
        return Job(
            model=lambda: models.causal(plan.model, runtime, derived_seed(plan.seed, "model")),
            placement=self.placement(plan, runtime),
            batches=lambda start: encode.batches(train, size, order, start, pad),
            loss=_loss,
            tokens=lambda batch: int(batch["attention_mask"].sum()),
            largest=encode.largest_batch(train, size, pad),
            evaluate=lambda network: Scores({asked.split: len(asked.rows)}, measured(network, asked)),
            facts=DataFacts(
                train_rows=len(train),
                eval_rows={asked.split: len(asked.rows)},
                official=False,
                notes=list(questions.notes),
                constant_scores=constant(asked),
            ),
            main_metric=f"{asked.split}/{main.main_metric.partition('/')[2]}",
            weight=_answered,
            evaluation=largest_batch(asked),
            beside=lambda folder: tokenizer.save_pretrained(str(folder)),
        )


def _questions(plan: Plan, runtime: Runtime) -> Questions:
    found = load(KINDS[plan.task], plan.data.source, runtime.data_dir, plan.data.revision)
    if plan.data.digest not in (None, found.digest):
        raise ValueError(f"data of task {plan.task!r}: it changed since the plan was made; plan again")
    return found


def _check_room(plan: Plan, runtime: Runtime) -> None:
    """Raise ValueError where a question and its generated answer may be longer than the model's positions."""
    length, new = plan.data.max_length, plan.data.new_tokens or 0
    longest = models.positions(models.configuration(plan.model, runtime))
    if longest is not None and length + new > longest:
        raise ValueError(
            f"max_length {length} with new_tokens {new}: model {plan.model.name!r} has {longest} positions for a "
            f"question and its generated answer (nearest allowed: together {longest}); a decoder with more: --model"
        )


def _rows(plan: Plan, questions: Questions, tokenizer: object) -> tuple[list[encode.Row], Asked]:
    """Return the rows to train on, and what is evaluated."""
    data = plan.data
    assert data.prompt is not None
    assert data.new_tokens is not None
    prompt, train, evaluated, split = data.prompt, questions.train, questions.validation, "validation"
    if data.held_out:
        (train, evaluated), split = held_out(train), "held_out"
    evaluated = evaluated[: data.eval_rows]

    def coded(rows: list[Problem]) -> list[encode.Row]:
        return encode.encode(rows, tokenizer, prompt, data.max_length)

    options = [coded([row._replace(answer=text) for text in row.choices]) for row in evaluated if row.choices]
    asked = Asked(split, evaluated, coded(list(evaluated)), tokenizer, data.new_tokens, options)
    return coded(list(train[: data.train_rows])), asked


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    loss: Tensor = model(**batch, use_cache=False).loss
    return loss


def _answered(batch: Batch) -> int:
    return int((batch["labels"][:, 1:] != encode.IGNORED).sum())


SUITE = InstructSuite()
