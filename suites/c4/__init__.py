"""C4 pre-training: LLaMA from random weights on C4 or on a generated source; scored by perplexity on fixed tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from baselines.method import Placement, Work
from baselines.shared import targets
from results.catalogue import SuiteEntry, TaskEntry
from results.schema import DataFacts, DataPlan, ModelPlan, Plan
from suites.c4 import data, documents, llama, tokens
from suites.c4.evaluate import ENTRIES, evaluate, largest_batch
from suites.c4.sequences import IGNORED
from suites.config import Settings
from suites.generated import text as generated
from suites.measure.environment import derived_seed
from suites.suite import HELD_OUT, Batch, Job, Runtime, Scores

METRIC = "perplexity"
NAMES = {"hub": documents.HUB_NAME, "directory": "c4", "micro": "text"}
TOKENIZERS = {"hub": "t5-base", "directory": "bpe:4096", "micro": tokens.MICRO}
# What the pinned tokenizers have, so that a plan needs no file of them; checked when a run loads one.
PINNED_SIZE = 32_000


class C4Settings(Settings):
    """What a pre-training run can be told."""

    tokenizer: str | None = Field(default=None, description="a known name, bpe:N, or a file or folder")
    vocabulary: int | None = Field(default=None, gt=0, description="embeddings; default: the tokenizer's")
    layout: Literal["packed", "padded"] | None = Field(default=None, description="how documents become sequences")
    eval_tokens: int | None = Field(default=None, gt=0, description="budget of evaluated tokens")


@dataclass(frozen=True)
class C4Suite:
    """The pre-training suite."""

    name: str = "c4"
    tasks: tuple[str, ...] = ("c4",)
    entry: SuiteEntry = SuiteEntry(
        name="c4", title="C4", yardstick_title="Full training", compared="loss", metrics=ENTRIES,
        notes=["Each predicted token counts once; bits per byte: over the bytes of raw text that they cover"],
        tasks=[
            TaskEntry(
                name="c4", title="C4", order=0, main_metric=f"validation/{METRIC}",
                metrics=[metric.name for metric in ENTRIES], constant="Unigram",
                constant_rule="each token by its share of the train tokens",
            )
        ],
    )  # fmt: skip
    work: Work = "pre-training"
    settings: type[C4Settings] = C4Settings

    def model(self, settings: C4Settings, runtime: Runtime) -> ModelPlan:
        """Return the network of the size that the settings name; its vocabulary is the tokenizer's unless given."""
        name = _tokenizer_name(settings)
        if settings.vocabulary is not None:
            vocabulary = settings.vocabulary
        elif _is_pinned(name, runtime):
            vocabulary = PINNED_SIZE
        else:
            vocabulary = data.tokenizer_of(name, settings.source, runtime).size
        return llama.plan(settings.model, vocabulary, settings.max_length)

    def data(self, task: str, settings: C4Settings, runtime: Runtime) -> DataPlan:
        """Return what the documents are and how they become sequences; digests name them, no path does."""
        name, layout = _tokenizer_name(settings), settings.layout or "padded"
        hub = settings.source == "hub"
        if hub and layout != "padded":
            raise ValueError(
                f"layout {layout!r}: the hub's stream is padded, as the protocol says; a position in packed documents "
                "is found only by tokenising all before it (nearest allowed value: padded)"
            )
        if hub and settings.train_rows is not None:
            raise ValueError(f"train_rows {settings.train_rows}: the hub's stream is used whole; cap steps instead")
        pinned = _is_pinned(name, runtime)
        tokenizer = None if pinned else data.tokenizer_of(name, settings.source, runtime)
        return DataPlan(
            source=settings.source,
            name=NAMES[settings.source],
            revision=documents.HUB_REVISION if hub else None,
            digest=_digest(settings.source, runtime.data_dir),
            max_length=settings.max_length,
            train_rows=settings.train_rows,
            tokenizer=Path(name).name if runtime.tokenizer is not None else name,
            tokenizer_revision=tokens.PINNED[name][1] if pinned else None,
            tokenizer_digest=None if tokenizer is None else tokenizer.digest,
            layout=layout,
            eval_tokens=settings.eval_tokens,
        )

    def train_rows(self, task: str, settings: C4Settings, runtime: Runtime) -> int:
        """Return how many sequences one epoch has."""
        plan = self.data(task, settings, runtime)
        if plan.source == "hub":
            return documents.OFFICIAL_ROWS["train"]
        assert plan.tokenizer is not None
        tokenizer = data.tokenizer_of(plan.tokenizer, plan.source, runtime)
        return len(data.finite(plan, tokenizer, runtime.data_dir)[0])

    def verify(self, plan: Plan, runtime: Runtime) -> list[str]:
        """Load a finite source whole; read a first document of the hub's, unless nothing is to be run."""
        data.check_held_out(plan.data)
        if plan.data.source != "hub":
            data.prepare(plan.data, _vocabulary(plan), runtime)
        elif not runtime.dry:
            assert plan.data.tokenizer is not None
            tokenizer = data.tokenizer_of(plan.data.tokenizer, plan.data.source, runtime)
            data.check_vocabulary(tokenizer, plan.data.tokenizer, _vocabulary(plan))
            next(documents.hub_validation(runtime.offline))
        return []

    def skeleton(self, plan: Plan, runtime: Runtime) -> nn.Module:
        """Return the plan's network from its numbers alone."""
        return llama.network(plan.model)

    def placement(self, plan: Plan, runtime: Runtime) -> Placement:
        """Return the target layers; embeddings, norms and head are trained by every method."""
        with torch.device("meta"):
            return targets.place(self.skeleton(plan, runtime), plan.targets, train_rest=True)

    def outline(self, plan: Plan, runtime: Runtime) -> Job:
        """Return the job without its data: all batches have one shape."""

        def batches(start: int) -> Iterator[Batch]:
            raise RuntimeError("an outline has no batches: make the job")

        def scores(network: nn.Module) -> Scores:
            raise RuntimeError("an outline has nothing to evaluate on: make the job")

        seed = derived_seed(plan.seed, "model")
        return Job(
            model=lambda: llama.network(plan.model, seed),
            placement=self.placement(plan, runtime),
            batches=batches,
            loss=_loss,
            tokens=_tokens,
            largest=_largest(plan),
            evaluate=scores,
            facts=DataFacts(train_rows=0, eval_rows={}, official=False),
            main_metric=f"{HELD_OUT if plan.data.held_out else 'validation'}/{METRIC}",
            weight=_predicted,
        )

    def job(self, plan: Plan, runtime: Runtime) -> Job:
        """Make one run ready."""
        outline = self.outline(plan, runtime)
        prepared = data.prepare(plan.data, _vocabulary(plan), runtime)
        size, order = plan.training.batch_size // plan.training.accumulation, derived_seed(plan.seed, "order")
        return Job(
            model=outline.model,
            placement=outline.placement,
            batches=lambda start: prepared.batches(size, order, start),
            loss=outline.loss,
            tokens=outline.tokens,
            largest=outline.largest,
            evaluate=lambda network: evaluate(network, prepared.evaluated),
            facts=prepared.facts,
            main_metric=outline.main_metric,
            weight=outline.weight,
            evaluation=largest_batch(prepared.evaluated),
            beside=prepared.tokenizer.save,
        )


def _tokenizer_name(settings: C4Settings) -> str:
    return settings.tokenizer or TOKENIZERS[settings.source]


def _is_pinned(name: str, runtime: Runtime) -> bool:
    return name in tokens.PINNED and runtime.tokenizer is None


def _vocabulary(plan: Plan) -> int:
    assert plan.model.vocabulary is not None
    return plan.model.vocabulary


def _digest(source: str, data_dir: Path | None) -> str | None:
    """Return what names the documents; None for the hub, whose revision does."""
    if source == "directory":
        return documents.directory_digest(data_dir)
    return generated.source().digest if source == "micro" else None


def _largest(plan: Plan) -> Batch:
    """Return a micro-batch of the one shape there is, its tokens spread over the vocabulary."""
    rows = plan.training.batch_size // plan.training.accumulation
    ids = torch.arange(rows * plan.data.max_length).reshape(rows, plan.data.max_length) % _vocabulary(plan)
    return {"input_ids": ids, "labels": ids.clone()}


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    loss: Tensor = model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
    return loss


def _tokens(batch: Batch) -> int:
    return int((batch["labels"] != IGNORED).sum())


def _predicted(batch: Batch) -> int:
    return int((batch["labels"][:, 1:] != IGNORED).sum())


SUITE = C4Suite()
